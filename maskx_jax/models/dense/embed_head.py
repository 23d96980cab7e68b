"""EmbedMask: a pixel belongs to the object whose embedding its own lies near (Ying et al. 2019, 2021)."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from maskx_jax.limits import Check, number, one_of
from maskx_jax.models.dense.fcos_head import PointPredictions, Points, Tower
from maskx_jax.models.layers import check_group_norm, conv, msra_fill
from maskx_jax.ops.embeddings import logits_from_distances, squared_distances
from maskx_jax.ops.giou import paired_iou
from maskx_jax.ops.losses import Mean
from maskx_jax.ops.lovasz import lovasz_hinge
from maskx_jax.ops.mask_targets import average_mask, sample_mask
from maskx_jax.ops.per_image import per_image
from maskx_jax.ops.point_matching import PointMatch
from maskx_jax.ops.points import grid_points
from maskx_jax.structures import GroundTruth

FORMS = ("ijcai", "arxiv")
MASK_LOSSES = ("lovasz", "dice", "bce")
LOSS_REGIONS = ("image", "box")

LIMITS: Mapping[str, Check] = {
    "form": one_of(*FORMS),
    "dimensions": number(3),
    "channels": check_group_norm,
    "num_convs": number(0),
    "prior_margin": number(1e-6),
    "mask_loss": one_of(*MASK_LOSSES),
    "loss_region": one_of(*LOSS_REGIONS),
    "coverage": number(0, 1),
    "loss_weight": number(0),
    "smooth_weight": number(0),
    "resolution": number(1),
    "unit": number(1),
}

# Pixel embeddings are computed on P3 and brought to half its stride.
_LEVEL = 3
_STRIDE = 4

_normal = nn.initializers.normal(0.01)


class Embeddings(NamedTuple):
    """Embeddings, float32.

    Attributes:
      pixels: of each pixel of a map with stride 4.
      centres: of the object that each point finds.
      precisions: inverse squared margins of that object, one for each dimension or one for all.
      class_centres, class_factors: what an object's class adds to its centre, and multiplies its precisions by; None
        without transfer.
    """

    pixels: Float[Array, "b _ _ e"]
    centres: Float[Array, "b p e"]
    precisions: Float[Array, "b p _"]
    class_centres: Float[Array, "b classes e"] | None = None
    class_factors: Float[Array, "b classes _"] | None = None


class EmbedMaskHead(nn.Module):
    """Embed pixels, and the objects that points find.

    Attributes:
      form: "ijcai": two spatial dimensions and a learned margin for each dimension, the best point of an object is
        trained. "arxiv": no spatial dimensions, the margin is a function of the box, all points with a good box are
        trained, and drawn together.
      dimensions: of the embeddings; 16 and 32 in the two papers.
      channels, num_convs: of the tower of the pixels.
      prior_margin: distance at which the probability is one half at first (ijcai).
      mask_loss: "lovasz", "dice" or "bce".
      loss_region: "image", or "box": the pixels in the object's box and a tenth of its sides around it.
      coverage: a pixel is object where more than this part of it is. The authors' code takes 0.
      sample_in_mask: points outside an object's mask are not assigned to it, if it has one (the authors). Objects with
        and without masks are then detected by different rules.
      loss_weight, smooth_weight: of the two losses.
      transfer: whether what an object's class adds to its embedding and margins is predicted from the weights that
        detect the class, by a function shared by all classes and without gradient to these weights (Mask^X R-CNN's T).
      resolution: of the masks of detections, over their boxes. 80 is enough for the masks of the full image, see
        tests/models/dense/test_mask_grid.py.
      unit: pixels that are one in the spatial dimensions at first: an eighth of the short side of a usual image.
      dtype: of the computation in the tower; embeddings are float32.
      cpu: whether convolutions are computed as one CPU does best, see `layers.conv`.
    """

    form: str = "ijcai"
    dimensions: int = 16
    channels: int = 256
    num_convs: int = 4
    prior_margin: float = 2.0
    mask_loss: str = "lovasz"
    loss_region: str = "image"
    coverage: float = 0.5
    sample_in_mask: bool = False
    loss_weight: float = 0.5
    smooth_weight: float = 0.1
    transfer: bool = False
    resolution: int = 80
    unit: float = 100.0
    dtype: Any = jnp.float32
    cpu: bool = False

    @nn.compact
    def __call__(
        self, pyramid: dict[int, Float[Array, "b _ _ c"]], predictions: PointPredictions, points: Points
    ) -> Embeddings:
        """Embed pixels and points."""
        tower = Tower(self.channels, self.num_convs, self.dtype, self.cpu, name="pixel_tower")
        pixel_map = tower({_LEVEL: pyramid[_LEVEL]})[_LEVEL]
        batch, height, width, _ = pixel_map.shape
        if self.form == "ijcai":
            scale = self.param("position_scale", nn.initializers.ones, ())
            places = grid_points(height, width, (2**_LEVEL, 2**_LEVEL), "centre")
            pixels = self._embed("pixel", [pixel_map], scale * places / self.unit)
            centres = self._embed("object", [*predictions.box_maps.values()], scale * points.places / self.unit)
            precisions = self._precisions(predictions)
        else:
            pixels = self._convolve("pixel_embedding", [pixel_map], self.dimensions)
            centres = self._convolve("object_embedding", [*predictions.box_maps.values()], self.dimensions)
            # The four distances as shares of a usual image, whose short side is eight units.
            boxes = jax.lax.stop_gradient(predictions.distances) * points.strides[:, None] / (8 * self.unit)
            precisions = jnp.exp(nn.Dense(1, kernel_init=_normal, name="margin")(boxes))
        pixels = pixels.reshape(batch, height, width, -1)
        scaled = (batch, 2 * height, 2 * width, pixels.shape[-1])
        of_classes = self._transfer(predictions.class_weights, batch, precisions.shape[-1]) if self.transfer else ()
        return Embeddings(jax.image.resize(pixels, scaled, "bilinear"), centres, precisions, *of_classes)

    def _transfer(self, class_weights: Float[Array, "classes w"], batch: int, margins: int) -> tuple[Array, Array]:
        """Predict what each class adds to the centres of its objects, and multiplies their precisions by."""
        hidden = nn.Dense(self.channels, kernel_init=msra_fill, name="transfer1")(jax.lax.stop_gradient(class_weights))
        layer = nn.Dense(self.dimensions + margins, kernel_init=_normal, name="transfer2")
        outputs = layer(nn.leaky_relu(hidden, 0.1))
        outputs = jnp.broadcast_to(outputs, (batch, *outputs.shape))
        return outputs[..., : self.dimensions], jnp.exp(outputs[..., self.dimensions :])

    def _convolve(self, name: str, maps: list[Array], features: int, bias: Any = None) -> Float[Array, "b p features"]:
        bias = bias or nn.initializers.zeros
        layer = conv(features, 3, kernel_init=_normal, bias_init=bias, cpu=self.cpu, name=name)
        outputs = [layer(x) for x in maps]
        return jnp.concatenate([x.reshape(x.shape[0], -1, features) for x in outputs], axis=1).astype(jnp.float32)

    def _embed(self, name: str, maps: list[Array], places: Float[Array, "p 2"]) -> Float[Array, "b p e"]:
        spatial = self._convolve(f"{name}_position", maps, 2) + places
        return jnp.concatenate([spatial, self._convolve(f"{name}_embedding", maps, self.dimensions - 2)], axis=-1)

    def _precisions(self, predictions: PointPredictions) -> Float[Array, "b p e"]:
        bias = nn.initializers.constant(math.log(math.log(2) / self.prior_margin**2))
        maps = [x / 32 for x in predictions.box_maps.values()]
        logs = self._convolve("margin", maps, self.dimensions, bias)
        # The spatial dimensions are wider on higher levels.
        scales = [self.param(f"margin_scale{level}", nn.initializers.ones, ()) for level in predictions.box_maps]
        counts = [x.shape[1] * x.shape[2] for x in maps]
        scale = jnp.concatenate([jnp.broadcast_to(s, (n,)) for s, n in zip(scales, counts, strict=True)])
        return jnp.exp(jnp.concatenate([logs[..., :2] * scale[:, None], logs[..., 2:]], axis=-1))

    def allowed(self, points: Points, ground_truth: GroundTruth) -> Bool[Array, "b p n"] | None:
        """Return which points may be assigned to which objects; None for all.

        With `sample_in_mask` a point must lie on the object's mask, if the object has one.
        """
        if not self.sample_in_mask:
            return None

        def image(masks: Array, frames: Array, has_mask: Array) -> Bool[Array, "p n"]:
            pixels = jnp.concatenate([points.places - 0.5, points.places + 0.5], axis=-1)

            def on_mask(slot: Int[Array, ""]) -> Bool[Array, "p"]:
                # A grid of one cell: the bit in the middle of the pixel at each point.
                return sample_mask(masks, frames, jnp.full(len(pixels), slot), pixels, 1)[:, 0, 0]

            return (jax.vmap(on_mask)(jnp.arange(len(masks))) | ~has_mask[:, None]).T

        return jax.vmap(image)(ground_truth.masks, ground_truth.mask_frames, ground_truth.has_mask)

    def losses(
        self,
        embeddings: Embeddings,
        boxes: Float[Array, "b p 4"],
        matched: PointMatch,
        ground_truth: GroundTruth,
    ) -> dict[str, Mean]:
        """Return mask, and with the arXiv form smooth: means over the objects of an image, then over images.

        Only objects with a mask and a point count. Where masks are weighed, so are the objects of an image, and images
        by the mean weight of theirs.

        Args:
          embeddings: of the head.
          boxes: that the points predict, in pixels.
          matched: the object of each point.
          ground_truth: objects in `n` slots an image.
        """
        of_images = per_image(self._image_losses)(embeddings, boxes, matched, ground_truth)
        counted = of_images.pop("counted")
        number = of_images.pop("weight", counted).sum()
        weights = {"mask": self.loss_weight, "smooth": self.smooth_weight}
        return {
            name: Mean(weights[name] * jnp.where(counted, values, 0.0).sum(), number)
            for name, values in of_images.items()
        }

    def _image_losses(
        self, embeddings: Embeddings, boxes: Array, matched: PointMatch, gt: GroundTruth
    ) -> dict[str, Array]:
        slots = jnp.arange(len(gt.valid))
        assigned = matched.foreground & (matched.gt_index == slots[:, None])
        counted = assigned.any(axis=1) & gt.has_mask
        own = gt.boxes[matched.gt_index]
        overlap = jax.lax.stop_gradient(paired_iou(boxes, own))
        overlaps = jnp.where(assigned, overlap, -1.0)
        best = overlaps.argmax(axis=1)
        precisions = jnp.broadcast_to(embeddings.precisions, embeddings.centres.shape)
        if self.form == "ijcai":
            centres, chosen = embeddings.centres[best], precisions[best]
        else:
            share = assigned & (overlap > 0.5)
            share = jnp.where(share.any(axis=1, keepdims=True), share, jnp.arange(len(boxes)) == best[:, None])
            weight = share / share.sum(axis=1, keepdims=True)
            centres, chosen = weight @ embeddings.centres, weight @ precisions
        own_centres, own_precisions = _add_classes(embeddings, centres, chosen, gt.labels)
        number = jnp.maximum(counted.sum(), 1)

        def mean(values: Float[Array, "n"]) -> Float[Array, ""]:
            weighed = values if gt.mask_weight is None else gt.mask_weight * values
            return jnp.where(counted, weighed, 0.0).sum() / number

        mask = self._mask_losses(embeddings.pixels, own_centres, own_precisions, gt)
        losses = {"mask": mean(mask), "counted": counted.any()}
        if gt.mask_weight is not None:
            losses["weight"] = mean(jnp.ones(len(counted)))
        if self.form == "arxiv":
            apart = share[..., None] * (embeddings.centres - centres[:, None]) ** 2
            margins = share * (embeddings.precisions[..., 0] - chosen[:, None, 0]) ** 2
            smooth = apart.sum(axis=(1, 2)) + margins.sum(axis=1)
            losses["smooth"] = mean(smooth)
        return losses

    def _mask_losses(
        self,
        pixels: Float[Array, "h w e"],
        centres: Float[Array, "n e"],
        precisions: Float[Array, "n e"],
        gt: GroundTruth,
    ) -> Float[Array, "n"]:
        rows, columns, dimensions = pixels.shape
        n = len(centres)
        canvas = jnp.array([0.0, 0.0, columns * _STRIDE, rows * _STRIDE])
        covered = average_mask(
            gt.masks, gt.mask_frames, jnp.arange(n), jnp.tile(canvas, (n, 1)), (rows, columns)
        ).reshape(n, -1)
        # Edges of cells and of stored bits meet up to rounding.
        targets = covered > max(self.coverage, 1e-3)
        valid = jnp.ones_like(targets)
        if self.loss_region == "box":
            places = grid_points(rows, columns, (_STRIDE, _STRIDE), "centre")
            border = 0.1 * jnp.tile(gt.boxes[:, 2:] - gt.boxes[:, :2], 2) + 1
            padded = gt.boxes + border * jnp.array([-1, -1, 1, 1])
            valid = ((places >= padded[:, None, :2]) & (places <= padded[:, None, 2:])).all(axis=-1)
        distances = squared_distances(pixels.reshape(-1, dimensions), centres, precisions)
        logits = logits_from_distances(distances)
        if self.mask_loss == "lovasz":
            return jax.vmap(lovasz_hinge)(logits, targets, valid)
        if self.mask_loss == "bce":
            cross_entropy = optax.sigmoid_binary_cross_entropy(logits, targets.astype(jnp.float32))
            return jnp.where(valid, cross_entropy, 0.0).sum(axis=1) / jnp.maximum(valid.sum(axis=1), 1)
        probability = jnp.where(valid, jnp.exp(-distances), 0.0)
        common = jnp.where(targets, probability, 0.0).sum(axis=1)
        return 1 - (2 * common + 1) / ((probability**2).sum(axis=1) + (targets & valid).sum(axis=1) + 1)

    def detect(
        self,
        embeddings: Embeddings,
        boxes: Float[Array, "b d 4"],
        labels: Int[Array, "b d"],
        points: Int[Array, "b d"],
    ) -> Float[Array, "b d m m"]:
        """Return the masks of detections: probabilities on a grid over each box.

        Args:
          embeddings: of the head.
          boxes: of the detections, in pixels.
          labels: of the detections.
          points: that found them.
        """

        def image(embeddings: Embeddings, boxes: Array, labels: Array, points: Array) -> Float[Array, "d m m"]:
            rows, columns, dimensions = embeddings.pixels.shape
            centres = embeddings.centres[points]
            precisions = jnp.broadcast_to(embeddings.precisions[points], centres.shape)
            centres, precisions = _add_classes(embeddings, centres, precisions, labels)
            distances = squared_distances(embeddings.pixels.reshape(-1, dimensions), centres, precisions)
            fractions = (jnp.arange(self.resolution) + 0.5) / self.resolution

            def weights(axis: int, cells: int) -> Float[Array, "d m cells"]:
                start, end = boxes[:, axis, None], boxes[:, axis + 2, None]
                position = jnp.clip((start + fractions * (end - start)) / _STRIDE - 0.5, 0, cells - 1)
                return jnp.maximum(1 - jnp.abs(position[..., None] - jnp.arange(cells)), 0.0)

            maps = distances.reshape(-1, rows, columns)
            return jnp.exp(-jnp.einsum("dyi,dij,dxj->dyx", weights(1, rows), maps, weights(0, columns)))

        return per_image(image)(embeddings, boxes, labels, points)


def _add_classes(
    embeddings: Embeddings, centres: Float[Array, "n e"], precisions: Float[Array, "n e"], labels: Int[Array, "n"]
) -> tuple[Float[Array, "n e"], Float[Array, "n e"]]:
    """Return centres and precisions of objects of an image with what their classes add to them."""
    if embeddings.class_centres is None or embeddings.class_factors is None:
        return centres, precisions
    classes = jnp.maximum(labels - 1, 0)
    return centres + embeddings.class_centres[classes], precisions * embeddings.class_factors[classes]
