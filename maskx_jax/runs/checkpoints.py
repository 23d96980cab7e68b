"""Checkpoints, and the only place that knows Orbax.

A step's checkpoint has two parts: `model` (params, ema_params, frozen: what follow-up work loads) and `training`
(step, optimizer state). Beside them lies a `description`: the bijection between labels and category ids, so that a
checkpoint says what its outputs mean, and shape, type and fingerprint of every array, so that damage is noticed. It
carries a digest of itself.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import traverse_util
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN

from maskx_jax.coco.categories import Categories
from maskx_jax.distributed.processes import gather_objects
from maskx_jax.runs.fingerprints import fingerprints
from maskx_jax.structures import PyTree, TrainState

CHECKPOINTS_FOLDER = "checkpoints"
DAMAGED_FOLDER = "damaged_checkpoints"
# A step's folder: Orbax gives it its last name when it is whole, or (on object stores) marks it then.
_STEP_FOLDER = re.compile(r"\d+(\.orbax-checkpoint-tmp.*)?")
# Differing arrays that an error names.
_NAMED = 5
# Of TensorStore's errors (all are ValueErrors): these speak of a file's content, the others of reading it.
_CONTENT_STATUS = ("DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE")


class DamagedCheckpointError(ValueError):
    """A checkpoint's content is not what was written."""


