"""How other code bases name and arrange the parameters of the same networks, and the conventions that go with them.

A file's layout is described from our side: for every parameter of ours, which arrays of the file make it, and how. That
one table says what is missing and what is left over, and read backwards it exports.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from maskx_jax.ops.anchors import cell_anchors
from maskx_jax.weights.files import WeightFile

_RGB = {
    "backbone.norm": "frozen_batch",
    "pixels.channel_order": "rgb",
    "pixels.mean": (123.675, 116.28, 103.53),
    "pixels.std": (58.395, 57.12, 57.375),
}
_STRIDE_IN_3X3 = {"backbone.stride_in_1x1": False}
_STRIDE_IN_1X1 = {"backbone.stride_in_1x1": True}
_BGR = {"backbone.norm": "frozen_batch", "pixels.channel_order": "bgr", "pixels.std": (1.0, 1.0, 1.0)}
_ANCHORS = {"rcnn.rpn.anchor_sizes": (32.0, 64.0, 128.0, 256.0, 512.0), "rcnn.rpn.aspect_ratios": (0.5, 1.0, 2.0)}
_HEADS = _ANCHORS | {"rcnn.box_head.box_weights": (10.0, 10.0, 5.0, 5.0)}


def _conventions_of(parent: str) -> dict[str, Any]:
    # detectron2's default is adaptive; torchvision's detectors and Detectron's configs with FPN say 2.
    ratio = 0 if parent == "detectron2" else 2
    places = {
        "rcnn.rpn.anchor_convention": parent,
        "rcnn.roi_align.convention": parent,
        "rcnn.roi_align.sampling_ratio": ratio,
    }
    return _HEADS | places


def field_of(section: Any, field: str) -> Any:
    """Return a field of a section of the config by its dotted name."""
    for part in field.split("."):
        section = section[part]
    return section


@dataclasses.dataclass(frozen=True)
class Layout:
    """The names, arrangement and conventions of one family of files.

    Attributes:
      name: of the preset.
      signature: regular expression; a file with a name that matches is of this family.
      modules: from the paths of our modules and the names in a file, the file's module for each of ours that it may
        have.
      suffixes: of kernel and bias, for instance (".weight", ".bias").
      norm_suffixes: of a normalisation's scale and bias, and of its mean and variance where they are not folded.
      background: "first": every predictor's row 0 is background. "last": the last class logit is, and the box and mask
        predictors have no row for it.
      backbone_conventions: fields of `config.model` that the backbone's weights were trained with.
      detector_conventions: those of the other parts.
      paste_grid: how the code base puts masks into images, see `evaluation.paste_masks.paste_mask`.
      epsilon: of the BatchNorm.
      ignored: regular expressions of names that are no parameter of a detector.
    """

    name: str
    signature: str
    modules: Callable[[Collection[str], Collection[str]], dict[str, str]]
    suffixes: tuple[str, str]
    norm_suffixes: tuple[str, ...]
    background: str
    backbone_conventions: Mapping[str, Any]
    detector_conventions: Mapping[str, Any]
    paste_grid: str = "integer"
    epsilon: float = 1e-5
    ignored: tuple[str, ...] = ()


def _numbers(pattern: str, ours: Collection[str]) -> list[tuple[int, ...]]:
    """Return in order the numbers that the groups of a pattern find in the paths of our modules."""
    found = (re.fullmatch(pattern, path) for path in ours)
    return sorted({tuple(map(int, match.groups())) for match in found if match})


def _blocks(ours: Collection[str]) -> list[tuple[int, ...]]:
    """Return (stage, block) for all blocks of the backbone, stages counted from 2."""
    return _numbers(r"backbone/res(\d+)_block(\d+)/conv1", ours)


def _convs(ours: Collection[str]) -> list[int]:
    """Return the numbers of the mask head's convolutions, from 1 on."""
    return [number for (number,) in _numbers(r"mask_head/conv(\d+)", ours)]


def _torch_backbone(ours: Collection[str], names: Collection[str], root: str = "") -> dict[str, str]:
    modules = {"backbone/stem": f"{root}conv1", "backbone/stem_norm": f"{root}bn1"}
    for stage, block in _blocks(ours):
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
    for i in _convs(ours):
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


