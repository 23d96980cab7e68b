"""Reading files that others made, and writing where others may have laid links or a kill may come between."""

import contextlib
import itertools
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

# Of files and folders that are being written, or were left by a process that was killed.
PARTIAL_SUFFIX = ".partial"
# What the annotations of a large dataset fill, and not yet the memory of a computer.
_LARGEST_JSON_BYTES = 2**33
# Entries that are coded at a time. Fewer or more are slower: the text of 100 COCO results stays in a processor's cache.
_ENTRIES_AT_A_TIME = 100


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a whole file, or leave what was there.

    The file is written under a fresh name in the same folder and renamed: a process that is killed leaves no half of
    it, and a symbolic link at `path` is replaced, not followed. Links on the way to the folder are followed.

    Raises:
      OSError: the folder does not exist or cannot be written to, the disk is full, or `path` is a folder.
    """
    write_parts(path, [content])


def write_parts(path: str | os.PathLike, parts: Iterable[bytes]) -> None:
    """Write a whole file of parts that are made one after the other, or leave what was there; see `write_bytes`.

    Raises: as `write_bytes`, and what making a part raises.
    """
    if "://" in os.fspath(path):
        # An object store: a write is whole or not at all, and there are no links.
        epath.Path(path).write_bytes(b"".join(parts))
        return
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL_SUFFIX}")
    try:
        with partial.open("xb") as file:
            file.writelines(parts)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value: Any, **format: Any) -> None:
    """Write a value as JSON, indented by 2 unless `format` says otherwise; see `json.dumps` and `write_bytes`.

    Raises:
      ValueError: a number is NaN or infinite.
    """
    write_text(path, json.dumps(value, allow_nan=False, **({"indent": 2} | format)) + "\n")


def write_json_list(path: str | os.PathLike, entries: Iterable) -> None:
    """Write a long list as JSON in one line: the bytes of `json.dumps` without spaces, made in parts.

    Raises: as `write_json`.
    """
    encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
    rest = iter(entries)
    groups = iter(lambda: list(itertools.islice(rest, _ENTRIES_AT_A_TIME)), [])
    parts = (("," if number else "") + encode(group)[1:-1] for number, group in enumerate(groups))
    write_parts(path, (part.encode() for part in itertools.chain("[", parts, ["]\n"])))


def read_json(path: str | os.PathLike, **options: Any) -> Any:
    """Read a JSON file; see `json.loads` for the options.

    Raises:
      OSError: it cannot be read.
      ValueError: it is no regular file, too large, or not JSON; the message names it.
    """
    where = epath.Path(path) if "://" in os.fspath(path) else pathlib.Path(path)
    if isinstance(where, pathlib.Path) and where.exists() and not where.is_file():
        # A pipe or a device may never end.
        raise ValueError(f"{path}: not a regular file; expected JSON")
    if isinstance(where, pathlib.Path) and (size := where.stat().st_size) > _LARGEST_JSON_BYTES:
        most = _LARGEST_JSON_BYTES / 2**30
        raise ValueError(f"{path}: the file has {size / 2**30:.1f} GiB; expected at most {most:.0f} GiB of JSON")
    with where.open("rb") as file:
        # Looked at before it is read: a file of zeros may be larger than the memory.
        beginning = file.read(4096)
        text = beginning.decode(json.detect_encoding(beginning), "ignore").lstrip("\ufeff \t\n\r")
        if not text or text[0] not in '{["-0123456789tfn':
            raise ValueError(f"{path}: not JSON: it begins with {beginning[:20]!r}")
        file.seek(0)
        content = file.read()
    try:
        text = content.decode(json.detect_encoding(content), "surrogatepass")
        # A large file, its text and what it says would be in memory together.
        del content
        return json.loads(text, **options)
    except RecursionError as error:
        raise ValueError(f"{path}: not usable JSON: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error


def folder_in(root: str | pathlib.Path, *names: object) -> pathlib.Path:
    """Return a folder below another, made if need be.

    Raises:
      ValueError: a symbolic link on the way leads out of `root`: it may lie in a run that somebody else has made.
    """
    if "://" in str(root):
        folder = epath.Path(root).joinpath(*map(str, names))
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    folder = pathlib.Path(root, *map(str, names))
    if not folder.resolve().is_relative_to(pathlib.Path(root).resolve()):
        raise ValueError(f"{folder} leads to {folder.resolve()}, out of {root}; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Make a folder that is whole or not there: what is written into the one that is given is renamed at the end.

    Raises:
      ValueError: there is something at `path` that is no empty folder.
      OSError: the folder above does not exist or cannot be written to.
    """
    path = pathlib.Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"the output {path} exists; expected a new or an empty folder")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"cannot make the folder {path}: there is no folder {path.absolute().parent}")
    with whole_folder(path) as partial:
        yield partial


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Write into a folder beside `path` that takes its name at the end, or is removed after an error.

    Raises:
      OSError: the folder above cannot be written to, or something but an empty folder is at `path` at the end.
    """
    path = pathlib.Path(path)
    partial = path.absolute().with_name(f".{path.absolute().name}.{secrets.token_hex(8)}{PARTIAL_SUFFIX}")
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
