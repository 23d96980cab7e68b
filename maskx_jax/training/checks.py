"""Checks a config before data is read or anything is compiled: the one place that knows which values fit together."""

import math
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from maskx_jax.coco import mask_classes
from maskx_jax.data import loaders, sources
from maskx_jax.data.transforms import Transform
from maskx_jax.distributed import mesh as sharding
from maskx_jax.evaluation import matching
from maskx_jax.evaluation import metrics as coco_metrics
from maskx_jax.models.rcnn import detector as rcnn
from maskx_jax.models.rcnn import mask_head, weight_transfer
from maskx_jax.ops import anchors, roi_align
from maskx_jax.weights.layouts import LAYOUTS, field_of

# A canvas has sides of a multiple of the stride of res5.
_STRIDE = 32
# P2 to P6.
_NUM_LEVELS = 5

_CHOICES: Mapping[str, Sequence[Any]] = {
    "initialize.preset": ("auto", *LAYOUTS),
    "model.mask_predictor": rcnn.MASK_PREDICTORS,
    "model.dtype": ("float32", "bfloat16"),
    "model.channel_order": ("rgb", "bgr"),
    "model.roi_align_convention": roi_align.CONVENTIONS,
    "model.backbone.norm": ("frozen_batch", "group"),
    "model.rpn.anchor_convention": anchors.CONVENTIONS,
    "model.mask_head.body": mask_head.BODIES,
    "model.mask_head.mlp": mask_head.MLP_BRANCHES,
    "model.mask_head.train_on": mask_head.REGIONS,
    "model.mask_head.targets": tuple(mask_head.TARGETS),
    "model.weight_transfer.input": weight_transfer.INPUTS,
    "model.weight_transfer.num_layers": (1, 2, 3),
    "model.weight_transfer.activation": tuple(weight_transfer.ACTIVATIONS),
    "data.source": tuple(sources.SOURCES),
    "data.loader": tuple(loaders.LOADERS),
    "optimizer.name": ("sgd", "adamw"),
    "optimizer.schedule": ("step", "cosine"),
    "train.state_sharding": sharding.STATE_SHARDINGS,
    "evaluation.backend": matching.BACKENDS,
}

