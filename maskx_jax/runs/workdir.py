"""The work directory of a run: its config, and that only one run at a time writes into it."""

import fcntl
import json
import os
import pathlib
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from maskx_jax.coco.categories import Categories
from maskx_jax.data.records import Source
from maskx_jax.distributed import processes
from maskx_jax.errors import one_line, some
from maskx_jax.files import write_json
from maskx_jax.runs.upgrade import upgrade

CONFIG_FILE = "config.json"
DATA_FILE = "data.json"
ENVIRONMENT_FILE = "environment.json"
LOCK_FILE = "lock"

# What loading and evaluating a run read of its config; what a family reads of its section is checked where it is built.
_READ: Mapping[str, Any] = {
    "seed": int,
    "model.family": str,
    "model.dtype": str,
    "model.max_detections": int,
    "model.pixels": Mapping,
    "model.backbone": Mapping,
    "model.backbone.kind": str,
    "optimizer.ema_decay": int | float | None,
    "data.directory": str | None,
    **dict.fromkeys([f"data.{name}" for name in ("source", "eval_split", "loader")], str),
    "data.mask_classes": object,
    "data.num_workers": int | None,
    "data.read_ahead": int,
    "data.shapes": Mapping,
    "data.transform": Mapping,
    **dict.fromkeys(["evaluation.batch_size", "evaluation.num_pictures"], int),
    **dict.fromkeys(["evaluation.mask_threshold", "evaluation.picture_score_threshold"], int | float),
    "evaluation.mask_classes": object,
    "evaluation.boundary": bool,
    "evaluation.backend": str,
    "train.num_steps": int,
}


def write_config(workdir: str | pathlib.Path, config: ConfigDict) -> None:
    """Write the config into the work directory, whole or not at all."""
    directory = epath.Path(workdir)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / CONFIG_FILE, config.to_dict())


def read_config(workdir: str | pathlib.Path) -> ConfigDict:
    """Read the config of a run; one of an earlier version is brought into the form of this one.

    Raises:
      FileNotFoundError: the directory holds no run.
      ValueError: the file does not hold the config of a run; the message names it.
    """
    path = epath.Path(workdir) / CONFIG_FILE
    if not path.exists():
        raise FileNotFoundError(f"expected the work directory of a run; found no {path}")
    return config_from(read_mapping(path, "the config of a run"), path)


def config_from(fields: Mapping[str, Any], path: epath.Path) -> ConfigDict:
    """Return the config of a run, in the form of this version.

    Args:
      fields: as they were read, of any version.
      path: of the file, for messages.

    Raises:
      ValueError: they are not those of the config of a run.
    """
    config = upgrade(fields)
    for name, kind in _READ.items():
        value: Any = config
        for key in name.split("."):
            if not isinstance(value, Mapping) or key not in value:
                raise ValueError(f"{path}: found no {name}; expected the config of a run")
            value = value[key]
        if not isinstance(value, kind):
            raise ValueError(f"{path}: {name} is {value!r}; expected {getattr(kind, '__name__', kind)}")
    return ConfigDict(config)


