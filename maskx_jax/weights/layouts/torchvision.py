"""Files of torchvision, and of timm's ResNets and ResNeXts."""

import dataclasses
from collections.abc import Collection

from maskx_jax.weights.layouts.layout import (
    GROUP_NORM,
    RGB,
    STRIDE_IN_3X3,
    TORCH,
    Layout,
    keypoint_convs,
    mask_convs,
    pyramid_levels,
    rules_of_detectors,
    rules_of_points,
    torch_resnet,
    towers,
)


def _torchvision_detector(ours: Collection[str], names: Collection[str]) -> dict[str, str]:
    # On C4, which torchvision has no model of, its parts put together (benchmarks/torchvision_c4.py).
    is_c4 = "roi_heads.box_head.layer4.0.conv1.weight" in names
    modules = torch_resnet(ours, "backbone.body.", "roi_heads.box_head." if is_c4 else None)
    # Files from before torchvision 0.14, among them the published detectors, have the layers without their block.
    is_old = "backbone.fpn.inner_blocks.0.weight" in names
    below, above = pyramid_levels(ours)
    for i, level in enumerate(below):
        modules[f"fpn/lateral{level}"] = f"backbone.fpn.inner_blocks.{i}" + ("" if is_old else ".0")
        modules[f"fpn/output{level}"] = f"backbone.fpn.layer_blocks.{i}" + ("" if is_old else ".0")
    modules |= {f"fpn/output{level}": f"backbone.fpn.extra_blocks.p{level}" for level in above}
    one_stage = {"class": "head.classification_head", "box": "head.regression_head"}
    modules |= towers(ours, {f"head/{name}_tower": f"{theirs}.conv" for name, theirs in one_stage.items()})
    for i in mask_convs(ours):
        modules[f"mask_head/conv{i}"] = f"roi_heads.mask_head.{f'mask_fcn{i}' if is_old else f'{i - 1}.0'}"
    # Each convolution is followed by a ReLU, which has a number too.
    modules |= {f"keypoint_head/conv{i}": f"roi_heads.keypoint_head.{2 * (i - 1)}" for i in keypoint_convs(ours)}
    return modules | {
        "rpn/conv": "rpn.head.conv" + ("" if is_old else ".0.0"),
        "rpn/objectness": "rpn.head.cls_logits",
        "rpn/deltas": "rpn.head.bbox_pred",
        "box_head/fc6": "roi_heads.box_head.fc6",
        "box_head/fc7": "roi_heads.box_head.fc7",
        "box_head/classification": "roi_heads.box_predictor.cls_score",
        "box_head/boxes": "roi_heads.box_predictor.bbox_pred",
        "mask_head/deconvolution": "roi_heads.mask_predictor.conv5_mask",
        "mask_weights": "roi_heads.mask_predictor.mask_fcn_logits",
        "keypoint_head/deconvolution": "roi_heads.keypoint_predictor.kps_score_lowres",
        "head/classification": "head.classification_head.cls_logits",
        "head/boxes": "head.regression_head.bbox_reg",
        "head/centerness": "head.regression_head.bbox_ctrness",
    }


DETECTOR = Layout(
    name="torchvision_detector",
    signature=r"backbone\.body\.conv1\.weight",
    modules=_torchvision_detector,
    dense_background="first",
    backbone_conventions=RGB | STRIDE_IN_3X3,
    rcnn_conventions=rules_of_detectors("torchvision"),
    dense_conventions=rules_of_points("torchvision"),
    ignored=(r".*\.num_batches_tracked",),
    **TORCH,
)
# torchvision sets the epsilon of these weights to 0, as they were trained; dead channels depend on it.
COCO = dataclasses.replace(DETECTOR, name="torchvision_coco", epsilon=0.0)
# Also ResNeXt, and timm's of both.
CLASSIFIER = Layout(
    name="torchvision_classifier",
    signature=r"layer1\.0\.conv1\.weight",
    modules=lambda ours, names: torch_resnet(ours, ""),
    backbone_conventions=RGB | STRIDE_IN_3X3,
    ignored=(r".*\.num_batches_tracked", r"fc\.(weight|bias)"),
    **TORCH,
)
# timm's ResNet with GroupNorm.
GROUP_NORM_CLASSIFIER = dataclasses.replace(
    CLASSIFIER,
    name="timm_group_norm",
    norm_suffixes=TORCH["suffixes"],
    backbone_conventions={**CLASSIFIER.backbone_conventions, **GROUP_NORM},
)