# Smallest and largest value of a number, or of each number of a tuple.
_MOST = math.inf
_RANGES: Mapping[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "distributed.start_timeout": (1, _MOST),
    "distributed.peer_timeout": (1, _MOST),
    "watchdog.sign_every": (0.001, _MOST),
    "watchdog.report_after": (0.001, _MOST),
    "watchdog.leave_after": (0, _MOST),
    "model.backbone.stage_sizes": (1, _MOST),
    "model.backbone.width": (1, _MOST),
    "model.fpn.channels": (1, _MOST),
    "model.pixel_std": (1e-6, _MOST),
    "model.roi_align_sampling_ratio": (0, 8),
    "model.rpn.channels": (1, _MOST),
    "model.rpn.anchor_sizes": (1e-6, _MOST),
    "model.rpn.aspect_ratios": (1e-6, _MOST),
    "model.rpn.num_samples": (1, _MOST),
    "model.rpn.pre_nms_top_k": (1, _MOST),
    "model.rpn.post_nms_top_k": (1, _MOST),
    **{
        f"model.{module}.{name}": (0, 1)
        for module, names in {
            "rpn": (
                *("foreground_threshold", "background_threshold", "crowd_threshold"),
                *("foreground_fraction", "nms_threshold"),
            ),
            "box_head": (
                *("foreground_threshold", "crowd_threshold", "foreground_fraction"),
                *("score_threshold", "nms_threshold"),
            ),
        }.items()
        for name in names
    },
    "model.rpn.smooth_l1_beta": (0, _MOST),
    "model.box_head.smooth_l1_beta": (0, _MOST),
    "model.box_head.hidden": (1, _MOST),
    "model.box_head.resolution": (1, _MOST),
    "model.box_head.num_samples": (1, _MOST),
    "model.box_head.box_weights": (1e-6, _MOST),
    "model.box_head.pre_nms_top_k": (1, _MOST),
    "model.box_head.max_detections": (1, _MOST),
    "model.mask_head.channels": (1, _MOST),
    "model.mask_head.num_convs": (1, _MOST),
    "model.mask_head.resolution": (1, _MOST),
    "model.mask_head.mlp_channels": (1, _MOST),
    "model.mask_head.num_samples": (1, _MOST),
    "model.weight_transfer.embedding_size": (1, _MOST),
    "data.transform.max_long_side": (1, _MOST),
    "data.transform.min_box_side": (0, _MOST),
    "data.repeat_threshold": (0, 1),
    "data.num_workers": (1, _MOST),
    "data.prefetch": (0, _MOST),
    "data.max_broken_records": (0, _MOST),
    "optimizer.learning_rate": (0, _MOST),
    "optimizer.momentum": (0, 1),
    "optimizer.weight_decay": (0, _MOST),
    "optimizer.bias_learning_rate_factor": (0, _MOST),
    "optimizer.clip_norm": (0, _MOST),
    "optimizer.decay_steps": (0, _MOST),
    "optimizer.decay_factor": (0, _MOST),
    "optimizer.warmup_steps": (0, _MOST),
    "optimizer.warmup_factor": (0, _MOST),
    "optimizer.ema_decay": (0, 1),
    "optimizer.num_microbatches": (1, _MOST),
    "train.batch_size": (1, _MOST),
    "train.num_steps": (1, _MOST),
    "train.log_every": (1, _MOST),
    "train.checkpoint_every": (1, _MOST),
    "train.eval_every": (0, _MOST),
    "train.keep_checkpoints": (1, _MOST),
    "evaluation.batch_size": (1, _MOST),
    "evaluation.mask_threshold": (0, 1),
    "evaluation.num_pictures": (0, _MOST),
    "evaluation.picture_score_threshold": (0, 1),
}

_LENGTHS: Mapping[str, int] = {
    "model.backbone.stage_sizes": _NUM_LEVELS - 1,
    "model.rpn.anchor_sizes": _NUM_LEVELS,
    "model.rpn.pre_nms_top_k": 2,
    "model.rpn.post_nms_top_k": 2,
    "model.box_head.box_weights": 4,
    "model.pixel_mean": 3,
    "model.pixel_std": 3,
}

_PATTERNS = ("initialize.new", "initialize.unused", "optimizer.untrained")
_FILES = ("embedding.path",)
# Groups of classes that an evaluation may have; which of them it has, the data decide.
_GROUPS = ("all", "A", "B", "mixed")


def check_config(config: ConfigDict, num_devices: int = 1, num_processes: int = 1) -> None:
    """Check all that a config says without its data.

    Args:
      config: of a run; see configs/base.py.
      num_devices: of all processes together.
      num_processes: of the run.

    Raises:
      ValueError: a value is unknown or out of range, or two of them do not fit together; the message names the field.
    """
    for name, value in _leaves(config.to_dict()):
        if isinstance(value, float) and not math.isfinite(value):
            raise _error(name, value, "a finite number")
    for name, choices in _CHOICES.items():
        if (value := field_of(config, name)) not in choices:
            raise _error(name, value, f"one of {', '.join(map(str, choices))}")
    for name, (least, most) in _RANGES.items():
        value = field_of(config, name)
        numbers = value if isinstance(value, Sequence) else (value,)
        if not all(isinstance(number, int | float) and least <= number <= most for number in numbers):
            raise _error(name, value, f"{least:g} or more" if most == _MOST else f"{least:g} to {most:g}")
    for name, length in _LENGTHS.items():
        if len(field_of(config, name)) != length:
            raise _error(name, field_of(config, name), f"{length} values")
    for name in _PATTERNS:
        for pattern in field_of(config, name):
            try:
                re.compile(pattern)
            except re.error as error:
                raise _error(name, pattern, f"regular expressions ({error})") from error
    for name in _FILES:
        if (path := field_of(config, name)) and "://" not in path and not pathlib.Path(path).is_file():
            raise _error(name, path, "an existing file")
    _check_mask_classes("data.mask_classes", config.data.mask_classes)
    if config.evaluation.mask_classes:
        _check_mask_classes("evaluation.mask_classes", config.evaluation.mask_classes)
    _check_model(config)
    _check_canvas(config)
    _check_batches(config, num_devices, num_processes)
    matching.check_backend(config.evaluation.backend)
    _check_best_metric(config)


