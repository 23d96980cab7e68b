"""Faster, Mask and Mask^X R-CNN: the parts wired together."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from maskx_jax.limits import Check, number, one_of
from maskx_jax.models.backbones import fpn
from maskx_jax.models.backbones.fpn import FPN
from maskx_jax.models.pixels import Pixels
from maskx_jax.models.rcnn import box_head, mask_head, rpn, weight_transfer
from maskx_jax.models.rcnn.box_head import BoxHead, BoxPredictions, ClassWeights
from maskx_jax.models.rcnn.mask_head import MaskHead
from maskx_jax.models.rcnn.rpn import RPN
from maskx_jax.models.rcnn.weight_transfer import (
    ClassAgnosticWeights,
    ClassSpecificWeights,
    MaskWeights,
    WeightTransfer,
)
from maskx_jax.ops import roi_align
from maskx_jax.ops.cpu.used_slots import map_used_slots
from maskx_jax.ops.losses import Mean
from maskx_jax.structures import Batch, Detections

MASK_PREDICTORS = ("none", "class_specific", "class_agnostic", "transfer")
_MODULES: Mapping[str, Mapping[str, Check]] = {
    "fpn": fpn.LIMITS,
    "rpn": rpn.LIMITS,
    "roi_align": {"convention": one_of(*roi_align.CONVENTIONS), "sampling_ratio": number(0, 8)},
    "box_head": box_head.LIMITS,
    "mask_head": mask_head.LIMITS,
    "weight_transfer": weight_transfer.LIMITS,
}
LIMITS: Mapping[str, Check] = {
    "mask_predictor": one_of(*MASK_PREDICTORS),
    **{f"{module}.{field}": check for module, checks in _MODULES.items() for field, check in checks.items()},
}


@dataclasses.dataclass(frozen=True)
class RoIAlign:
    """How regions are pooled, see `ops.roi_align.roi_align`.

    Attributes:
      convention: the code base whose rule it is.
      sampling_ratio: points along each side of a bin; 0 is adaptive.
    """

    convention: str = "detectron2"
    sampling_ratio: int = 2


class RCNN(nn.Module):
    """A two-stage detector with an optional mask branch.

    Attributes:
      pixels, backbone, fpn, rpn, roi_align, box_head: the substrate (Faster R-CNN with FPN).
      mask_head: the mask branch, or None for boxes only.
      mask_weights: what says the mask predictor's weights of each class: `ClassSpecificWeights` (Mask R-CNN),
        `ClassAgnosticWeights` or `WeightTransfer` (Mask^X R-CNN). None without a mask branch.
    """

    pixels: Pixels
    backbone: nn.Module
    fpn: FPN
    rpn: RPN
    roi_align: RoIAlign
    box_head: BoxHead
    mask_head: MaskHead | None = None
    mask_weights: Callable[[ClassWeights], MaskWeights] | None = None

    @property
    def produces(self) -> frozenset[str]:
        """What its detections have."""
        return frozenset({"boxes"} if self.mask_head is None else {"boxes", "masks"})

    @property
    def multiple(self) -> int:
        """What the sides of a canvas must be multiples of."""
        return self.backbone.multiple

    def losses(
        self, batch: Batch, key: Key[Array, ""] | Int[Array, "2"]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Return the total loss and its parts: rpn_class, rpn_box, box_class, box and, with a mask branch, mask."""
        means = self.loss_means(batch, jax.random.split(key, batch.images.shape[0]))
        losses = {name: mean.value() for name, mean in means.items()}
        return sum(losses.values(), jnp.float32(0)), losses

    def loss_means(self, batch: Batch, keys: Key[Array, "b"] | Int[Array, "b 2"]) -> dict[str, Mean]:
        """Return the parts of the loss before they are divided: added over the parts of a batch they are the batch's.

        Args:
          batch: images and objects.
          keys: of each image; what is drawn in an image depends on its own key alone.
        """
        gt = batch.ground_truth
        rpn_keys, roi_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)

        pyramid = self._pyramid(batch.images, batch.image_sizes)
        logits, deltas = self.rpn(pyramid)
        anchors = self.rpn.anchors(pyramid)
        losses = self.rpn.losses(logits, deltas, anchors, batch.image_sizes, gt, rpn_keys)
        proposals = self.rpn.proposals(logits, deltas, anchors, batch.image_sizes, training=True)

        rois = self.box_head.sample(proposals, gt, roi_keys)
        predictions = self._box_predictions(pyramid, rois.boxes)
        losses |= self.box_head.losses(predictions, rois, gt)

        if self.mask_head is not None:
            mask_rois, supervised = self.mask_head.select(rois, gt)
            mask_logits = self._mask_logits(
                pyramid, mask_rois.boxes, mask_rois.labels, supervised, predictions.class_weights
            )
            losses |= self.mask_head.losses(mask_logits, mask_rois, supervised, gt)
        return losses

    def detect(self, images: UInt8[Array, "b h w 3"], image_sizes: Float[Array, "b 2"]) -> Detections:
        """Return the detections of each image, best first, with mask probabilities if there is a mask branch."""
        pyramid = self._pyramid(images, image_sizes)
        logits, deltas = self.rpn(pyramid)
        proposals = self.rpn.proposals(logits, deltas, self.rpn.anchors(pyramid), image_sizes, training=False)
        predictions = self._box_predictions(pyramid, proposals.boxes)
        detections = self.box_head.detect(predictions, proposals, image_sizes)
        if self.mask_head is None:
            return detections
        # Masks are made for the detections, not for the proposals: fewer and better placed (Mask R-CNN, section 3.1).
        mask_logits = self._mask_logits(
            pyramid, detections.boxes, detections.labels, detections.valid, predictions.class_weights
        )
        return dataclasses.replace(detections, masks=jax.nn.sigmoid(mask_logits))

    def _pyramid(self, images: Array, image_sizes: Array) -> dict[int, Array]:
        """Normalise the pixels and compute P2..P6.

        Raises:
          ValueError: a side of the canvas is no multiple of the backbone's.
        """
        if images.shape[1] % self.multiple or images.shape[2] % self.multiple:
            raise ValueError(
                f"got a canvas of {images.shape[1]} x {images.shape[2]}; expected multiples of {self.multiple}"
            )
        return self.fpn(self.backbone(self.pixels(images, image_sizes).astype(self.backbone.dtype)))

    def _box_predictions(self, pyramid: dict[int, Array], boxes: Float[Array, "b r 4"]) -> BoxPredictions:
        return self.box_head(self._pool(pyramid, boxes, self.box_head.resolution))

    def _mask_logits(
        self,
        pyramid: dict[int, Array],
        boxes: Float[Array, "b r 4"],
        labels: Int[Array, "b r"],
        used: Bool[Array, "b r"],
        class_weights: ClassWeights,
    ) -> Float[Array, "b r m m"]:
        assert self.mask_head is not None and self.mask_weights is not None
        pooled = self._pool(pyramid, boxes, self.mask_head.resolution)
        w_seg = self.mask_weights(class_weights)
        if self.is_initializing():
            self.mask_head(pooled[0], labels[0], w_seg)
        # As a function of its parameters: JAX's loops do not take the modules of Flax.
        head, variables = self.mask_head.unbind()

        def of_regions(parameters: Any, pooled: Array, labels: Array) -> Any:
            variables, w_seg = parameters
            return head.apply(variables, pooled, labels, w_seg)

        return map_used_slots(of_regions, (variables, w_seg), pooled, labels, used)

    def _pool(self, pyramid: dict[int, Array], boxes: Float[Array, "b r 4"], size: int) -> Float[Array, "b r s s c"]:
        # The last level is the RPN's alone. Each image gathers from its own maps, so that a batch split over devices
        # needs no communication.
        maps = {level: features for level, features in pyramid.items() if level < max(pyramid)}
        ratio, convention = self.roi_align.sampling_ratio, self.roi_align.convention
        return jax.vmap(lambda maps, boxes: roi_align.roi_align(maps, boxes, size, ratio, convention))(maps, boxes)


