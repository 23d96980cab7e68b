"""The work directory of a run: its config, and that only one run at a time writes into it."""

import fcntl
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from maskx_jax.training.distributed import gather_objects

CONFIG_FILE = "config.json"
LOCK_FILE = "lock"

# What a run may be continued with other than it was begun with: nothing that decides on examples, model or updates.
HARMLESS = (
    r"evaluation\..*",
    r"initialize\..*",  # Used at the beginning alone.
    r"distributed\..*",
    r"watchdog\..*",
    r"data\.(directory|eval_split|loader|num_workers|prefetch|max_broken_records)",
    r"data\.shapes\.num_eval",
    r"model\.backbone\.remat",
    r"train\.(log_every|checkpoint_every|eval_every|keep_checkpoints|best_metric|state_sharding)",
)


def write_config(workdir: str | pathlib.Path, config: ConfigDict) -> None:
    """Write the config into the work directory."""
    directory = epath.Path(workdir)
    directory.mkdir(parents=True, exist_ok=True)
    # Renamed into its place: a run that is killed here leaves a whole one.
    temporary = directory / f"{CONFIG_FILE}.tmp"
    temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    temporary.replace(directory / CONFIG_FILE)


def read_config(workdir: str | pathlib.Path) -> ConfigDict:
    """Read the config of a run.

    Raises:
      FileNotFoundError: the directory holds no run.
    """
    path = epath.Path(workdir) / CONFIG_FILE
    if not path.exists():
        raise FileNotFoundError(f"expected the work directory of a run; found no {path}")
    return ConfigDict(json.loads(path.read_text(), object_hook=_lists_to_tuples))


def check_resumable(begun: ConfigDict, config: ConfigDict) -> None:
    """Check that a run may go on with another config than it was begun with.

    Fields that one of the two does not have are of another version of the code, and pass.

    Raises:
      ValueError: fields differ that decide on the examples, the model or the updates; it names them.
    """
    harmless = list(HARMLESS)
    if config.optimizer.schedule == "step":
        # Its learning rate does not depend on where the run ends.
        harmless.append(r"train\.num_steps")
    old, new = _flat(begun.to_dict()), _flat(config.to_dict())
    changed = [
        f"{name}: {old[name]!r} -> {new[name]!r}"
        for name in sorted(old.keys() & new.keys())
        if old[name] != new[name] and not any(re.fullmatch(pattern, name) for pattern in harmless)
    ]
    if changed:
        raise ValueError(
            "the run in this work directory was begun with another config:\n  "
            + "\n  ".join(changed)
            + "\nTake another work directory, or give --change_config to go on with the new values."
        )


def lock(workdir: str | pathlib.Path) -> "Lock":
    """Return the lock of a work directory, or raise on all processes what the first one met.

    Raises:
      ValueError: another run has it.
      OSError: the directory cannot be written to.
    """
    own, problem = None, None
    if jax.process_index() == 0:
        try:
            own = Lock(workdir)
        except (OSError, ValueError) as error:
            problem = error
    told = gather_objects(None if problem is None else str(problem))[0]
    if problem is not None:
        raise problem
    if told is not None:
        raise ValueError(told)
    return own or Lock("none://")


class Lock:
    """Only one run at a time writes into a work directory.

    The lock goes with the process, however it ends. Storage that is not a file system of this host (`gs://...`) has
    none.
    """

    def __init__(self, workdir: str | pathlib.Path) -> None:
        self._file = None
        if "://" in str(workdir):
            return
        path = pathlib.Path(workdir) / LOCK_FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except OSError as error:
            raise OSError(f"cannot write into the work directory {workdir}: {error}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip()
            file.close()
            raise ValueError(f"another run writes into {workdir}: process {owner}") from error
        file.truncate(0)
        file.write(f"{os.getpid()} of {os.uname().nodename}")
        file.flush()
        self._file = file

    def close(self) -> None:
        """Give the directory free."""
        if self._file is not None:
            self._file.close()


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = tuple(value) if isinstance(value, list) else value
    return flat


def _lists_to_tuples(mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in mapping.items()}
