"""What the detector asks of a head that works on regions after the box head, and what such heads share."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from maskx_jax.models.rcnn.box_head import ClassWeights
from maskx_jax.ops.cpu.used_slots import map_used_slots
from maskx_jax.ops.losses import Mean
from maskx_jax.structures import Detections, GroundTruth, RoiTargets


@runtime_checkable
class RegionHead(Protocol):
    """An entry of `detector.RCNN.heads`: a Flax module, or a `flax.struct.dataclass` of modules with names."""

    @property
    def produces(self) -> str:
        """What it adds to the detections: "masks" or "keypoints"."""

    @property
    def resolution(self) -> int:
        """Bins along each side of the pooled features."""

    def regions(self, rois: RoiTargets, ground_truth: GroundTruth) -> tuple[RoiTargets, Bool[Array, "b q"]]:
        """Choose the regions to train on, and say which of them are used: these come first."""

    def __call__(
        self,
        pooled: Float[Array, "b q s s c"],
        labels: Int[Array, "b q"],
        used: Bool[Array, "b q"],
        class_weights: ClassWeights,
    ) -> Any:
        """Predict for each region; what is returned for regions that are not used has no meaning."""

    def losses(
        self, predictions: Any, rois: RoiTargets, used: Bool[Array, "b q"], ground_truth: GroundTruth
    ) -> dict[str, Mean]:
        """Return the parts of the loss by name."""

    def detect(self, predictions: Any, detections: Detections) -> Detections:
        """Return the detections with what is predicted for their boxes."""


def supervised_first(
    rois: RoiTargets, supervised: Bool[Array, "b r"], count: int
) -> tuple[RoiTargets, Bool[Array, "b q"]]:
    """Return at most `count` regions of each image, in their order but those that are supervised first, and which are.

    Args:
      rois: regions of images.
      supervised: whether a region is to be trained on.
      count: of regions of an image.
    """
    chosen = jnp.argsort(~supervised, axis=1, stable=True)[:, : min(count, supervised.shape[1])]
    take = jax.vmap(lambda values, index: values[index])
    return jax.tree.map(lambda values: take(values, chosen), rois), take(supervised, chosen)


def apply_to_used(
    network: nn.Module,
    pooled: Float[Array, "b q s s c"],
    labels: Int[Array, "b q"],
    used: Bool[Array, "b q"],
    *arguments: Any,
    cpu: bool,
    method: str = "__call__",
) -> Float[Array, "b q ..."]:
    """Apply a network to the regions of all images at once; on one CPU, a few at a time to those that are used.

    Args:
      network: of `pooled` and `labels` with a single leading dimension, and the other arguments.
      pooled: features of regions.
      labels: of the regions.
      used: whether anything is to be made of a region.
      *arguments: trees of floating point arrays.
      cpu: see `ops.cpu.used_slots`.
      method: of the network.
    """
    if cpu and not network.is_initializing():
        # As a function of its parameters: JAX's loops do not take the modules of Flax.
        unbound, variables = network.unbind()

        def function(parameters: Any, pooled: Array, labels: Array) -> Any:
            return unbound.apply(parameters[0], pooled, labels, *parameters[1:], method=method)

        return map_used_slots(function, (variables, *arguments), pooled, labels, used)
    result = getattr(network, method)(pooled.reshape(-1, *pooled.shape[2:]), labels.reshape(-1), *arguments)
    return result.reshape(*labels.shape, *result.shape[1:])
