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


def numbers(pattern: str, ours: Collection[str]) -> list[tuple[int, ...]]:
    """Return in order the numbers that the groups of a pattern find in the paths of our modules."""
    found = (re.fullmatch(pattern, path) for path in ours)
    return sorted({tuple(map(int, match.groups())) for match in found if match})


def blocks(ours: Collection[str]) -> list[tuple[int, ...]]:
    """Return (stage, block) for all blocks of the backbone, stages counted from 2."""
    return numbers(r"backbone/res(\d+)_block(\d+)/conv1", ours)


def mask_convs(ours: Collection[str]) -> list[int]:
    """Return the numbers of the mask head's convolutions, from 1 on."""
    return [number for (number,) in numbers(r"mask_head/conv(\d+)", ours)]