def read_mapping(path: epath.Path, what: str) -> dict[str, Any]:
    """Read a JSON file that holds a mapping; its lists become tuples.

    Raises:
      ValueError: it holds something else than `what` says.
      OSError: it cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_hook=_lists_to_tuples)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({one_line(error)}); expected {what}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}; expected {what}")
    return value


def write_description(
    workdir: str | pathlib.Path,
    config: ConfigDict,
    source: Source,
    groups: Mapping[str, Sequence[int]],
    environment: Mapping[str, Any],
) -> None:
    """Write down what a run is.

    Args:
      workdir: of the run.
      config: of the run.
      source: of its training data.
      groups: category ids by the name of the group that they are scored in.
      environment: where it runs; see `environment.describe_environment`.

    Raises:
      OSError: the directory cannot be written to.
    """
    name_of_id = dict(zip(source.categories.ids, source.categories.names, strict=True))
    names = {group: [name_of_id[i] for i in members] for group, members in groups.items()}
    write_config(workdir, config)
    write_json(epath.Path(workdir) / DATA_FILE, {"train": source.identity, "groups": names})
    write_json(epath.Path(workdir) / ENVIRONMENT_FILE, dict(environment))


def check_data_identity(workdir: str | pathlib.Path, identity: Mapping[str, Any]) -> None:
    """Check that a run goes on with the training data that it began with; runs of earlier versions do not say.

    Raises:
      ValueError: it is other data; the message names what differs.
    """
    begun = _read_data(workdir).get("train")
    if begun is None:
        return
    now = json.loads(json.dumps(dict(identity)), object_hook=_lists_to_tuples)
    changed = [
        f"{name}: {_shortened(begun.get(name))} -> {_shortened(now.get(name))}"
        for name in {**begun, **now}
        if begun.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            "the run in this work directory was begun with other training data:\n  "
            + "\n  ".join(changed)
            + "\nTake another work directory, or give --change_config to go on with these data."
        )


def read_groups(workdir: str | pathlib.Path, categories: Categories) -> dict[str, list[int]] | None:
    """Return the category ids of each group that a run is scored in; None for runs that do not say.

    Raises:
      ValueError: the file is damaged, or names other classes.
    """
    names = read_group_names(workdir)
    if names is None:
        return None
    return {group: categories.ids_of_names(names[group]) for group in names}


def read_group_names(workdir: str | pathlib.Path) -> dict[str, tuple[str, ...]] | None:
    """Return the names of the classes in each group that a run is scored in; None for runs that do not say.

    Raises:
      ValueError: the file is damaged.
    """
    return _read_data(workdir).get("groups")


def check_resumable(begun: ConfigDict, config: ConfigDict) -> None:
    """Check that a run may go on with another config than it was begun with.

    Fields that one of the two does not have are of another version of the code, and pass.

    Args:
      begun: config that the run was begun with.
      config: to go on with; `config.may_change` names the fields and sections that may differ.

    Raises:
      ValueError: fields differ that decide on the examples, the model or the updates; it names them.
    """
    changed = changed_fields(begun, config)
    if config.optimizer.schedule == "step":
        # Its learning rate does not depend on where the run ends.
        changed.pop("train.num_steps", None)
    if changed:
        raise ValueError(
            "the run in this work directory was begun with another config:\n  "
            + "\n  ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in changed.items())
            + "\nTake another work directory, or give --change_config to go on with the new values."
        )


def changed_fields(begun: ConfigDict, config: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Return the values in both configs of the fields that differ, but for those that a run may change, by name.

    Fields that one of the two does not have are of another version of the code, and pass.
    """
    free = ("may_change", *config.get("may_change", ()))
    old, new = _flat(begun.to_dict()), _flat(config.to_dict())
    return {
        name: (old[name], new[name])
        for name in sorted(old.keys() & new.keys())
        if old[name] != new[name] and not any(name == part or name.startswith(f"{part}.") for part in free)
    }


def lock(workdir: str | pathlib.Path) -> "Lock":
    """Return the lock of a work directory, or raise on all processes what the first one met.

    Raises:
      ValueError: another run has it.
      OSError: the directory cannot be written to.
    """
    locks = [Lock("none://")]
    processes.from_first_process(lambda: locks.append(Lock(workdir)))
    return locks[-1]


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
            # Not through a link, which may lead to a file of somebody else.
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+")
        except OSError as error:
            raise OSError(f"cannot write into the work directory {workdir}: {error}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = file.read().strip()
            file.close()
            raise ValueError(f"another run writes into {workdir}: process {owner}") from error
        except OSError as error:
            logging.warning("%s: no lock (%s); see to it that no other run writes into this directory", path, error)
        file.truncate(0)
        file.write(f"{os.getpid()} of {os.uname().nodename}")
        file.flush()
        self._file = file

    def close(self) -> None:
        """Give the directory free."""
        if self._file is not None:
            self._file.close()


def _read_data(workdir: str | pathlib.Path) -> dict[str, Any]:
    """Return what a run says of its training data; nothing for runs of earlier versions."""
    path = epath.Path(workdir) / DATA_FILE
    data = read_mapping(path, "what a run says of its data") if path.exists() else {}
    if not all(isinstance(value, Mapping) for value in data.values()):
        raise ValueError(f"{path}: expected what a run says of its data, its sections being mappings")
    return data


def _shortened(value: Any) -> str:
    return reprlib.repr(value) if not isinstance(value, tuple) else f"{len(value)} of them, {some(value)}"


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