class Checkpoints:
    """The checkpoints of one work directory, written in the background; a context manager that waits for the writes.

    Args:
      workdir: checkpoints go into its folder `checkpoints`.
      keep: number of latest checkpoints to keep.
      writes: whether this run owns the directory, and removes what an earlier one left half written.
    """

    def __init__(self, workdir: str | pathlib.Path, *, keep: int = 2, writes: bool = False) -> None:
        self._best = _Best()
        self._workdir = epath.Path(workdir).absolute()
        self._directory = self._workdir / CHECKPOINTS_FOLDER
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([LatestN(keep), self._best]),
                create=writes,
            ),
        )
        if writes and jax.process_index() == 0:
            self._remove_half_written()

    def latest_step(self) -> int | None:
        """Return the newest finished step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, categories: Categories, scores: Mapping[int, float] | None = None) -> None:
        """Start to write the state; an error of the previous write surfaces here.

        Args:
          state: to save, under its own step.
          categories: that the model knows.
          scores: of earlier steps; the checkpoint with the largest one is kept as well.

        Raises:
          OSError: this write or the one before failed.
        """
        self.check()
        self._best.scores = scores or {}
        step = int(state.step)
        model, training = _model_part(state), _training_part(state)
        arrays = _named(model, training)
        values = fingerprints(arrays)
        described = {
            name: {"shape": list(array.shape), "dtype": str(array.dtype), "fingerprint": values[name]}
            for name, array in arrays.items()
        }
        description: dict[str, Any] = {"categories": categories.to_coco(), "arrays": described}
        description["digest"] = _digest(description)
        with self._naming_the_last_good_one(f"the checkpoint of step {step}"):
            if not self._directory.exists() and "://" not in str(self._directory):
                # Orbax would make it anew, without the rest of the run.
                raise FileNotFoundError("the folder was deleted")
            # By force, because Orbax would else ask JAX's preemption service by step; `Interruption` asks it by poll.
            self._manager.save(
                step,
                force=True,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(model),
                    training=ocp.args.StandardSave(training),
                    description=ocp.args.JsonSave(description),
                ),
            )

    def wait(self) -> None:
        """Wait for the write in progress.

        Raises:
          OSError: it failed; the message names the last checkpoint that is whole.
        """
        with self._naming_the_last_good_one("a checkpoint"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

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
          DamagedCheckpointError: its content is not what was written.
          ValueError: it holds other arrays than `state`; it names them.
          OSError: it could not be read, which says nothing about its content.
        """
        step = self.existing_step(step)
        abstract = jax.tree.map(_abstract, state)
        model, training = _model_part(abstract), _training_part(abstract)
        with self._reading(step):
            description = self._describe(step)
            _check_arrays(description["arrays"], _named(model, training), self._name(step))
            items = {"model": ocp.args.StandardRestore(model), "training": ocp.args.StandardRestore(training)}
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
            self._verify(description, _named(restored["model"], restored["training"]))
        return _with_parts(abstract, restored["model"], restored["training"])

    def restore_newest(self, state: TrainState, log: Callable[[str], None]) -> TrainState:
        """Return the newest state that is whole; damaged checkpoints are put aside, and logged.

        A checkpoint counts as damaged where two readings say so. All processes take the same one.

        Raises:
          ValueError: the checkpoint is whole, but of other arrays than `state`.
          OSError: a checkpoint could not be read, which says nothing about its content; nothing was changed.
          RuntimeError: there is none that is whole.
        """
        while (step := self.latest_step()) is not None:
            for _ in range(2):
                restored, damage, failure = None, None, None
                try:
                    restored = self.restore(state, step)
                except DamagedCheckpointError as error:
                    damage = error
                except OSError as error:
                    failure = error
                outcomes = gather_objects([damage and str(damage), failure and str(failure)])
                failures = [text for _, text in outcomes if text]
                damages = [text for text, _ in outcomes if text]
                if failures:
                    raise OSError(f"{failures[0]}. Nothing was changed; start again when it can be read") from failure
                if not damages:
                    assert restored is not None
                    return restored
            place = self._put_aside(step)
            log(f"damaged: {damages[0]}; it is now {place}, and an older one is used")
        raise RuntimeError(f"all checkpoints in {self._directory} were damaged. {_put_aside_text(self._workdir)}")

    def restore_model(self, abstract_model: PyTree, step: int | None = None) -> tuple[PyTree, Categories]:
        """Return the `model` part of a checkpoint, shaped as `abstract_model`, and its categories.

        Raises: as `restore`.
        """
        step = self.existing_step(step)
        with self._reading(step):
            description = self._describe(step)
            stored = {name: array for name, array in description["arrays"].items() if name.startswith("model/")}
            _check_arrays(stored, _named(abstract_model, {}), self._name(step))
            items = {"model": ocp.args.StandardRestore(abstract_model)}
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
            self._verify(description, _named(restored["model"], {}))
        return restored["model"], _categories(description)

    def categories(self, step: int | None = None) -> Categories:
        """Return the categories of a checkpoint.

        Raises: as `restore`.
        """
        step = self.existing_step(step)
        with self._reading(step):
            return _categories(self._describe(step))

    def close(self) -> None:
        """Wait for the write in progress.

        Raises:
          OSError: it failed.
        """
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        # After an error a write that fails too must not hide it.
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.close()

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

    def _remove_half_written(self) -> None:
        """Remove what a killed run was writing. Orbax would in a thread that nothing waits for, not even `close`."""
        finished = {str(step) for step in self._manager.all_steps()}
        for path in self._directory.iterdir():
            if _STEP_FOLDER.fullmatch(path.name) and path.name not in finished and path.is_dir():
                path.rmtree()

    def _name(self, step: int) -> str:
        return f"checkpoint {step} in {self._directory}"

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Name the checkpoint, and tell damage from a reading that failed."""
        try:
            yield
        except _OtherArraysError:
            raise
        except Exception as error:  # Whatever Orbax and TensorStore raise.
            is_there = (self._directory / str(step)).exists()
            if is_there and _speaks_of_content(error):
                raise DamagedCheckpointError(f"{self._name(step)}: {_cause(error)}") from error
            raise OSError(f"{self._name(step)} could not be read: {_cause(error)}") from error

    def _describe(self, step: int) -> dict[str, Any]:
        restored = self._manager.restore(step, args=ocp.args.Composite(description=ocp.args.JsonRestore()))
        description = restored["description"]
        if not (isinstance(description, dict) and {"categories", "arrays"} <= description.keys()):
            raise DamagedCheckpointError("its description has no categories and arrays")
        digest = description.pop("digest", None)  # Earlier versions wrote none.
        if digest is not None and digest != _digest(description):
            raise DamagedCheckpointError("its description is not as it was written")
        return description

    def _verify(self, description: dict[str, Any], arrays: Mapping[str, Any]) -> None:
        """Check that what was read is what was written.

        Raises:
          DamagedCheckpointError: it is not; it names the arrays.
        """
        stored = description["arrays"]
        broken = [name for name, value in fingerprints(arrays).items() if value != stored[name]["fingerprint"]]
        if broken:
            raise DamagedCheckpointError(
                f"{len(broken)} of {len(stored)} arrays are not as they were written, such as {broken[0]}"
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
    def _naming_the_last_good_one(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise OSError(
                f"{what} could not be written to {self._directory}: {_cause(error)}; {self._last_good_one()}"
            ) from error

    def _last_good_one(self) -> str:
        try:
            steps = [int(path.name) for path in self._directory.iterdir() if path.name.isdigit()]
        except OSError as error:
            return f"that folder cannot be read either ({_cause(error)}): what was saved in it may be lost"
        if not steps and (earlier := self._manager.all_steps()):
            return f"those of steps {sorted(earlier)} are gone. Put them back, or take another work directory"
        if not steps:
            return "there is no other one. Start the command again when it can be written"
        return (
            f"the last good one is of step {max(steps)}. Start the command again when it can be written: the run goes "
            f"on from step {max(steps)}"
        )


class _Best:
    """Orbax's rule for the checkpoints to keep: that with the largest score, the latest of equal ones."""

    def __init__(self) -> None:
        self.scores: Mapping[int, float] = {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        scored = [(self.scores[info.step], info.step) for info in checkpoints if info.step in self.scores]
        best = max(scored)[1] if scored else None
        return [info.step == best for info in checkpoints]


class _OtherArraysError(ValueError):
    """A checkpoint is of another model."""


def quiet() -> None:
    """Keep Orbax from writing pages about an error: it is raised here, and said in one line."""
    logging.get_absl_handler().addFilter(lambda record: "orbax" not in pathlib.Path(record.pathname).parts)
    # Its other writes end after the one that failed, and find their event loop closed.
    hook = sys.unraisablehook

    def unraisable(unraised: Any) -> None:
        frames = traceback.extract_tb(unraised.exc_traceback)
        if not (frames and "asyncio" in pathlib.Path(frames[-1].filename).parts):
            hook(unraised)

    sys.unraisablehook = unraisable


def has_checkpoint(workdir: str | pathlib.Path) -> bool:
    """Return whether a run in this work directory has saved a step."""
    if not (epath.Path(workdir) / CHECKPOINTS_FOLDER).exists():
        return False
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.latest_step() is not None


def check_beginning(workdir: str | pathlib.Path) -> None:
    """Check that a run without a checkpoint may begin at step 0.

    Raises:
      RuntimeError: it had checkpoints, and all of them were put aside as damaged.
    """
    if (epath.Path(workdir) / DAMAGED_FOLDER).exists():
        raise RuntimeError(f"{workdir} has no checkpoint left. {_put_aside_text(workdir)}")


def _put_aside_text(workdir: str | pathlib.Path | epath.Path) -> str:
    return (
        f"The damaged ones are in {epath.Path(workdir) / DAMAGED_FOLDER}. Put a good copy of one into "
        f"{CHECKPOINTS_FOLDER}, or give --restart to begin at step 0"
    )


def _speaks_of_content(error: BaseException) -> bool:
    """Return whether an error says that files are missing or do not parse, and not that reading them failed."""
    content = isinstance(error, DamagedCheckpointError | KeyError | ValueError | FileNotFoundError | IsADirectoryError)
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause)
        status = re.match(r"([A-Z_]+): ", text)
        if (
            isinstance(cause, MemoryError)
            or (isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError | IsADirectoryError))
            or (status and status[1] not in _CONTENT_STATUS)
            or (re.search("OS error|os_error_code", text) and not text.startswith("NOT_FOUND"))
        ):
            return False
        cause = cause.__cause__ or cause.__context__
    return content


