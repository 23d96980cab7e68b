"""The layout of a family of files: names, arrangement and conventions.

A file's layout is described from our side: for every parameter of ours, which arrays of the file make it, and how. That
one table says what is missing and what is left over, and read backwards it exports.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

RGB = {
    "backbone.norm": "frozen_batch",
    "pixels.channel_order": "rgb",
    "pixels.mean": (123.675, 116.28, 103.53),
    "pixels.std": (58.395, 57.12, 57.375),
}
STRIDE_IN_3X3 = {"backbone.stride_in_1x1": False}
STRIDE_IN_1X1 = {"backbone.stride_in_1x1": True}
BGR = {"backbone.norm": "frozen_batch", "pixels.channel_order": "bgr", "pixels.std": (1.0, 1.0, 1.0)}
# Of ResNets with GroupNorm, which say it themselves: they have no statistics.
GROUP_NORM = {"backbone.norm": "group_32"}
_ANCHORS = {"rcnn.rpn.anchor_sizes": (32.0, 64.0, 128.0, 256.0, 512.0), "rcnn.rpn.aspect_ratios": (0.5, 1.0, 2.0)}
_HEADS = _ANCHORS | {"rcnn.box_head.box_weights": (10.0, 10.0, 5.0, 5.0)}


def rules_of_detectors(code_base: str) -> dict[str, Any]:
    """Return the conventions of the parts beside the backbone that the detectors of a code base were trained with."""
    # detectron2's default is adaptive; torchvision's detectors and Detectron's configs with FPN say 2.
    ratio = 0 if code_base == "detectron2" else 2
    places = {
        "rcnn.rpn.anchor_convention": code_base,
        "rcnn.roi_align.convention": code_base,
        "rcnn.roi_align.sampling_ratio": ratio,
    }
    return _HEADS | places


def rules_of_points(code_base: str) -> dict[str, Any]:
    """Return the conventions of the one-stage detectors of a code base."""
    is_torchvision = code_base == "torchvision"
    return {
        "dense.head.points": "torchvision" if is_torchvision else "centre",
        "dense.head.level_sizes": (64.0, 128.0, 256.0, 512.0),
        "dense.head.closed_ranges": not is_torchvision,
        "dense.head.learned_scales": not is_torchvision,
        "dense.head.score": "product" if code_base == "fcos_core" else "root",
        # What the threshold is compared with: the score, or the probability of the class.
        "dense.head.threshold_score": is_torchvision,
        "dense.head.score_threshold": 0.2 if is_torchvision else 0.05,
    }


TORCH: dict[str, Any] = {
    "suffixes": (".weight", ".bias"),
    "norm_suffixes": (".weight", ".bias", ".running_mean", ".running_var"),
}


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
        have; and the whole name of each parameter that is a single number.
      suffixes: of kernel and bias, for instance (".weight", ".bias").
      norm_suffixes: of a normalisation's scale and bias, and of its mean and variance where they are not folded.
      background: of two-stage detectors. "first": every predictor's row 0 is background. "last": the last class logit
        is, and the box and mask predictors have no row for it.
      dense_background: of one-stage detectors. "first": the class predictor's row 0, which finds nothing. "none".
      backbone_conventions: fields of `config.model` that the backbone's weights were trained with.
      rcnn_conventions: those of the other parts of a two-stage detector.
      c4_conventions: those of them that are others in the form C4, see `models.backbones.resnet_c4`.
      dense_conventions: those of the other parts of a one-stage detector.
      paste_grid: how the code base puts masks into images, see `evaluation.paste_masks.paste_mask`.
      keypoint_grid, keypoint_score: where it finds keypoints and how it scores them, see `evaluation.keypoints`.
      epsilon: of the BatchNorm.
      ignored: regular expressions of names that are no parameter of a detector.
    """

    name: str
    signature: str
    modules: Callable[[Collection[str], Collection[str]], dict[str, str]]
    suffixes: tuple[str, str]
    norm_suffixes: tuple[str, ...]
    backbone_conventions: Mapping[str, Any]
    rcnn_conventions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    c4_conventions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dense_conventions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    background: str = "first"
    dense_background: str = "none"
    paste_grid: str = "integer"
    keypoint_grid: str = "canvas"
    keypoint_score: str = "logit"
    epsilon: float = 1e-5
    ignored: tuple[str, ...] = ()


