"""The mask branch: the network on each region, and what says the weights of its predictor."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from flax import struct
from jaxtyping import Array, Bool, Float, Int

from maskx_jax.models.layers import check_group_norm, msra_fill
from maskx_jax.models.rcnn.box_head import ClassWeights
from maskx_jax.models.rcnn.mask_head import MaskHead
from maskx_jax.models.rcnn.mlp_mask_head import MLPMaskHead, no_weights
from maskx_jax.models.rcnn.multinomial import MultinomialMaskHead
from maskx_jax.models.rcnn.region_head import apply_to_used
from maskx_jax.models.rcnn.weight_transfer import ClassAgnosticWeights, ClassSpecificWeights, WeightTransfer
from maskx_jax.ops.losses import Mean
from maskx_jax.structures import Detections, GroundTruth, RoiTargets

# What says the weights of each class.
PREDICTORS: Mapping[str, Any] = {
    "none": None,
    "class_specific": ClassSpecificWeights,
    "class_agnostic": ClassAgnosticWeights,
    "transfer": WeightTransfer,
    "multinomial": ClassSpecificWeights,
}


@struct.dataclass
class MaskBranch:
    """A `region_head.RegionHead` that makes masks.

    Attributes:
      head: the network.
      weights: what says the mask predictor's weights, and which of their rows each region takes:
        `ClassSpecificWeights` (Mask R-CNN), `ClassAgnosticWeights` or `WeightTransfer` (Mask^X R-CNN); what a
        `MaskHead` takes.
      cpu: whether only the regions that are used are computed, a few at a time; see `ops.cpu.used_slots`.
    """

    head: MaskHead
    weights: Callable[[ClassWeights, Int[Array, "b q"]], tuple[Any, Int[Array, "b q"]]]
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
    ) -> Float[Array, "b q *channels m m"]:
        """Return the mask logits of each region for its own label; those of regions that are not used mean nothing."""
        weights, rows = self.weights(class_weights, labels)
        return apply_to_used(self.head, pooled, rows, used, weights, cpu=self.cpu)

    def losses(
        self,
        predictions: Float[Array, "b q *channels m m"],
        rois: RoiTargets,
        used: Bool[Array, "b q"],
        ground_truth: GroundTruth,
    ) -> dict[str, Mean]:
        """Return mask, see `MaskHead.losses`."""
        return self.head.losses(predictions, rois, used, ground_truth)

    def detect(self, predictions: Float[Array, "b d *channels m m"], detections: Detections) -> Detections:
        """Return the detections with mask probabilities."""
        return dataclasses.replace(detections, masks=self.head.probabilities(predictions))


def build(
    predictor: str,
    num_classes: int,
    mask_head: Mapping[str, Any],
    weight_transfer: Mapping[str, Any],
    dtype: str,
    cpu: bool,
) -> MaskBranch | None:
    """Build the mask branch, or nothing where the predictor is "none"; the arguments are those of `detector.build`.

    Raises:
      ValueError: the predictor is unknown, or does not fit the mask head's body or its MLP; or the number of
        convolutions, the stages or the resolution do not fit the body.
      TypeError: a mapping has a key that its module does not know.
    """
    fields = {**mask_head, "dtype": dtype, "cpu": cpu, "name": "mask_head"}
    head = MaskHead(**fields)
    _check_body(head)
    if predictor not in PREDICTORS:
        raise ValueError(f"rcnn.mask_predictor is {predictor!r}; expected one of {', '.join(PREDICTORS)}")
    if predictor == "none":
        return None
    if head.body == "mlp":
        if predictor not in (expected := ("class_specific", "class_agnostic")) or head.mlp != "none":
            raise ValueError(
                f"rcnn.mask_predictor is {predictor!r} and mask_head.mlp {head.mlp!r}; expected "
                f"{' or '.join(expected)}, and none, for mask_head.body = 'mlp'"
            )
        num_masks = num_classes + 1 if predictor == "class_specific" else 1
        return MaskBranch(MLPMaskHead(**fields, num_masks=num_masks), no_weights, cpu)
    if predictor == "multinomial":
        if head.mlp != "none":
            raise ValueError(f"rcnn.mask_head.mlp is {head.mlp!r}; expected 'none' for a multinomial mask_predictor")
        head = MultinomialMaskHead(**fields)
    weights = PREDICTORS[predictor]
    if predictor == "transfer":
        weights = functools.partial(weights, **weight_transfer, cpu=cpu)
    if predictor == "class_agnostic" and head.body == "hourglass":
        # As published: behind GroupNorm it learns faster than from the small scale, and as safely.
        weights = functools.partial(weights, kernel_init=msra_fill)
    return MaskBranch(head, weights(num_classes, head.channels, name="mask_weights"), cpu)


def _check_body(head: MaskHead) -> None:
    if head.body == "residual" and head.num_convs % 2 == 0:
        raise ValueError(
            f"rcnn.mask_head.num_convs is {head.num_convs}; expected an odd number: one convolution and then pairs"
        )
    if head.body != "hourglass":
        return
    stages = tuple(head.stage_channels)
    if len(head.stage_blocks) != len(stages):
        raise ValueError(
            f"rcnn.mask_head.stage_blocks is {tuple(head.stage_blocks)}; expected {len(stages)} values, as many as "
            "stage_channels has"
        )
    for name, value in (("channels", head.channels), *(("stage_channels", channels) for channels in stages)):
        if expected := check_group_norm(value):
            raise ValueError(f"rcnn.mask_head.{name} has {value}; expected for an hourglass {expected}")
    if head.resolution % (divisor := 2 ** (len(stages) - 1)):
        raise ValueError(
            f"rcnn.mask_head.resolution is {head.resolution}; expected a multiple of {divisor} for an hourglass of "
            f"{len(stages)} stages, each of half the side of the one before"
        )
