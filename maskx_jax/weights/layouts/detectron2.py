"""Files of detectron2, and of AdelaiDet, which stands on it."""

import dataclasses
from collections.abc import Collection

from maskx_jax.weights.layouts.layout import (
    BGR,
    RGB,
    STRIDE_IN_1X1,
    STRIDE_IN_3X3,
    TORCH,
    Layout,
    blocks,
    keypoint_convs,
    level_scales,
    mask_convs,
    pyramid_levels,
    rules_of_detectors,
    rules_of_points,
    towers,
)


def _modules(ours: Collection[str], names: Collection[str]) -> dict[str, str]:
    # A classifier's file has only the backbone, without its place in the detector; on C4 there is no pyramid above it.
    root = next((root for root in ("", "backbone.") if f"{root}stem.conv1.weight" in names), "backbone.bottom_up.")
    res5_root = "roi_heads." if root == "backbone." else root
    modules = {"backbone/stem": f"{root}stem.conv1", "backbone/stem_norm": f"{root}stem.conv1.norm"}
    for stage, block in blocks(ours):
        for layer in ("conv1", "conv2", "conv3", "shortcut"):
            own_root = res5_root if stage == 5 else root
            path, theirs = f"backbone/res{stage}_block{block}/{layer}", f"{own_root}res{stage}.{block}.{layer}"
            modules |= {path: theirs, f"{path}_norm": f"{theirs}.norm"}
    below, above = pyramid_levels(ours)
    for level in below:
        modules[f"fpn/lateral{level}"] = f"backbone.fpn_lateral{level}"
        modules[f"fpn/output{level}"] = f"backbone.fpn_output{level}"
    modules |= {f"fpn/output{level}": f"backbone.top_block.p{level}" for level in above}
    head = "proposal_generator.fcos_head"
    modules |= towers(ours, {"head/class_tower": f"{head}.cls_tower", "head/box_tower": f"{head}.bbox_tower"})
    modules |= level_scales(ours, {"head/scale": f"{head}.scales"})
    for i in mask_convs(ours):
        modules[f"mask_head/conv{i}"] = f"roi_heads.mask_head.mask_fcn{i}"
    modules |= {f"keypoint_head/conv{i}": f"roi_heads.keypoint_head.conv_fcn{i}" for i in keypoint_convs(ours)}
    return modules | {
        "rpn/conv": "proposal_generator.rpn_head.conv",
        "rpn/objectness": "proposal_generator.rpn_head.objectness_logits",
        "rpn/deltas": "proposal_generator.rpn_head.anchor_deltas",
        "box_head/fc6": "roi_heads.box_head.fc1",
        "box_head/fc7": "roi_heads.box_head.fc2",
        "box_head/classification": "roi_heads.box_predictor.cls_score",
        "box_head/boxes": "roi_heads.box_predictor.bbox_pred",
        "mask_head/deconvolution": "roi_heads.mask_head.deconv",
        "mask_weights": "roi_heads.mask_head.predictor",
        "keypoint_head/deconvolution": "roi_heads.keypoint_head.score_lowres",
        "head/classification": f"{head}.cls_logits",
        "head/boxes": f"{head}.bbox_pred",
        "head/centerness": f"{head}.ctrness",
    }


DETECTRON2 = Layout(
    name="detectron2",
    signature=r"(backbone\.(bottom_up\.)?)?stem\.conv1\.weight",
    modules=_modules,
    background="last",
    paste_grid="continuous",
    keypoint_score="probability",
    backbone_conventions=BGR | STRIDE_IN_1X1 | {"pixels.mean": (103.53, 116.28, 123.675)},
    rcnn_conventions=rules_of_detectors("detectron2"),
    dense_conventions=rules_of_points("adelaidet"),
    ignored=(
        r".*\.num_batches_tracked",
        r"proposal_generator\.anchor_generator\..*",
        r"pixel_(mean|std)",
        r"(stem\.fc|linear)\.(weight|bias)",
    ),
    **TORCH,
)
# torchvision's ImageNet weights under detectron2's names, and detectors trained from them.
TORCHVISION = dataclasses.replace(DETECTRON2, name="detectron2_torchvision", backbone_conventions=RGB | STRIDE_IN_3X3)
# ResNeXt, trained with Caffe2: the order of its channels is BGR, and their deviation with them.
RESNEXT = dataclasses.replace(
    DETECTRON2,
    name="detectron2_resnext",
    backbone_conventions={
        **DETECTRON2.backbone_conventions,
        **STRIDE_IN_3X3,
        "pixels.std": (57.375, 57.12, 58.395),
    },
)