def numbers(pattern: str, ours: Collection[str]) -> list[tuple[int, ...]]:
    """Return in order the numbers that the groups of a pattern find in the paths of our modules."""
    found = (re.fullmatch(pattern, path) for path in ours)
    return sorted({tuple(map(int, match.groups())) for match in found if match})


def blocks(ours: Collection[str]) -> list[tuple[int, ...]]:
    """Return (stage, block) for all blocks of the backbone, stages counted from 2."""
    return numbers(r"backbone/res(\d+)_block(\d+)/conv1", ours)


def torch_resnet(ours: Collection[str], root: str, res5_root: str | None = None) -> dict[str, str]:
    """Name the layers of a ResNet as torchvision does.

    Args:
      ours: paths of our modules.
      root: of the file's names.
      res5_root: of those of the last stage, where it stands elsewhere: on C4 it is a head.
    """
    modules = {"backbone/stem": f"{root}conv1", "backbone/stem_norm": f"{root}bn1"}
    for stage, block in blocks(ours):
        path, own_root = f"backbone/res{stage}_block{block}", (res5_root or root) if stage == 5 else root
        theirs = f"{own_root}layer{stage - 1}.{block}"
        for i in (1, 2, 3):
            modules |= {f"{path}/conv{i}": f"{theirs}.conv{i}", f"{path}/conv{i}_norm": f"{theirs}.bn{i}"}
        modules |= {f"{path}/shortcut": f"{theirs}.downsample.0", f"{path}/shortcut_norm": f"{theirs}.downsample.1"}
    return modules


def mask_convs(ours: Collection[str]) -> list[int]:
    """Return the numbers of the mask head's convolutions, from 1 on."""
    return [number for (number,) in numbers(r"mask_head/conv(\d+)", ours)]


def keypoint_convs(ours: Collection[str]) -> list[int]:
    """Return the numbers of the keypoint head's convolutions, from 1 on."""
    return [number for (number,) in numbers(r"keypoint_head/conv(\d+)", ours)]


def pyramid_levels(ours: Collection[str]) -> tuple[list[int], list[int]]:
    """Return the levels of the pyramid that a map of the backbone goes into, and those above that have weights."""
    below = [level for (level,) in numbers(r"fpn/lateral(\d+)", ours)]
    return below, [level for (level,) in numbers(r"fpn/output(\d+)", ours) if level not in below]


def towers(ours: Collection[str], theirs: Mapping[str, str]) -> dict[str, str]:
    """Name the layers of towers that are a sequence of convolution, norm and ReLU, over and over.

    Args:
      ours: paths of our modules.
      theirs: the sequence for each of our towers.
    """
    modules: dict[str, str] = {}
    for tower, sequence in theirs.items():
        for (number,) in numbers(rf"{tower}/conv(\d+)", ours):
            place = 3 * (number - 1)
            path = f"{tower}/conv{number}"
            modules |= {path: f"{sequence}.{place}", f"{path}_norm": f"{sequence}.{place + 1}"}
    return modules


def level_scales(ours: Collection[str], theirs: Mapping[str, str]) -> dict[str, str]:
    """Name the numbers that belong to a level of the pyramid each, which are counted from the lowest.

    Args:
      ours: paths of our modules.
      theirs: the list for each of our parameters, without its level.
    """
    levels = [level for group in pyramid_levels(ours) for level in group]
    return {
        f"{path}{level}": f"{scales}.{place}.scale"
        for path, scales in theirs.items()
        for place, level in enumerate(levels)
    }
