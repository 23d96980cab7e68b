"""FCOS and EmbedMask: one-stage detectors, the parts wired together."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from maskx_jax.limits import Check, one_of, within
from maskx_jax.models.backbones import fpn
from maskx_jax.models.backbones.fpn import FPN, compute_maps
from maskx_jax.models.dense import embed_head, fcos_head
from maskx_jax.models.dense.embed_head import Embeddings, EmbedMaskHead
from maskx_jax.models.dense.fcos_head import FCOSHead
from maskx_jax.models.pixels import Pixels
from maskx_jax.ops.losses import Mean, total_loss
from maskx_jax.structures import Batch, Detections

MASKS = ("none", "embeddings")
_MODULES: Mapping[str, Mapping[str, Check]] = {
    "fpn": fpn.LIMITS,
    "head": fcos_head.LIMITS,
    "embed_head": embed_head.LIMITS,
}
LIMITS: Mapping[str, Check] = {
    "masks": one_of(*MASKS),
    **within(_MODULES),
}


class DenseDetector(nn.Module):
    """A one-stage detector: what is found stands at the points of the pyramid, without regions.

    Attributes:
      pixels, backbone, fpn, head: FCOS.
      embed_head: EmbedMask's branch, or None for boxes only.
    """

    pixels: Pixels
    backbone: nn.Module
    fpn: FPN
    head: FCOSHead
    embed_head: EmbedMaskHead | None = None

    @property
    def produces(self) -> frozenset[str]:
        """What its detections have."""
        return frozenset({"boxes"} if self.embed_head is None else {"boxes", "masks"})

    @property
    def multiple(self) -> int:
        """What the sides of a canvas must be multiples of."""
        return self.backbone.multiple

    @property
    def learners(self) -> Mapping[str, frozenset[str]]:
        """Which modules learn from a part of the loss, by its name; of the mask branch's parts it is not said."""
        return dict.fromkeys(("class", "box", "centerness"), frozenset({"backbone", "fpn", "head"}))

    def losses(
        self, batch: Batch, key: Key[Array, ""] | Int[Array, "2"]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Return the total loss and its parts: class, box, centerness and, with a mask branch, mask (and smooth)."""
        return total_loss(self.loss_means(batch, jax.random.split(key, batch.images.shape[0])))

    def loss_means(self, batch: Batch, keys: Key[Array, "b"] | Int[Array, "b 2"]) -> dict[str, Mean]:
        """Return the parts of the loss before they are divided: added over the parts of a batch they are the batch's.

        Args:
          batch: images and objects.
          keys: play no part, since nothing is drawn at random.
        """
        gt = batch.ground_truth
        pyramid = batch.pyramid
        if pyramid is None:
            pyramid = self.pyramid(batch.images, batch.image_sizes, batch.maps)
        points = self.head.grid(pyramid, batch.images)
        predictions = self.head(pyramid)
        allowed = None if self.embed_head is None else self.embed_head.allowed(points, gt)
        matched = self.head.match(points, gt, allowed)
        losses = self.head.losses(predictions, points, matched, gt)
        if self.embed_head is not None:
            embeddings = self.embed_head(pyramid, predictions, points)
            losses |= self.embed_head.losses(embeddings, predictions.boxes(points), matched, gt)
        return losses

    def detect(self, images: UInt8[Array, "b h w 3"], image_sizes: Float[Array, "b 2"]) -> Detections:
        """Return the detections of each image, best first, with mask probabilities if there is a mask branch."""
        pyramid = self.pyramid(images, image_sizes)
        points = self.head.grid(pyramid, images)
        predictions = self.head(pyramid)
        found, places = self.head.detect(predictions, points, image_sizes)
        if self.embed_head is None:
            return found
        embeddings = self.embed_head(pyramid, predictions, points)
        return dataclasses.replace(found, masks=self.embed_head.detect(embeddings, found.boxes, found.labels, places))

    def predict_masks(
        self,
        images: UInt8[Array, "b h w 3"],
        image_sizes: Float[Array, "b 2"],
        boxes: Float[Array, "b n 4"],
        labels: Int[Array, "b n"],
        valid: Bool[Array, "b n"],
    ) -> Float[Array, "b n m m"]:
        """Return mask probabilities on given boxes for given classes, see `models.detector.MaskDetector`.

        Each box takes the embedding and the margins of the point whose own box fits it best, see `FCOSHead.closest`.

        Raises:
          ValueError: there is no mask branch.
        """
        if self.embed_head is None:
            raise ValueError("a detector without a mask branch predicts no masks")
        pyramid = self.pyramid(images, image_sizes)
        points = self.head.grid(pyramid, images)
        predictions = self.head(pyramid)
        places = self.head.closest(predictions, points, image_sizes, boxes, labels)
        embeddings = self.embed_head(pyramid, predictions, points)
        return self.embed_head.detect(embeddings, boxes, labels, places)

    def embeddings(self, images: UInt8[Array, "b h w 3"], image_sizes: Float[Array, "b 2"]) -> Embeddings:
        """Return EmbedMask's embeddings of pixels and of points.

        Raises:
          ValueError: there is no mask branch.
        """
        if self.embed_head is None:
            raise ValueError("a detector without a mask branch has no embeddings")
        pyramid = self.pyramid(images, image_sizes)
        return self.embed_head(pyramid, self.head(pyramid), self.head.grid(pyramid, images))

    def pyramid(
        self,
        images: UInt8[Array, "b h w 3"],
        image_sizes: Float[Array, "b 2"],
        maps: dict[int, Array] | None = None,
    ) -> dict[int, Array]:
        """Compute P3..P7 from the backbone's maps, which are given or computed.

        Raises: as `maps`.
        """
        return self.fpn(self.maps(images, image_sizes) if maps is None else maps)

    def maps(self, images: UInt8[Array, "b h w 3"], image_sizes: Float[Array, "b 2"]) -> dict[int, Array]:
        """Normalise the pixels and return what the backbone makes of them, by level.

        Raises:
          ValueError: a side of the canvas is no multiple of the backbone's.
        """
        return compute_maps(self.pixels, self.backbone, images, image_sizes)


def build(
    num_classes: int,
    *,
    pixels: Pixels,
    backbone: nn.Module,
    max_detections: int,
    dtype: str,
    cpu: bool,
    masks: str,
    fpn: Mapping[str, Any],
    head: Mapping[str, Any],
    embed_head: Mapping[str, Any],
) -> DenseDetector:
    """Build a detector of this family, see `models.build.Part`.

    Args:
      num_classes: C, without background.
      pixels: as the backbone expects them.
      backbone: images to maps.
      max_detections: an image, over all classes.
      dtype: of the computation in the networks; parameters, losses and boxes are float32 always.
      cpu: whether the program is for one CPU device, see `models.build.build`.
      masks: "none" (FCOS) or "embeddings" (EmbedMask).
      fpn, head, embed_head: fields of the modules of that name.

    Raises:
      ValueError: `masks` is unknown.
      TypeError: a mapping has a key that its module does not know.
    """
    if masks not in MASKS:
        raise ValueError(f"dense.masks is {masks!r}; expected one of {', '.join(MASKS)}")
    how: Mapping[str, Any] = {"dtype": dtype, "cpu": cpu}
    return DenseDetector(
        pixels=pixels,
        backbone=backbone,
        fpn=FPN(**fpn, levels=(3, 4, 5), top="convs", **how),
        head=FCOSHead(num_classes, **head, max_detections=max_detections, **how),
        embed_head=EmbedMaskHead(**embed_head, **how) if masks == "embeddings" else None,
    )
