"""Faster, Mask and Mask^X R-CNN: the parts wired together."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from maskx_jax.limits import Check, one_of, within
from maskx_jax.models.backbones import fpn
from maskx_jax.models.backbones.fpn import FPN, compute_maps
from maskx_jax.models.layers import check_group_norm
from maskx_jax.models.pixels import Pixels
from maskx_jax.models.rcnn import (
    box_head,
    box_supervision,
    keypoint_head,
    mask_branch,
    mask_head,
    pooling,
    rpn,
    weight_transfer,
)
from maskx_jax.models.rcnn.box_head import BoxHead, BoxPredictions, ClassWeights
from maskx_jax.models.rcnn.box_supervision import BoxSupervision
from maskx_jax.models.rcnn.keypoint_head import KeypointHead
from maskx_jax.models.rcnn.mask_branch import MaskBranch
from maskx_jax.models.rcnn.pooling import RoIAlign
from maskx_jax.models.rcnn.region_head import RegionHead
from maskx_jax.models.rcnn.rpn import RPN
from maskx_jax.ops.class_activation import add_activations
from maskx_jax.ops.losses import Mean, total_loss
from maskx_jax.structures import Batch, Detections

KEYPOINT_PREDICTORS = ("none", "heatmaps")
_MODULES: Mapping[str, Mapping[str, Check]] = {
    "fpn": fpn.LIMITS,
    "rpn": rpn.LIMITS,
    "roi_align": pooling.LIMITS,
    "box_head": box_head.LIMITS,
    "mask_head": mask_head.LIMITS,
    "weight_transfer": weight_transfer.LIMITS,
    "box_supervision": box_supervision.LIMITS,
    "keypoint_head": keypoint_head.LIMITS,
}
LIMITS: Mapping[str, Check] = {
    "mask_predictor": one_of(*mask_branch.PREDICTORS),
    "class_prior": one_of(False, True),
    "keypoint_predictor": one_of(*KEYPOINT_PREDICTORS),
    **within(_MODULES),
}


class RCNN(nn.Module):
    """A two-stage detector.

    Attributes:
      pixels, backbone, fpn, rpn, roi_align, box_head: Faster R-CNN with FPN. Without one (None) it has the form C4: the
        last stage of the backbone works on regions, and all heads see what it makes of them.
      heads: what works on regions after the box head: the mask branch, the keypoint head, both, or nothing for
        boxes only.
      box_supervision: how the mask branch learns from boxes of objects without masks, if it does.
      class_prior: whether the mask branch sees where in a region its class is (OPMask, Biertimpel et al., ICCV 2021):
        the class activations of the box head are added to its features.
    """

    pixels: Pixels
    backbone: nn.Module
    fpn: FPN | None
    rpn: RPN
    roi_align: RoIAlign
    box_head: BoxHead
    heads: tuple[RegionHead, ...] = ()
    box_supervision: BoxSupervision = BoxSupervision()
    class_prior: bool = False

    # The modules of `heads` are named by their own names: parameter paths are "mask_head/...", not "heads_0_...".
    preserve_adopted_names = True

    @property
    def produces(self) -> frozenset[str]:
        """What its detections have."""
        return frozenset({"boxes", *(head.produces for head in self.heads)})

    @property
    def multiple(self) -> int:
        """What the sides of a canvas must be multiples of."""
        return self.backbone.multiple

    @property
    def mask_branch(self) -> MaskBranch | None:
        """The head that makes masks, if there is one."""
        return next((head for head in self.heads if isinstance(head, MaskBranch)), None)

    @property
    def num_keypoints(self) -> int | None:
        """Keypoints of an object; None where there is no keypoint head."""
        return next((head.num_keypoints for head in self.heads if isinstance(head, KeypointHead)), None)

    @property
    def learners(self) -> Mapping[str, frozenset[str]]:
        """Which modules learn from a part of the loss, by its name; of the heads' parts it is not said."""
        features = {"backbone", "fpn"}
        learners = {"rpn_class": "rpn", "rpn_box": "rpn", "box_class": "box_head", "box": "box_head"}
        return {name: frozenset({*features, module}) for name, module in learners.items()}

    @property
    def warmups(self) -> Mapping[str, int]:
        """In how many steps the weight of a part of the loss rises from 0 to 1, by its name."""
        return self.box_supervision.warmups

    def losses(
        self, batch: Batch, key: Key[Array, ""] | Int[Array, "2"]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Return the total loss and its parts: rpn_class, rpn_box, box_class, box, and those of the heads.

        With box supervision also mask_projection, mask_pairwise and mask_background.
        """
        return total_loss(self.loss_means(batch, jax.random.split(key, batch.images.shape[0])))

    def loss_means(self, batch: Batch, keys: Key[Array, "b"] | Int[Array, "b 2"]) -> dict[str, Mean]:
        """Return the parts of the loss before they are divided: added over the parts of a batch they are the batch's.

        Args:
          batch: images and objects.
          keys: of each image; what is drawn in an image depends on its own key only.
        """
        gt = batch.ground_truth
        rpn_keys, roi_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)

        pyramid = batch.pyramid
        if pyramid is None:
            pyramid = self.pyramid(batch.images, batch.image_sizes, batch.maps)
        logits, deltas = self.rpn(pyramid)
        anchors = self.rpn.anchors(pyramid)
        losses = self.rpn.losses(logits, deltas, anchors, batch.image_sizes, gt, rpn_keys)
        proposals = self.rpn.proposals(logits, deltas, anchors, batch.image_sizes, training=True)

        rois = self.box_head.choose_regions(proposals, gt, roi_keys)
        features = self.region_features(pyramid, rois.boxes, rois.valid, self.box_head.resolution)
        predictions = self.box_head(features)
        losses |= self.box_head.losses(predictions, rois, gt)

        if self.fpn is None:
            rois = dataclasses.replace(rois, features=features)
        if self.class_prior:
            rois = dataclasses.replace(rois, activations=predictions.activations(rois.labels))
        for head in self.heads:
            own, used = head.regions(rois, gt)
            predicted = self.region_predictions(
                head, pyramid, own.boxes, own.labels, used, predictions.class_weights, own.features, own.activations
            )
            losses |= head.losses(predicted, own, used, gt)
        if self.box_supervision.enabled and (branch := self.mask_branch) is not None:
            # What else is drawn stays as it is without.
            keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(roi_keys)
            rois = self.box_supervision.regions(batch, keys)
            logits = self.region_predictions(
                branch, pyramid, rois.boxes, rois.labels, rois.valid, predictions.class_weights
            )
            losses |= self.box_supervision.losses(logits, rois, batch)
        return losses

    def detect(self, images: UInt8[Array, "b h w 3"], image_sizes: Float[Array, "b 2"]) -> Detections:
        """Return the detections of each image, best first, with what the heads add."""
        pyramid = self.pyramid(images, image_sizes)
        logits, deltas = self.rpn(pyramid)
        proposals = self.rpn.proposals(logits, deltas, self.rpn.anchors(pyramid), image_sizes, training=False)
        predictions = self.box_predictions(pyramid, proposals.boxes, proposals.valid)
        found = self.box_head.detect(predictions, proposals, image_sizes)
        # For the detections, not for the proposals: fewer and better placed (Mask R-CNN, section 3.1).
        for head in self.heads:
            predicted = self.region_predictions(
                head, pyramid, found.boxes, found.labels, found.valid, predictions.class_weights
            )
            found = head.detect(predicted, found)
        return found

    def predict_masks(
        self,
        images: UInt8[Array, "b h w 3"],
        image_sizes: Float[Array, "b 2"],
        boxes: Float[Array, "b n 4"],
        labels: Int[Array, "b n"],
        valid: Bool[Array, "b n"],
    ) -> Float[Array, "b n m m"]:
        """Return mask probabilities on given boxes for given classes, see `models.detector.MaskDetector`.

        Raises:
          ValueError: there is no mask branch.
        """
        branch = self.mask_branch
        if branch is None:
            raise ValueError("a detector without a mask branch predicts no masks")
        pyramid = self.pyramid(images, image_sizes)
        # Its rows of weights are parameters: jitted, nothing that the box head says of regions is computed.
        class_weights = self.box_predictions(pyramid, boxes[:, :1], valid[:, :1]).class_weights
        return branch.head.probabilities(self.region_predictions(branch, pyramid, boxes, labels, valid, class_weights))

    def pyramid(
        self,
        images: UInt8[Array, "b h w 3"],
        image_sizes: Float[Array, "b 2"],
        maps: dict[int, Array] | None = None,
    ) -> dict[int, Array]:
        """Compute P2..P6, or C4, from the backbone's maps, which are given or computed.

        Raises: as `maps`.
        """
        maps = self.maps(images, image_sizes) if maps is None else maps
        return maps if self.fpn is None else self.fpn(maps)

    def maps(self, images: UInt8[Array, "b h w 3"], image_sizes: Float[Array, "b 2"]) -> dict[int, Array]:
        """Normalise the pixels and return what the backbone makes of them, by level.

        Raises:
          ValueError: a side of the canvas is no multiple of the backbone's.
        """
        return compute_maps(self.pixels, self.backbone, images, image_sizes)

    def box_predictions(
        self, pyramid: dict[int, Array], boxes: Float[Array, "b r 4"], used: Bool[Array, "b r"]
    ) -> BoxPredictions:
        """Return the box head's predictions for regions; those of regions that are not used mean nothing."""
        return self.box_head(self.region_features(pyramid, boxes, used, self.box_head.resolution))

    def region_predictions(
        self,
        head: RegionHead,
        pyramid: dict[int, Array],
        boxes: Float[Array, "b r 4"],
        labels: Int[Array, "b r"],
        used: Bool[Array, "b r"],
        class_weights: ClassWeights,
        features: Float[Array, "b r s s c"] | None = None,
        activations: Float[Array, "b r t t"] | None = None,
    ) -> Any:
        """Return what one of the heads predicts for regions, such as the mask branch's logits `b r m m`.

        Features, and activations of the labels, that are computed already are given.
        """
        if features is None:
            features = self.region_features(pyramid, boxes, used, head.resolution)
        if self.class_prior and head.produces == "masks":
            if activations is None:
                # On C4 what all heads see; elsewhere the boxes, which may be no region of the box head's, are pooled.
                is_c4 = self.fpn is None
                predictions = self.box_head(features) if is_c4 else self.box_predictions(pyramid, boxes, used)
                activations = predictions.activations(labels)
            features = jax.vmap(add_activations)(features, activations)
        return head(features, labels, used, class_weights)

    def region_features(
        self, pyramid: dict[int, Array], boxes: Float[Array, "b r 4"], used: Bool[Array, "b r"], size: int
    ) -> Float[Array, "b r s s c"]:
        """Return what a head sees of regions: what is pooled of them, on C4 behind the last stage of the backbone."""
        pooled = self.pool(pyramid, boxes, size)
        return pooled if self.fpn is not None else self.backbone.region_features(pooled, used)

    def pool(self, pyramid: dict[int, Array], boxes: Float[Array, "b r 4"], size: int) -> Float[Array, "b r s s c"]:
        """Return the features of regions, each pooled from its level into `size` x `size` bins."""
        # What FPN adds above the backbone's levels is for the RPN only.
        maps = {level: pyramid[level] for level in self.backbone.levels}
        return self.roi_align(maps, boxes, size)


def build(
    num_classes: int,
    *,
    pixels: Pixels,
    backbone: nn.Module,
    max_detections: int,
    dtype: str,
    cpu: bool,
    mask_predictor: str,
    fpn: Mapping[str, Any],
    rpn: Mapping[str, Any],
    roi_align: Mapping[str, Any],
    box_head: Mapping[str, Any],
    mask_head: Mapping[str, Any],
    weight_transfer: Mapping[str, Any],
    keypoint_predictor: str = "none",
    keypoint_head: Mapping[str, Any] = types.MappingProxyType({}),
    box_supervision: Mapping[str, Any] = types.MappingProxyType({}),
    class_prior: bool = False,
) -> RCNN:
    """Build a detector of this family, see `models.build.Part`.

    Args:
      num_classes: C, without background.
      pixels: as the backbone expects them.
      backbone: images to maps.
      max_detections: an image, over all classes.
      dtype: of the computation in the networks; parameters, losses and boxes are float32 always.
      cpu: whether the program is for one CPU device, see `models.build.build`.
      mask_predictor: one of `mask_branch.PREDICTORS`.
      fpn, rpn, roi_align, box_head, mask_head, weight_transfer, keypoint_head: fields of the modules of that name.
      keypoint_predictor: "none" or "heatmaps"; runs from before there were keypoints do not say.
      box_supervision: fields of `BoxSupervision`; runs from before there was any do not say.
      class_prior: see `RCNN`; runs from before there was any do not say.

    Raises:
      ValueError: `keypoint_predictor` is unknown, the number of anchor sizes does not fit the levels, GroupNorm cannot
        divide the box head's channels, one head's resolution is not another's on C4, the mask predictor cannot learn
        from boxes, there are no masks or no class activations for a class prior, or as `mask_branch.build`.
      TypeError: a mapping has a key that its module does not know.
    """
    masks = mask_branch.build(mask_predictor, num_classes, mask_head, weight_transfer, dtype, cpu)
    heads: list[RegionHead] = [] if masks is None else [masks]
    is_c4 = hasattr(backbone, "region_features")
    keypoints = KeypointHead(**keypoint_head, dtype=dtype, cpu=cpu, name="keypoint_head")
    if _finds_keypoints(keypoint_predictor, is_c4):
        heads.append(keypoints)
    boxes = BoxHead(num_classes, **box_head, max_detections=max_detections, dtype=dtype, cpu=cpu)
    _check_convs(boxes)
    if is_c4 and any(head.resolution != boxes.resolution for head in heads):
        raise ValueError(
            f"rcnn.box_head.resolution is {boxes.resolution}; expected {heads[0].resolution}, as of the other heads: "
            "all see what the backbone makes of a region"
        )
    supervision = BoxSupervision(**box_supervision)
    if supervision.enabled and mask_predictor in (refused := ("none", "multinomial")):
        raise ValueError(
            f"rcnn.mask_predictor is {mask_predictor!r}; expected none of {', '.join(refused)} for "
            "box_supervision.enabled: it needs a logit for each pixel"
        )
    if class_prior:
        _check_prior(mask_predictor, boxes)
    return RCNN(
        pixels=pixels,
        backbone=backbone,
        fpn=None if is_c4 else FPN(**fpn, levels=backbone.levels, dtype=dtype, cpu=cpu),
        rpn=_rpn(RPN(**rpn, dtype=dtype, cpu=cpu), len(backbone.levels) + (not is_c4)),
        roi_align=RoIAlign(**roi_align),
        box_head=boxes,
        heads=tuple(heads),
        box_supervision=supervision,
        class_prior=class_prior,
    )


def _finds_keypoints(predictor: str, is_c4: bool) -> bool:
    if predictor not in KEYPOINT_PREDICTORS:
        raise ValueError(f"rcnn.keypoint_predictor is {predictor!r}; expected one of {', '.join(KEYPOINT_PREDICTORS)}")
    if predictor != "none" and is_c4:
        raise ValueError(
            f"rcnn.keypoint_predictor is {predictor!r}; expected 'none' on C4, whose regions have half the resolution"
        )
    return predictor != "none"


def _check_convs(head: BoxHead) -> None:
    for channels in head.conv_channels if head.body == "conv" else ():
        if expected := check_group_norm(channels):
            raise ValueError(f"rcnn.box_head.conv_channels has {channels}; expected {expected}")


def _check_prior(mask_predictor: str, head: BoxHead) -> None:
    if mask_predictor == "none":
        raise ValueError("rcnn.class_prior is True; expected False for mask_predictor = 'none': it is a prior of masks")
    if head.body == "mlp":
        raise ValueError(
            "rcnn.box_head.body is 'mlp'; expected for class_prior 'conv', or 'mean' on C4: an MLP does not say where "
            "it sees a class"
        )


def _rpn(rpn: RPN, num_levels: int) -> RPN:
    """Divide the RPN's anchor sizes among the levels."""
    sizes_per_level, left = divmod(len(rpn.anchor_sizes), num_levels)
    if left or not sizes_per_level:
        raise ValueError(
            f"rcnn.rpn.anchor_sizes is {rpn.anchor_sizes!r}; expected {num_levels} values, or a multiple: as many "
            "for each level"
        )
    return rpn.clone(sizes_per_level=sizes_per_level)
