"""Files of torchvision, and of timm's ResNets."""

import dataclasses
from collections.abc import Collection

from maskx_jax.weights.layouts.layout import RGB, STRIDE_IN_3X3, TORCH, Layout, blocks, mask_convs, rules_of_detectors


def _torch_backbone(ours: Collection[str], names: Collection[str], root: str = "") -> dict[str, str]:
    modules = {"backbone/stem": f"{root}conv1", "backbone/stem_norm": f"{root}bn1"}
    for stage, block in blocks(ours):
        path, theirs = f"backbone/res{stage}_block{block}", f"{root}layer{stage - 1}.{block}"
        for i in (1, 2, 3):
            modules |= {f"{path}/conv{i}": f"{theirs}.conv{i}", f"{path}/conv{i}_norm": f"{theirs}.bn{i}"}
        modules |= {f"{path}/shortcut": f"{theirs}.downsample.0", f"{path}/shortcut_norm": f"{theirs}.downsample.1"}
    return modules


def _torchvision_detector(ours: Collection[str], names: Collection[str]) -> dict[str, str]:
    modules = _torch_backbone(ours, names, "backbone.body.")
    # Files from before torchvision 0.14, among them the published detectors, have the layers without their block.
    is_old = "rpn.head.conv.weight" in names
    for i in range(4):
        modules[f"fpn/lateral{i + 2}"] = f"backbone.fpn.inner_blocks.{i}" + ("" if is_old else ".0")
        modules[f"fpn/output{i + 2}"] = f"backbone.fpn.layer_blocks.{i}" + ("" if is_old else ".0")
    for i in mask_convs(ours):
        modules[f"mask_head/conv{i}"] = f"roi_heads.mask_head.{f'mask_fcn{i}' if is_old else f'{i - 1}.0'}"
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
    }


DETECTOR = Layout(
    name="torchvision_detector",
    signature=r"backbone\.body\.conv1\.weight",
    modules=_torchvision_detector,
    background="first",
    backbone_conventions=RGB | STRIDE_IN_3X3,
    detector_conventions=rules_of_detectors("torchvision"),
    ignored=(r".*\.num_batches_tracked",),
    **TORCH,
)
# torchvision sets the epsilon of these weights to 0, as they were trained; dead channels depend on it.
COCO = dataclasses.replace(DETECTOR, name="torchvision_coco", epsilon=0.0)
# Also timm's ResNets.
CLASSIFIER = Layout(
    name="torchvision_classifier",
    signature=r"layer1\.0\.conv1\.weight",
    modules=_torch_backbone,
    background="first",
    backbone_conventions=RGB | STRIDE_IN_3X3,
    detector_conventions={},
    ignored=(r".*\.num_batches_tracked", r"fc\.(weight|bias)"),
    **TORCH,
)