def choose_best_metric(preferences: Sequence[str], measured: Collection[str]) -> str | None:
    """Return the first of the metrics that will be measured; None where no best checkpoint is asked for.

    Raises:
      ValueError: none of them will be.
    """
    for name in preferences:
        if name in measured:
            return name
    if preferences:
        raise _error(
            "train.best_metric", tuple(preferences), f"one that this data measures: {', '.join(sorted(measured))}"
        )
    return None


def _check_model(config: ConfigDict) -> None:
    head = config.model.mask_head
    if head.body == "residual" and head.num_convs % 2 == 0:
        raise _error("model.mask_head.num_convs", head.num_convs, "an odd number: one convolution and then pairs")
    if not config.model.rpn.aspect_ratios:
        raise _error("model.rpn.aspect_ratios", config.model.rpn.aspect_ratios, "one or more")


def _check_canvas(config: ConfigDict) -> None:
    try:
        Transform(**config.data.transform)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.data.transform: {error}") from error
    canvas = config.data.transform.canvas
    if any(side % _STRIDE for side in canvas):
        raise _error("data.transform.canvas", canvas, f"multiples of {_STRIDE}")


def _check_batches(config: ConfigDict, num_devices: int, num_processes: int) -> None:
    if num_devices % num_processes:
        raise ValueError(f"got {num_devices} devices on {num_processes} processes; expected as many on each")
    for name in ("train.batch_size", "evaluation.batch_size"):
        if (size := field_of(config, name)) % num_devices:
            raise _error(name, size, f"a multiple of the {num_devices} devices")
    parts = config.optimizer.num_microbatches
    if (share := config.train.batch_size // num_devices) % parts:
        raise _error(
            "optimizer.num_microbatches",
            parts,
            f"a divisor of the {share} images that a device has of train.batch_size",
        )


def _check_mask_classes(name: str, chosen: Any) -> None:
    try:
        mask_classes.check(chosen)
    except (OSError, ValueError) as error:
        raise ValueError(f"config.{name}: {error}") from error


def _kinds(config: ConfigDict) -> tuple[str, ...]:
    if config.model.mask_predictor == "none":
        return ("bbox",)
    return ("bbox", "segm", "boundary") if config.evaluation.boundary else ("bbox", "segm")


def _check_best_metric(config: ConfigDict) -> None:
    # Which of the two the ground truth decides.
    numbers = {
        name: None
        for has_frequencies in (False, True)
        for name in coco_metrics.metric_definitions(config.model.box_head.max_detections, has_frequencies)
    }
    preferences = config.train.best_metric
    for name in preferences:
        kind, _, rest = name.partition("/")
        group, _, number = rest.partition("/")
        known = kind in ("bbox", "segm", "boundary")
        if not known or not (rest == "harmonic_mean" or (group in _GROUPS and number in numbers)):
            raise _error(
                "train.best_metric",
                name,
                "<kind>/<group>/<number>: bbox, segm or boundary; all, A, B or mixed; " + ", ".join(numbers),
            )
    if preferences and not any(name.partition("/")[0] in _kinds(config) for name in preferences):
        raise _error(
            "train.best_metric", tuple(preferences), f"one of what is measured here: {', '.join(_kinds(config))}"
        )


def _leaves(mapping: Mapping[str, Any], prefix: str = "") -> Any:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, tuple | list):
            yield from ((f"{prefix}{key}", item) for item in value)
        else:
            yield f"{prefix}{key}", value


def _error(name: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"config.{name} is {value!r}; expected {expected}")