def build(
    num_classes: int,
    *,
    pixels: Pixels,
    backbone: nn.Module,
    max_detections: int,
    dtype: str,
    mask_predictor: str,
    fpn: Mapping[str, Any],
    rpn: Mapping[str, Any],
    roi_align: Mapping[str, Any],
    box_head: Mapping[str, Any],
    mask_head: Mapping[str, Any],
    weight_transfer: Mapping[str, Any],
) -> RCNN:
    """Build a detector of this family, see `models.build.Part`.

    Args:
      num_classes: C, without background.
      pixels: as the backbone expects them.
      backbone: images to maps.
      max_detections: an image, over all classes.
      dtype: of the computation in the networks; parameters, losses and boxes are float32 always.
      mask_predictor: "none", "class_specific", "class_agnostic" or "transfer".
      fpn, rpn, roi_align, box_head, mask_head, weight_transfer: fields of the modules of that name.

    Raises:
      ValueError: `mask_predictor` is unknown, or the number of convolutions does not fit the mask head's body.
      TypeError: a mapping has a key that its module does not know.
    """
    if mask_predictor not in MASK_PREDICTORS:
        raise ValueError(f"rcnn.mask_predictor is {mask_predictor!r}; expected one of {', '.join(MASK_PREDICTORS)}")
    head = MaskHead(**mask_head, dtype=dtype)
    if head.body == "residual" and head.num_convs % 2 == 0:
        raise ValueError(
            f"rcnn.mask_head.num_convs is {head.num_convs}; expected an odd number: one convolution and then pairs"
        )
    weights: dict[str, Callable[[], nn.Module | None]] = {
        "none": lambda: None,
        "class_specific": lambda: ClassSpecificWeights(num_classes, head.channels),
        "class_agnostic": lambda: ClassAgnosticWeights(num_classes, head.channels),
        "transfer": lambda: WeightTransfer(num_classes, head.channels, **weight_transfer),
    }
    return RCNN(
        pixels=pixels,
        backbone=backbone,
        fpn=FPN(**fpn, dtype=dtype),
        rpn=RPN(**rpn, dtype=dtype),
        roi_align=RoIAlign(**roi_align),
        box_head=BoxHead(num_classes, **box_head, max_detections=max_detections, dtype=dtype),
        mask_head=head if mask_predictor != "none" else None,
        mask_weights=weights[mask_predictor](),
    )
