"""The keypoint head: for each region and keypoint a map of logits, whose softmax says in which cell the keypoint is."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from maskx_jax.limits import Check, number, one_of
from maskx_jax.models.layers import Deconvolution4x4, conv, msra_fill
from maskx_jax.models.rcnn.box_head import ClassWeights
from maskx_jax.models.rcnn.region_head import apply_to_used, supervised_first
from maskx_jax.ops.keypoint_targets import keypoint_cells
from maskx_jax.ops.losses import Mean, masked_mean
from maskx_jax.structures import Detections, GroundTruth, RoiTargets

NORMALIZATIONS = ("visible", "static")

LIMITS: Mapping[str, Check] = {
    "num_keypoints": number(1),
    "channels": number(1),
    "num_convs": number(1),
    "resolution": number(1),
    "num_samples": number(1),
    "normalize": one_of(*NORMALIZATIONS),
    "loss_weight": number(0),
}


class KeypointHead(nn.Module):
    """A `region_head.RegionHead` that finds keypoints (Mask R-CNN, section 5).

    Attributes:
      num_keypoints: of an object, K: as many as the data's skeleton has.
      channels: of the convolutions.
      num_convs: before the upsampling.
      resolution: of the pooled features; the maps have four times as many cells along each side.
      num_samples: regions an image that are trained on, at most.
      normalize: what the loss is divided by. "visible": the keypoints that are trained on in the batch. "static": all
        that its images could have in `num_samples` regions; Detectron's other choice, with a `loss_weight` of 4.
      loss_weight: factor of the loss.
      dtype: of the computation.
      cpu: whether only the regions that are used are computed, a few at a time, and convolutions as one CPU does best;
        see `ops.cpu.used_slots` and `layers.conv`.
    """

    num_keypoints: int = 17
    channels: int = 512
    num_convs: int = 8
    resolution: int = 14
    num_samples: int = 128
    normalize: str = "visible"
    loss_weight: float = 1.0
    dtype: Any = jnp.float32
    cpu: bool = False

    produces = "keypoints"

    def regions(self, rois: RoiTargets, ground_truth: GroundTruth) -> tuple[RoiTargets, Bool[Array, "b q"]]:
        """Choose the regions to train keypoints on: foreground with a labelled keypoint of their own object inside.

        Raises:
          ValueError: the ground truth has no keypoints.
        """
        _, valid = self._targets(rois, ground_truth)
        return supervised_first(rois, rois.foreground & valid.any(axis=-1), self.num_samples)

    def __call__(
        self,
        pooled: Float[Array, "b q s s c"],
        labels: Int[Array, "b q"],
        used: Bool[Array, "b q"],
        class_weights: ClassWeights,
    ) -> Float[Array, "b q k m m"]:
        """Return the logits of each keypoint over the cells of each region, float32; the class does not matter."""
        return apply_to_used(self, pooled, labels, used, cpu=self.cpu, method="maps")

    @nn.compact
    def maps(self, pooled: Float[Array, "r s s c"], labels: Int[Array, "r"]) -> Float[Array, "r k m m"]:
        """Return the maps of regions, all of which are computed."""
        x = pooled
        for index in range(1, self.num_convs + 1):
            name = f"conv{index}"
            layer = conv(self.channels, 3, kernel_init=msra_fill, dtype=self.dtype, cpu=self.cpu, name=name)
            x = nn.relu(layer(x))
        x = jnp.moveaxis(Deconvolution4x4(self.num_keypoints, self.dtype, name="deconvolution")(x), -1, 1)
        # Beyond the border it goes on as at the border.
        return jax.image.resize(x, (*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]), "linear")

    def losses(
        self,
        predictions: Float[Array, "b q k m m"],
        rois: RoiTargets,
        used: Bool[Array, "b q"],
        ground_truth: GroundTruth,
    ) -> dict[str, Mean]:
        """Return keypoint: softmax cross-entropy over the cells, of labelled keypoints that are inside their region.

        Raises:
          ValueError: the ground truth has no keypoints, or others in number, or `normalize` is unknown.
        """
        if self.normalize not in NORMALIZATIONS:
            raise ValueError(f"got normalize {self.normalize!r} of the keypoint head; expected one of {NORMALIZATIONS}")
        cells, valid = self._targets(rois, ground_truth)
        logits = predictions.reshape(*cells.shape, -1)
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, cells)
        total, count = masked_mean(self.loss_weight * errors, valid & used[..., None])
        if self.normalize == "static":
            count = jnp.int32(len(used) * self.num_samples * self.num_keypoints)
        return {"keypoint": Mean(total, count)}

    def detect(self, predictions: Float[Array, "b d k m m"], detections: Detections) -> Detections:
        """Return the detections with the logits of their keypoints."""
        return dataclasses.replace(detections, keypoint_maps=predictions)

    def _targets(self, rois: RoiTargets, ground_truth: GroundTruth) -> tuple[Int[Array, "b q k"], Bool[Array, "b q k"]]:
        keypoints = ground_truth.keypoints
        if keypoints is None or keypoints.labelled.shape[-1] != self.num_keypoints:
            found = "no" if keypoints is None else keypoints.labelled.shape[-1]
            raise ValueError(
                f"got ground truth with {found} keypoints an object; the keypoint head is trained on "
                f"{self.num_keypoints}"
            )
        cells_of = jax.vmap(functools.partial(keypoint_cells, size=4 * self.resolution))
        cells, valid = cells_of(keypoints.points, keypoints.labelled, rois.gt_index, rois.boxes)
        return cells, valid
