"""The mask branch: the network on each region, and what says the weights of its predictor."""

import dataclasses
from collections.abc import Callable

import jax
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from maskx_jax.models.rcnn.box_head import ClassWeights
from maskx_jax.models.rcnn.mask_head import MaskHead
from maskx_jax.models.rcnn.region_head import apply_to_used
from maskx_jax.models.rcnn.weight_transfer import MaskWeights
from maskx_jax.ops.losses import Mean
from maskx_jax.structures import Detections, GroundTruth, RoiTargets


@struct.dataclass
class MaskBranch:
    """A `region_head.RegionHead` that makes masks.

    Attributes:
      head: the network.
      weights: what says the mask predictor's weights of each class: `ClassSpecificWeights` (Mask R-CNN),
        `ClassAgnosticWeights` or `WeightTransfer` (Mask^X R-CNN).
      cpu: whether only the regions that are used are computed, a few at a time; see `ops.cpu.used_slots`.
    """

    head: MaskHead
    weights: Callable[[ClassWeights], MaskWeights]
    cpu: bool = struct.field(pytree_node=False, default=False)

    @property
    def produces(self) -> str:
        """What it adds to the detections."""
        return "masks"

    @property
    def resolution(self) -> int:
        """Bins along each side of the pooled features."""
        return self.head.resolution

    def regions(self, rois: RoiTargets, ground_truth: GroundTruth) -> tuple[RoiTargets, Bool[Array, "b q"]]:
        """Choose the regions to train masks on, and say which of them are supervised, see `MaskHead.regions`."""
        return self.head.regions(rois, ground_truth)

    def __call__(
        self,
        pooled: Float[Array, "b q s s c"],
        labels: Int[Array, "b q"],
        used: Bool[Array, "b q"],
        class_weights: ClassWeights,
    ) -> Float[Array, "b q m m"]:
        """Return the mask logits of each region for its own label; those of regions that are not used mean nothing."""
        return apply_to_used(self.head, pooled, labels, used, self.weights(class_weights), cpu=self.cpu)

    def losses(
        self,
        predictions: Float[Array, "b q m m"],
        rois: RoiTargets,
        used: Bool[Array, "b q"],
        ground_truth: GroundTruth,
    ) -> dict[str, Mean]:
        """Return mask, see `MaskHead.losses`."""
        return self.head.losses(predictions, rois, used, ground_truth)

    def detect(self, predictions: Float[Array, "b d m m"], detections: Detections) -> Detections:
        """Return the detections with mask probabilities."""
        return dataclasses.replace(detections, masks=jax.nn.sigmoid(predictions))
