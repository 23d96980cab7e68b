"""Checks a config before data is read or anything is compiled: the one place that knows which values fit together."""

import math
import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, get_args

from ml_collections import ConfigDict

from maskx_jax.coco import mask_classes
from maskx_jax.coco.keypoints import Skeleton
from maskx_jax.data import loaders, sources
from maskx_jax.data.transforms import Transform
from maskx_jax.distributed import mesh as sharding
from maskx_jax.evaluation import keypoints, matching, metrics, paste_masks, scores
from maskx_jax.limits import Check, number, one_of, optional
from maskx_jax.models.build import build, limits, num_keypoints
from maskx_jax.runs.evaluation import MAY_CHANGE
from maskx_jax.weights.layouts import LAYOUTS, field_of

# What fields may be besides those of the model, which knows its own (`models.build.limits`).
_LIMITS: Mapping[str, Check] = {
    "seed": number(0, 2**31 - 1),
    "distributed.start_timeout": number(1),
    "distributed.peer_timeout": number(1),
    "watchdog.heartbeat_every": number(0.001),
    "watchdog.report_after": number(0.001),
    "watchdog.exit_after": optional(number(0.001)),
    "initialize.preset": one_of("auto", *LAYOUTS),
    "data.source": lambda name: one_of(*sources.SOURCES)(name),
    "data.keypoint_fraction": number(0, 1),
    "data.predicted_mask_weight": number(0, 1),
    "data.transform.max_long_side": number(1),
    "data.transform.min_box_side": number(0),
    "data.cache_gigabytes": number(0),
    "data.repeat_threshold": number(0, 1),
    "data.loader": one_of(*loaders.LOADERS),
    "data.num_workers": optional(number(1)),
    "data.prefetch": number(0),
    "data.read_ahead": number(0),
    "data.max_broken_records": number(0),
    "optimizer.name": one_of("sgd", "adamw"),
    "optimizer.learning_rate": number(0),
    "optimizer.momentum": number(0, 1),
    "optimizer.weight_decay": number(0),
    "optimizer.bias_learning_rate_factor": number(0),
    "optimizer.clip_norm": number(0),
    "optimizer.schedule": one_of("step", "cosine"),
    "optimizer.decay_steps": number(0),
    "optimizer.decay_factor": number(0),
    "optimizer.warmup_steps": number(0),
    "optimizer.warmup_factor": number(0),
    # None, not 0, is for no average: runs of 0.1 have 0 there, which is read as None.
    "optimizer.ema_decay": optional(number(1e-6, 1)),
    "optimizer.num_microbatches": number(1),
    "train.batch_size": number(1),
    "train.num_steps": number(1),
    "train.state_sharding": one_of(*sharding.STATE_SHARDINGS),
    "train.log_every": number(1),
    "train.checkpoint_every": number(1),
    "train.eval_every": number(0),
    "train.keep_checkpoints": number(1),
    "evaluation.batch_size": number(1),
    "evaluation.num_processes": number(1),
    "evaluation.mask_threshold": number(0, 1),
    "evaluation.paste_grid": one_of(*get_args(paste_masks.Grid)),
    "evaluation.keypoint_grid": one_of(*get_args(keypoints.Grid)),
    "evaluation.keypoint_score": one_of(*get_args(keypoints.Score)),
    "evaluation.backend": one_of(*matching.BACKENDS),
    "evaluation.num_pictures": number(0),
    "evaluation.picture_score_threshold": number(0, 1),
}
_PATTERNS = ("initialize.new", "initialize.unused", "optimizer.untrained")
_FILES = ("embedding.path",)


def check_config(config: ConfigDict, num_devices: int = 1, num_processes: int = 1) -> None:
    """Check all that a config says without its data.

    Args:
      config: of a run; see configs/base.py.
      num_devices: of all processes together.
      num_processes: of the run.

    Raises:
      ValueError: a value is unknown or out of range, or two of them do not fit together; the message names the field.
      ModuleNotFoundError: the backend of evaluations is not installed.
    """
    for name, value in _leaves(config.to_dict()):
        if isinstance(value, float) and not math.isfinite(value):
            raise _error(name, value, "a finite number")
    limits_of_model = _of_model(limits, config.model)
    _check_fields(config, {**_LIMITS, **{f"model.{field}": check for field, check in limits_of_model.items()}})
    model = _of_model(build, config.model, 1)
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
    if num_devices % num_processes:
        raise ValueError(f"got {num_devices} devices on {num_processes} processes; expected as many on each")
    _check_train_batch(config, num_devices)
    _check_cache(config.data)
    _check_evaluation(config, model.multiple, num_devices)
    _check_best_metric(config, scores.kinds(model.produces, config.evaluation.boundary))


