"""Checkpoints, and the only place that knows Orbax.

A step's checkpoint has two parts: `model` (params, ema_params, frozen: what follow-up work loads) and `training`
(step, optimizer state). Beside them lies the bijection between labels and category ids, so that a checkpoint says what
its outputs mean.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import linen as nn
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from maskx_jax.models import rcnn
from maskx_jax.structures import PyTree, TrainState
from maskx_jax.training.steps import initialize

CONFIG_FILE = "config.json"
CHECKPOINTS_FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one work directory, written in the background.

    Args:
      workdir: checkpoints go into its folder `checkpoints`.
      keep: number of latest checkpoints to keep.
      best_metric: name of a metric given to `save`; the checkpoint where it is largest is kept as well.
    """

    def __init__(self, workdir: str | pathlib.Path, *, keep: int = 2, best_metric: str | None = None) -> None:
        policies: list[Any] = [LatestN(keep)]
        if best_metric is not None:
            policies.append(BestN(get_metric_fn=lambda m: m[best_metric], n=1, keep_checkpoints_without_metrics=False))
        self._best_metric = best_metric
        self._directory = epath.Path(workdir).absolute() / CHECKPOINTS_FOLDER
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(preservation_policy=AnyPreservationPolicy(policies)),
        )

    def latest_step(self) -> int | None:
        """Return the newest finished step, or None."""
        return self._manager.latest_step()

    def save(
        self, state: TrainState, categories: list[dict[str, Any]], metrics: Mapping[str, float | None] | None = None
    ) -> None:
        """Start to write the state; an error of the previous write surfaces here.

        Args:
          state: to save, under its own step.
          categories: the `categories` list of a COCO file, in label order.
          metrics: of this step, where it was evaluated. A best metric that has no value (None) counts as absent.

        Raises:
          ValueError: the best metric is not among the metrics.
        """
        if metrics is not None and self._best_metric is not None:
            if self._best_metric not in metrics:
                raise ValueError(f"best metric {self._best_metric!r} is not among the metrics {sorted(metrics)}")
            if metrics[self._best_metric] is None:
                metrics = None
        self._manager.check_for_errors()
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(_model_part(state)),
                training=ocp.args.StandardSave(_training_part(state)),
                categories=ocp.args.JsonSave({"categories": categories}),
            ),
            metrics=None if metrics is None else {k: v for k, v in metrics.items() if v is not None},
        )

    def restore(self, state: TrainState, step: int | None = None) -> TrainState:
        """Return the state saved at `step` (the latest by default), laid out on the devices like `state`.

        Raises:
          FileNotFoundError: there is no such checkpoint.
        """
        step = self.existing_step(step)
        abstract = jax.tree.map(_abstract, state)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardRestore(_model_part(abstract)),
                training=ocp.args.StandardRestore(_training_part(abstract)),
            ),
        )
        return dataclasses.replace(state, **restored["model"], **restored["training"])

    def restore_model(self, abstract_model: PyTree, step: int | None = None) -> tuple[PyTree, list[dict[str, Any]]]:
        """Return the `model` part of a checkpoint, shaped as `abstract_model`, and its categories.

        Raises:
          FileNotFoundError: there is no such checkpoint.
        """
        step = self.existing_step(step)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(model=ocp.args.StandardRestore(abstract_model), categories=ocp.args.JsonRestore()),
        )
        return restored["model"], restored["categories"]["categories"]

    def categories(self, step: int | None = None) -> list[dict[str, Any]]:
        """Return the categories of a checkpoint, in label order.

        Raises:
          FileNotFoundError: there is no such checkpoint.
        """
        step = self.existing_step(step)
        restored = self._manager.restore(step, args=ocp.args.Composite(categories=ocp.args.JsonRestore()))
        return restored["categories"]["categories"]

    def close(self) -> None:
        """Wait for the write in progress; raises its error."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
        self._manager.close()

    def existing_step(self, step: int | None = None) -> int:
        """Return the step itself if it has a checkpoint, and the latest for None.

        Raises:
          FileNotFoundError: there is no such checkpoint.
        """
        steps = self._manager.all_steps()
        chosen = self.latest_step() if step is None else step
        if chosen is None or chosen not in steps:
            wanted = "any checkpoint" if step is None else f"a checkpoint of step {step}"
            raise FileNotFoundError(f"expected {wanted} in {self._directory}; found steps {sorted(steps)}")
        return chosen


def has_checkpoint(workdir: str | pathlib.Path) -> bool:
    """Return whether a run in this work directory has saved a step."""
    if not (epath.Path(workdir) / CHECKPOINTS_FOLDER).exists():
        return False
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        return checkpoints.latest_step() is not None


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A trained model, ready to use.

    Attributes:
      config: of the run.
      model: `model.apply(variables, images, image_sizes, method="detect")` returns `structures.Detections`.
      variables: the averaged parameters where the run kept an average, else the last ones.
      categories: the `categories` list of a COCO file; label `i + 1` is its entry `i`.
      step: of the checkpoint.
    """

    config: ConfigDict
    model: nn.Module
    variables: PyTree
    categories: list[dict[str, Any]]
    step: int


def load(workdir: str | pathlib.Path, step: int | None = None) -> Loaded:
    """Load a trained model from the work directory of a run.

    Args:
      workdir: of `train.py`.
      step: the latest by default.

    Raises:
      FileNotFoundError: the directory holds no run, or no such checkpoint.
    """
    config = read_config(workdir)
    checkpoints = Checkpoints(workdir)
    try:
        step = checkpoints.existing_step(step)
        num_classes = len(checkpoints.categories(step))
        model = rcnn.build(num_classes, **config.model.to_dict())
        variables = jax.eval_shape(lambda: initialize(model, jax.random.key(0)))
        # Placed explicitly: the run may have had other devices than this machine.
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract: dict[str, Any] = {
            "params": variables["params"],
            "frozen": variables.get("frozen", {}),
            "ema_params": variables["params"] if config.optimizer.ema_decay else None,
        }
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), abstract)
        restored, categories = checkpoints.restore_model(abstract, step)
    finally:
        checkpoints.close()
    params = restored["params"] if restored["ema_params"] is None else restored["ema_params"]
    return Loaded(config, model, {"params": params, "frozen": restored["frozen"]}, categories, step)


def write_config(workdir: str | pathlib.Path, config: ConfigDict) -> None:
    """Write the config into the work directory."""
    directory = epath.Path(workdir)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG_FILE).write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def read_config(workdir: str | pathlib.Path) -> ConfigDict:
    """Read the config of a run.

    Raises:
      FileNotFoundError: the directory holds no run.
    """
    path = epath.Path(workdir) / CONFIG_FILE
    if not path.exists():
        raise FileNotFoundError(f"expected the work directory of a run; found no {path}")
    return ConfigDict(json.loads(path.read_text(), object_hook=_lists_to_tuples))


def _model_part(state: TrainState) -> dict[str, PyTree]:
    return {"params": state.params, "ema_params": state.ema_params, "frozen": state.frozen}


def _training_part(state: TrainState) -> dict[str, PyTree]:
    return {"step": state.step, "opt_state": state.opt_state}


def _abstract(array: Any) -> Any:
    if isinstance(array, np.ndarray):
        return array
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _lists_to_tuples(mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in mapping.items()}
