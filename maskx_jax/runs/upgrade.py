"""What an earlier version has written, in the fields of this one."""

import copy
from collections.abc import Mapping
from typing import Any

# Where the fields and sections of 0.1 are now, those within a section before the section.
_MOVED = {
    "data.mask_split": "data.mask_classes",
    "evaluation.split": "evaluation.mask_classes",
    "optimizer.frozen": "optimizer.untrained",
    "watchdog.sign_every": "watchdog.heartbeat_every",
    "watchdog.leave_after": "watchdog.exit_after",
    "model.channel_order": "model.pixels.channel_order",
    "model.pixel_mean": "model.pixels.mean",
    "model.pixel_std": "model.pixels.std",
    "model.roi_align_convention": "model.rcnn.roi_align.convention",
    "model.roi_align_sampling_ratio": "model.rcnn.roi_align.sampling_ratio",
    "model.box_head.max_detections": "model.max_detections",
    **{
        f"model.{name}": f"model.rcnn.{name}"
        for name in ("mask_predictor", "fpn", "rpn", "box_head", "mask_head", "weight_transfer")
    },
}
# Fields that may have no value, where 0.1 had 0 or "" for it.
_OPTIONAL = (
    "watchdog.exit_after",
    "initialize.path",
    "embedding.path",
    "data.directory",
    "optimizer.ema_decay",
    "evaluation.mask_classes",
)


def upgrade(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a run with every field under its name, and in the form, of today.

    Args:
      config: as read from a config.json, of any version and perhaps damaged. It is not changed.
    """
    upgraded = copy.deepcopy(dict(config))
    if isinstance(evaluation := upgraded.get("evaluation"), dict):
        # Runs older than this field were evaluated so.
        evaluation.setdefault("paste_grid", "continuous")
        # These detected no keypoints.
        evaluation.setdefault("keypoint_grid", "image")
        evaluation.setdefault("keypoint_score", "probability")
        evaluation.setdefault("num_processes", 1)
    if isinstance(data := upgraded.get("data"), dict):
        data.setdefault("read_ahead", 0)
    model = upgraded.get("model")
    for old, new in _MOVED.items():
        _move(upgraded, old, new)
    if isinstance(model, dict) and "family" not in model and isinstance(model.get("rcnn"), dict):
        # 0.1 had one family and one backbone, and a run older than a section was made with its defaults.
        model["family"] = "rcnn"
        model.setdefault("pixels", {})
        model["rcnn"].setdefault("roi_align", {})
        if isinstance(model["rcnn"].get("mask_head"), dict):
            model["rcnn"]["mask_head"].setdefault("targets", "sampled")
        if isinstance(model.get("backbone"), dict):
            model["backbone"].setdefault("kind", "resnet")
    for field in _OPTIONAL:
        section, _, name = field.partition(".")
        fields = upgraded.get(section)
        if isinstance(fields, dict) and fields.get(name) in (0, ""):
            fields[name] = None
    return upgraded


def upgrade_name(field: str) -> str:
    """Return the dotted name that a field has today."""
    for old, new in _MOVED.items():
        if field == old or field.startswith(f"{old}."):
            return new + field.removeprefix(old)
    return field


def _move(config: dict[str, Any], old: str, new: str) -> None:
    *sections, name = old.split(".")
    source: Any = config
    for section in sections:
        source = source.get(section) if isinstance(source, dict) else None
    if not isinstance(source, dict) or name not in source:
        return
    *sections, new_name = new.split(".")
    target: Any = config
    for section in sections:
        target = target.setdefault(section, {})
    target[new_name] = source.pop(name)
