"""Files of Detectron, and of its Mask^X release."""

import dataclasses
from collections.abc import Collection

from maskx_jax.weights.layouts.layout import (
    BGR,
    GROUP_NORM,
    STRIDE_IN_1X1,
    STRIDE_IN_3X3,
    Layout,
    blocks,
    keypoint_convs,
    mask_convs,
    numbers,
    rules_of_detectors,
)

# The first normalisation of a ResNet with GroupNorm; that of others is named after the stage.
GROUP_NORM_SIGN = "conv1_gn_s"


def _modules(ours: Collection[str], names: Collection[str]) -> dict[str, str]:
    """Name Detectron's blobs, and those that the Mask^X release adds for T and the MLP branch."""
    modules = {"backbone/stem": "conv1", "backbone/stem_norm": "conv1" if GROUP_NORM_SIGN in names else "res_conv1"}
    branches = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}
    for stage, block in blocks(ours):
        for layer, branch in branches.items():
            path, theirs = f"backbone/res{stage}_block{block}/{layer}", f"res{stage}_{block}_{branch}"
            modules |= {path: theirs, f"{path}_norm": theirs}
    # The pyramid's layers are named after the last block of each stage.
    for stage, block in {stage: block for stage, block in blocks(ours)}.items():
        # The top of the pyramid has nothing above it, so its 1x1 convolution is not called lateral.
        lateral = "" if stage == 5 else "_lateral"
        modules[f"fpn/lateral{stage}"] = f"fpn_inner_res{stage}_{block}_sum{lateral}"
        modules[f"fpn/output{stage}"] = f"fpn_res{stage}_{block}_sum"
    for i in mask_convs(ours):
        modules[f"mask_head/conv{i}"] = f"_[mask]_fcn{i}"
    modules |= {f"keypoint_head/conv{i}": f"conv_fcn{i}" for i in keypoint_convs(ours)}
    # Of its RPNs the one of a single map, C4, does not say which.
    of_level = "" if "conv_rpn_w" in names else "_fpn2"
    *hidden, last = [0, *(number for (number,) in numbers(r"mask_weights/fc(\d+)", ours))]
    for i in hidden:
        modules[f"mask_weights/fc{i}"] = f"bbox2mask_mlp_l{i}"
    return modules | {
        "rpn/conv": f"conv_rpn{of_level}",
        "rpn/objectness": f"rpn_cls_logits{of_level}",
        "rpn/deltas": f"rpn_bbox_pred{of_level}",
        "box_head/fc6": "fc6",
        "box_head/fc7": "fc7",
        "box_head/classification": "cls_score",
        "box_head/boxes": "bbox_pred",
        "mask_head/deconvolution": "conv5_mask",
        "mask_head/mlp": "mask_mlp_logits_raw",
        "keypoint_head/deconvolution": "kps_score_lowres",
        "mask_weights": "mask_fcn_logits",
        f"mask_weights/fc{last}": "mask_fcn_logits_w_flat",
    }


DETECTRON = Layout(
    name="detectron",
    signature=r"conv1_w",
    modules=_modules,
    suffixes=("_w", "_b"),
    norm_suffixes=("_bn_s", "_bn_b"),
    backbone_conventions=BGR | STRIDE_IN_1X1 | {"pixels.mean": (102.9801, 115.9465, 122.7717)},
    rcnn_conventions=rules_of_detectors("detectron"),
    keypoint_grid="image",
    # Its configs with FPN say 2.
    c4_conventions={"rcnn.roi_align.sampling_ratio": 0},
    # Detectron's stem has no bias, though ImageNet files carry one. Keypoint maps are interpolated by fixed weights.
    ignored=(r".*_momentum", r"(fc1000|pred)_[wb]", r"conv1_b", r"kps_score_[wb]"),
)
# ResNeXt, trained with Caffe2; Detectron has no deviation of pixels.
RESNEXT = dataclasses.replace(
    DETECTRON,
    name="detectron_resnext",
    backbone_conventions={**DETECTRON.backbone_conventions, **STRIDE_IN_3X3},
)
GROUP_NORM_RESNET = dataclasses.replace(
    DETECTRON,
    name="detectron_group_norm",
    norm_suffixes=("_gn_s", "_gn_b"),
    backbone_conventions={**DETECTRON.backbone_conventions, **STRIDE_IN_3X3, **GROUP_NORM},
)