def _detectron2(ours: Collection[str], names: Collection[str]) -> dict[str, str]:
    # A file of a classifier has the backbone alone, without its place in the detector.
    root = "" if "stem.conv1.weight" in names else "backbone.bottom_up."
    modules = {"backbone/stem": f"{root}stem.conv1", "backbone/stem_norm": f"{root}stem.conv1.norm"}
    for stage, block in _blocks(ours):
        for layer in ("conv1", "conv2", "conv3", "shortcut"):
            path, theirs = f"backbone/res{stage}_block{block}/{layer}", f"{root}res{stage}.{block}.{layer}"
            modules |= {path: theirs, f"{path}_norm": f"{theirs}.norm"}
    for level in (2, 3, 4, 5):
        modules[f"fpn/lateral{level}"] = f"backbone.fpn_lateral{level}"
        modules[f"fpn/output{level}"] = f"backbone.fpn_output{level}"
    for i in _convs(ours):
        modules[f"mask_head/conv{i}"] = f"roi_heads.mask_head.mask_fcn{i}"
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
    }


def _detectron(ours: Collection[str], names: Collection[str]) -> dict[str, str]:
    """Name Detectron's blobs, and those that the Mask^X release adds for T and the MLP branch."""
    modules = {"backbone/stem": "conv1", "backbone/stem_norm": "res_conv1"}
    branches = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}
    for stage, block in _blocks(ours):
        for layer, branch in branches.items():
            path, theirs = f"backbone/res{stage}_block{block}/{layer}", f"res{stage}_{block}_{branch}"
            modules |= {path: theirs, f"{path}_norm": theirs}
    # The pyramid's layers are named after the last block of each stage.
    for stage, block in {stage: block for stage, block in _blocks(ours)}.items():
        # The top of the pyramid has nothing above it, so its 1x1 convolution is not called lateral.
        lateral = "" if stage == 5 else "_lateral"
        modules[f"fpn/lateral{stage}"] = f"fpn_inner_res{stage}_{block}_sum{lateral}"
        modules[f"fpn/output{stage}"] = f"fpn_res{stage}_{block}_sum"
    for i in _convs(ours):
        modules[f"mask_head/conv{i}"] = f"_[mask]_fcn{i}"
    *hidden, last = [0, *(number for (number,) in _numbers(r"mask_weights/fc(\d+)", ours))]
    for i in hidden:
        modules[f"mask_weights/fc{i}"] = f"bbox2mask_mlp_l{i}"
    return modules | {
        "rpn/conv": "conv_rpn_fpn2",
        "rpn/objectness": "rpn_cls_logits_fpn2",
        "rpn/deltas": "rpn_bbox_pred_fpn2",
        "box_head/fc6": "fc6",
        "box_head/fc7": "fc7",
        "box_head/classification": "cls_score",
        "box_head/boxes": "bbox_pred",
        "mask_head/deconvolution": "conv5_mask",
        "mask_head/mlp": "mask_mlp_logits_raw",
        "mask_weights": "mask_fcn_logits",
        f"mask_weights/fc{last}": "mask_fcn_logits_w_flat",
    }


