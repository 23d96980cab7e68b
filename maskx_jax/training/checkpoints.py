"""Checkpoints, and the only place that knows Orbax.

A step's checkpoint has two parts: `model` (params, ema_params, frozen: what follow-up work loads) and `training`
(step, optimizer state). Beside them lies a `description`: the bijection between labels and category ids, so that a
checkpoint says what its outputs mean, and shape, type and fingerprint of every array, so that damage is noticed.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from maskx_jax.structures import PyTree, TrainState
from maskx_jax.training.distributed import gather_objects
from maskx_jax.training.fingerprints import fingerprints

CHECKPOINTS_FOLDER = "checkpoints"
DAMAGED_FOLDER = "damaged_checkpoints"
# Differing arrays that an error names.
_NAMED = 5


class Checkpoints:
    """The checkpoints of one work directory, written in the background.

    Args:
      workdir: checkpoints go into its folder `checkpoints`.
      keep: number of latest checkpoints to keep.
      best_metric: name of a metric given to `save`; the checkpoint where it is largest is kept as well.
      writes: whether this run owns the directory, and removes what an earlier one left half written.
    """

    def __init__(
        self, workdir: str | pathlib.Path, *, keep: int = 2, best_metric: str | None = None, writes: bool = False
    ) -> None:
        policies: list[Any] = [LatestN(keep)]
        if best_metric is not None:
            lowest = float("-inf")  # Of checkpoints that an earlier run wrote with another best metric.
            policies.append(
                BestN(get_metric_fn=lambda m: m.get(best_metric, lowest), n=1, keep_checkpoints_without_metrics=False)
            )
        self._best_metric = best_metric
        self._workdir = epath.Path(workdir).absolute()
        self._directory = self._workdir / CHECKPOINTS_FOLDER
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies),
                cleanup_tmp_directories=writes,
                create=writes,
            ),
        )

    def latest_step(self) -> int | None:
        """Return the newest finished step, or None."""
        return self._manager.latest_step()

    def save(
        self, state: TrainState, categories: list[dict[str, Any]], metrics: Mapping[str, float | None] | None = None
    ) -> None:
        """Start to write the state; an error of the previous write surfaces here.

        A checkpoint of this very step is written again.

        Args:
          state: to save, under its own step.
          categories: the `categories` list of a COCO file, in label order.
          metrics: of this step, where it was evaluated. A best metric that has no value (None) counts as absent.

        Raises:
          OSError: this write or the one before failed.
        """
        evaluated = metrics is not None
        if metrics is not None and self._best_metric is not None:
            metrics = None if metrics.get(self._best_metric) is None else metrics
        self.check()
        step = int(state.step)
        model, training = _model_part(state), _training_part(state)
        arrays = _named(model, training)
        values = fingerprints(arrays)
        described = {
            name: {"shape": list(array.shape), "dtype": str(array.dtype), "fingerprint": values[name]}
            for name, array in arrays.items()
        }
        description = {"categories": categories, "evaluated": evaluated, "arrays": described}
        with self._naming_the_last_good_one(f"the checkpoint of step {step}"):
            if step in self._manager.all_steps():
                self._manager.wait_until_finished()
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(model),
                    training=ocp.args.StandardSave(training),
                    description=ocp.args.JsonSave(description),
                ),
                metrics=None if metrics is None else {k: v for k, v in metrics.items() if v is not None},
            )

    def check(self) -> None:
        """Raise the error of the write in the background, if it failed.

        Raises:
          OSError: it did; it names the last checkpoint that is whole.
        """
        with self._naming_the_last_good_one("a checkpoint"):
            self._manager.check_for_errors()

    def restore(self, state: TrainState, step: int | None = None) -> TrainState:
        """Return the state saved at `step` (the latest by default), laid out on the devices like `state`.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: it holds other arrays than `state`, or damaged ones; it names them.
        """
        step = self.existing_step(step)
        description = self._describe(step)
        abstract = jax.tree.map(_abstract, state)
        model, training = _model_part(abstract), _training_part(abstract)
        _check_arrays(description["arrays"], _named(model, training), f"checkpoint {step} in {self._directory}")
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(model=ocp.args.StandardRestore(model), training=ocp.args.StandardRestore(training)),
        )
        self._verify(step, description, _named(restored["model"], restored["training"]))
        return dataclasses.replace(state, **restored["model"], **restored["training"])

    def restore_newest(self, state: TrainState, say: Callable[[str], None]) -> TrainState:
        """Return the newest state that is whole; damaged checkpoints are put aside, and said so.

        Without any checkpoint it is `state` itself. All processes take the same one.

        Raises:
          ValueError: the checkpoint is whole, but of other arrays than `state`.
          RuntimeError: there are checkpoints, and all are damaged.
        """
        damaged = []
        while (step := self.latest_step()) is not None:
            cause, restored = None, None
            try:
                restored = self.restore(state, step)
            except _OtherArraysError:
                raise
            except Exception as error:  # Whatever Orbax and TensorStore raise for files that are not as they should be.
                cause = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            causes = [one for one in gather_objects(cause) if one]
            if not causes:
                assert restored is not None
                return restored
            place = self._put_aside(step)
            damaged.append(step)
            say(f"the checkpoint of step {step} is damaged ({causes[0]}); it is now {place}, and an older one is used")
        if damaged:
            raise RuntimeError(
                f"all checkpoints in {self._directory} were damaged (steps {damaged}); they are in "
                f"{self._workdir / DAMAGED_FOLDER}. Started again, the run begins at step 0."
            )
        return state

    def was_evaluated(self, step: int) -> bool:
        """Return whether the checkpoint of a step was saved after its evaluation."""
        return bool(self._describe(self.existing_step(step))["evaluated"])

    def restore_model(self, abstract_model: PyTree, step: int | None = None) -> tuple[PyTree, list[dict[str, Any]]]:
        """Return the `model` part of a checkpoint, shaped as `abstract_model`, and its categories.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: it holds other arrays, or damaged ones; it names them.
        """
        step = self.existing_step(step)
        description = self._describe(step)
        stored = {name: array for name, array in description["arrays"].items() if name.startswith("model/")}
        _check_arrays(stored, _named(abstract_model, {}), f"checkpoint {step} in {self._directory}")
        restored = self._manager.restore(step, args=ocp.args.Composite(model=ocp.args.StandardRestore(abstract_model)))
        self._verify(step, description, _named(restored["model"], {}))
        return restored["model"], description["categories"]

    def categories(self, step: int | None = None) -> list[dict[str, Any]]:
        """Return the categories of a checkpoint, in label order.

        Raises:
          FileNotFoundError: there is no such checkpoint.
        """
        categories: list[dict[str, Any]] = self._describe(self.existing_step(step))["categories"]
        return categories

    def close(self) -> None:
        """Wait for the write in progress.

        Raises:
          OSError: it failed.
        """
        with self._naming_the_last_good_one("a checkpoint"):
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

    def _describe(self, step: int) -> dict[str, Any]:
        restored = self._manager.restore(step, args=ocp.args.Composite(description=ocp.args.JsonRestore()))
        description: dict[str, Any] = restored["description"]
        return description

    def _verify(self, step: int, description: dict[str, Any], arrays: Mapping[str, Any]) -> None:
        """Check that what was read is what was written.

        Raises:
          ValueError: it is not; it names the arrays.
        """
        stored = description["arrays"]
        broken = [name for name, value in fingerprints(arrays).items() if value != stored[name]["fingerprint"]]
        if broken:
            raise ValueError(
                f"checkpoint {step} in {self._directory}: {len(broken)} of {len(stored)} arrays are not as they were "
                f"written, such as {broken[0]}"
            )

    def _put_aside(self, step: int) -> epath.Path:
        """Move a checkpoint out of the way; return where it is now."""
        target = self._workdir / DAMAGED_FOLDER / str(step)
        while target.exists():
            target = target.with_name(f"{target.name}_again")
        targets = gather_objects(str(target))
        if jax.process_index() == 0:
            target.parent.mkdir(exist_ok=True)
            (self._directory / str(step)).rename(target)
        gather_objects(None)  # Nobody looks before it is done.
        self._manager.reload()
        return epath.Path(targets[0])

    @contextlib.contextmanager
    def _naming_the_last_good_one(self, what: str) -> Any:
        try:
            yield
        except Exception as error:
            steps = sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdigit())
            last = f"the last good one is of step {steps[-1]}" if steps else "there is no other one"
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise OSError(f"{what} could not be written to {self._directory}: {cause}; {last}") from error


class _OtherArraysError(ValueError):
    """A checkpoint is of another model."""


def has_checkpoint(workdir: str | pathlib.Path) -> bool:
    """Return whether a run in this work directory has saved a step."""
    if not (epath.Path(workdir) / CHECKPOINTS_FOLDER).exists():
        return False
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        return checkpoints.latest_step() is not None


def _check_arrays(stored: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Check that a checkpoint has the arrays of a model and its optimizer.

    Raises:
      ValueError: it has others; it names them.
    """
    here = {name: (tuple(array.shape), str(array.dtype)) for name, array in expected.items()}
    there = {name: (tuple(array["shape"]), array["dtype"]) for name, array in stored.items()}
    problems = [f"{name}: only in the checkpoint" for name in sorted(there.keys() - here.keys())]
    problems += [f"{name}: only in the run" for name in sorted(here.keys() - there.keys())]
    problems += [
        f"{name}: {there[name][0]} {there[name][1]} in the checkpoint, {here[name][0]} {here[name][1]} in the run"
        for name in sorted(here.keys() & there.keys())
        if here[name] != there[name]
    ]
    if problems:
        more = [f"and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
        raise _OtherArraysError(
            f"{where} is of another model, number of classes or optimizer:\n  "
            + "\n  ".join([*problems[:_NAMED], *more])
        )


def _model_part(state: TrainState) -> dict[str, PyTree]:
    return {"params": state.params, "ema_params": state.ema_params, "frozen": state.frozen}


def _training_part(state: TrainState) -> dict[str, PyTree]:
    return {"step": state.step, "opt_state": state.opt_state}


def _named(model: PyTree, training: PyTree) -> dict[str, Any]:
    """Return the arrays of both parts by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path({"model": model, "training": training})
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _abstract(array: Any) -> Any:
    if isinstance(array, np.ndarray):
        return array
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
