"""What the detector asks of a head that works on regions after the box head: masks, and what is to come."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int

from maskx_jax.models.rcnn.box_head import ClassWeights
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