_TORCH: dict[str, Any] = {
    "suffixes": (".weight", ".bias"),
    "norm_suffixes": (".weight", ".bias", ".running_mean", ".running_var"),
}
_TORCHVISION_DETECTOR = Layout(
    name="torchvision_detector",
    signature=r"backbone\.body\.conv1\.weight",
    modules=_torchvision_detector,
    background="first",
    backbone_conventions=_RGB | _STRIDE_IN_3X3,
    detector_conventions=_conventions_of("torchvision"),
    ignored=(r".*\.num_batches_tracked",),
    **_TORCH,
)
_DETECTRON2 = Layout(
    name="detectron2",
    signature=r"(backbone\.bottom_up\.)?stem\.conv1\.weight",
    modules=_detectron2,
    background="last",
    paste_grid="continuous",
    backbone_conventions=_BGR | _STRIDE_IN_1X1 | {"pixels.mean": (103.53, 116.28, 123.675)},
    detector_conventions=_conventions_of("detectron2"),
    ignored=(
        r".*\.num_batches_tracked",
        r"proposal_generator\.anchor_generator\..*",
        r"pixel_(mean|std)",
        r"(stem\.fc|linear)\.(weight|bias)",
    ),
    **_TORCH,
)
LAYOUTS = {
    layout.name: layout
    for layout in (
        _TORCHVISION_DETECTOR,
        # torchvision sets the epsilon of these weights to 0, as they were trained; dead channels depend on it.
        dataclasses.replace(_TORCHVISION_DETECTOR, name="torchvision_coco", epsilon=0.0),
        # Also timm's ResNets.
        Layout(
            name="torchvision_classifier",
            signature=r"layer1\.0\.conv1\.weight",
            modules=_torch_backbone,
            background="first",
            backbone_conventions=_RGB | _STRIDE_IN_3X3,
            detector_conventions={},
            ignored=(r".*\.num_batches_tracked", r"fc\.(weight|bias)"),
            **_TORCH,
        ),
        _DETECTRON2,
        # torchvision's ImageNet weights under detectron2's names, and detectors trained from them.
        dataclasses.replace(_DETECTRON2, name="detectron2_torchvision", backbone_conventions=_RGB | _STRIDE_IN_3X3),
        Layout(
            name="detectron",
            signature=r"conv1_w",
            modules=_detectron,
            suffixes=("_w", "_b"),
            norm_suffixes=("_bn_s", "_bn_b"),
            background="first",
            backbone_conventions=_BGR | _STRIDE_IN_1X1 | {"pixels.mean": (102.9801, 115.9465, 122.7717)},
            detector_conventions=_conventions_of("detectron"),
            # Detectron's stem has no bias, though ImageNet files carry one.
            ignored=(r".*_momentum", r"(fc1000|pred)_[wb]", r"conv1_b"),
        ),
    )
}


def check_evidence(file: WeightFile, layout: Layout) -> None:
    """Check that what a file says of its pixels, anchors and BatchNorm is what its layout takes for granted.

    Raises:
      ValueError: it is something else.
    """
    epsilon = None if file.metadata is None else file.metadata.epsilon
    if epsilon is not None and epsilon != layout.epsilon:
        raise ValueError(
            f"{file.path}: BatchNorm's epsilon is {epsilon:g}; with preset {layout.name} {layout.epsilon:g}"
        )
    for field, convention in (("pixel_mean", "pixels.mean"), ("pixel_std", "pixels.std")):
        if field in file.arrays:
            stored, expected = np.ravel(file.arrays[field]), layout.backbone_conventions[convention]
            if stored.shape != (3,) or not np.allclose(stored, expected, atol=1e-2):
                raise ValueError(f"{file.path}: {field} is {stored.tolist()}; with preset {layout.name} {expected}")
    for i, size in enumerate(layout.detector_conventions.get("rcnn.rpn.anchor_sizes", ())):
        name = f"proposal_generator.anchor_generator.cell_anchors.{i}"
        ratios = layout.detector_conventions["rcnn.rpn.aspect_ratios"]
        if name in file.arrays:
            expected = cell_anchors(size, ratios, 4 * 2**i, layout.detector_conventions["rcnn.rpn.anchor_convention"])
            stored = file.arrays[name]
            if stored.shape != expected.shape or not np.allclose(stored, expected, atol=0.1):
                raise ValueError(
                    f"{file.path}: {name} is {stored.tolist()}; with preset {layout.name} {expected.tolist()}"
                )


def recognize(file: WeightFile) -> Layout:
    """Return the layout of a file.

    Raises:
      ValueError: the names are of no known network.
    """
    for layout in LAYOUTS.values():
        if any(re.fullmatch(layout.signature, name) for name in file.arrays):
            # Of 91 rows are torchvision's published detectors; only our own export says when it is something else.
            predictor = file.arrays.get("roi_heads.box_predictor.cls_score.bias", np.zeros(0))
            if layout is _TORCHVISION_DETECTOR and predictor.shape == (91,) and file.metadata is None:
                return LAYOUTS["torchvision_coco"]
            # Only the ResNet made from torchvision's has pixels divided by their deviation.
            deviation = file.arrays.get("pixel_std", np.ones(3))
            if layout is _DETECTRON2 and (file.author == "torchvision" or not np.allclose(deviation, 1)):
                return LAYOUTS["detectron2_torchvision"]
            return layout
    raise ValueError(
        f"{file.path}: of no known network: holds names such as {sorted(file.arrays)[:4]}; known are the ResNet and "
        "R-CNN files of torchvision, timm (ResNet), detectron2 and Detectron"
    )