def _cause(error: BaseException) -> str:
    """Return the first line of an error, of TensorStore's what the system said; its type where it says nothing."""
    if said := re.search(r": ([A-Z][a-z ]+) \[os_error_code", str(error)):
        return said[1]
    first = str(error).strip().partition("\n")[0].partition(" [tensorstore_spec")[0]
    if isinstance(error, DamagedCheckpointError):
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _categories(description: Mapping[str, Any]) -> Categories:
    try:
        return Categories.in_label_order(description["categories"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedCheckpointError(f"its description has no categories: {_cause(error)}") from error


def _digest(description: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


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
    # Which of the parameters are trained is the run's business: what is loaded has them all.
    return {"params": state.params, "ema_params": state.average_params, "frozen": state.frozen}


def _training_part(state: TrainState) -> dict[str, PyTree]:
    return {"step": state.step, "opt_state": state.opt_state}


def _with_parts(state: TrainState, model: dict[str, PyTree], training: dict[str, PyTree]) -> TrainState:
    """Return the state with what a checkpoint holds of it: the inverse of `_model_part` and `_training_part`."""
    return dataclasses.replace(
        state,
        trained=_leaves_of(state.trained, model["params"]),
        untrained=_leaves_of(state.untrained, model["params"]),
        frozen=model["frozen"],
        average=None if state.average is None else _leaves_of(state.average, model["ema_params"]),
        **training,
    )


def _leaves_of(part: PyTree, tree: PyTree) -> PyTree:
    """Return the leaves of a nested dict that stand where those of a part of it do."""
    flat = traverse_util.flatten_dict(tree)
    return traverse_util.unflatten_dict({path: flat[path] for path in traverse_util.flatten_dict(part)})


def _named(model: PyTree, training: PyTree) -> dict[str, Any]:
    """Return the arrays of both parts by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path({"model": model, "training": training})
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _abstract(array: Any) -> Any:
    if isinstance(array, np.ndarray):
        return array
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