def check_evaluation(config: ConfigDict, num_devices: int = 1) -> None:
    """Check what an evaluation reads of the config of a run, some of which may have been changed for it.

    Args:
      config: of the run.
      num_devices: of all processes together.

    Raises:
      ValueError: as `check_config`.
      ModuleNotFoundError: the backend is not installed.
    """
    _check_fields(config, {name: check for name, check in _LIMITS.items() if name.startswith(MAY_CHANGE)})
    _check_evaluation(config, _of_model(build, config.model, 1).multiple, num_devices)


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


def check_keypoints(model: Any, skeleton: Skeleton | None) -> None:
    """Check that the data have the keypoints that a model is to find.

    Args:
      model: `config.model`.
      skeleton: of the data, or None where they have no keypoints.

    Raises:
      ValueError: they have none, or others in number.
    """
    count = num_keypoints(model)
    if count is not None and skeleton is None:
        raise ValueError(
            f"config.model finds {count} keypoints an object; the data have none: what 0.1 prepared, or "
            "--keypoints=drop, has to be prepared again"
        )
    if count is not None and skeleton is not None and count != len(skeleton.names):
        raise ValueError(
            f"config.model finds {count} keypoints an object; the data have {len(skeleton.names)} "
            f"({', '.join(skeleton.names)}): set config.model.rcnn.keypoint_head.num_keypoints"
        )


def _check_fields(config: ConfigDict, checks: Mapping[str, Check]) -> None:
    for name, check in checks.items():
        value = field_of(config, name)
        if expected := check(value):
            raise _error(name, value, expected)


def _of_model(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.model.{error}") from error


def _check_canvas(config: ConfigDict, multiple: int) -> None:
    try:
        Transform(**config.data.transform)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.data.transform: {error}") from error
    canvas = config.data.transform.canvas
    if any(side % multiple for side in canvas):
        raise _error("data.transform.canvas", canvas, f"multiples of {multiple}")


def _check_cache(data: ConfigDict) -> None:
    if (folder := data.cache_features) is None:
        return
    if "://" in folder:
        raise _error("data.cache_features", folder, "a folder on a local disk")
    if (scales := data.transform.jitter_scales) is not None:
        raise _error("data.transform.jitter_scales", scales, "None with data.cache_features: no image comes twice")


def _check_evaluation(config: ConfigDict, multiple: int, num_devices: int) -> None:
    # Names by group are looked up when the data are there.
    if config.evaluation.mask_classes and not isinstance(config.evaluation.mask_classes, ConfigDict):
        _check_mask_classes("evaluation.mask_classes", config.evaluation.mask_classes)
    _check_canvas(config, multiple)
    _check_batch("evaluation.batch_size", config, num_devices)
    matching.check_backend(config.evaluation.backend)


def _check_batch(name: str, config: ConfigDict, num_devices: int) -> None:
    if (size := field_of(config, name)) % num_devices:
        raise _error(name, size, f"a multiple of the {num_devices} devices")


def _check_train_batch(config: ConfigDict, num_devices: int) -> None:
    _check_batch("train.batch_size", config, num_devices)
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


def _check_best_metric(config: ConfigDict, scored: Collection[str]) -> None:
    preferences, most = config.train.best_metric, config.model.max_detections
    # Which of the two the ground truth decides.
    known = {
        name
        for has_frequencies in (False, True)
        for name in scores.metric_names(metrics.ALL_KINDS, scores.GROUPS, most, has_frequencies)
    }
    for name in preferences:
        if name not in known:
            numbers = metrics.metric_definitions(most, has_frequencies=True) | metrics.keypoint_definitions()
            raise _error(
                "train.best_metric",
                name,
                f"<kind>/<group>/<number>: {', '.join(metrics.ALL_KINDS)}; {', '.join(scores.GROUPS)}; "
                f"{', '.join(numbers)}",
            )
    if preferences and not any(name.partition("/")[0] in scored for name in preferences):
        raise _error("train.best_metric", tuple(preferences), f"one of what is measured here: {', '.join(scored)}")


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
