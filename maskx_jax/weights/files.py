"""Arrays from other people's weight files, without running anything that a file asks for."""

import dataclasses
import io
import json
import mmap
import pathlib
import zipfile
from collections.abc import Collection, Mapping, Sequence
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from maskx_jax.runs.upgrade import upgrade_name
from maskx_jax.weights.array_pickle import ArrayUnpickler, build

# The legacy PyTorch format is five pickles (this number, the protocol, the machine, the object, the storages' keys) and
# then the storages' bytes.
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_PROTOCOL = 1001
# Where training programs put the weights among other things.
_WRAPPERS = ("model", "state_dict", "model_state", "blobs")
# Weights hardly shrink; zeros do. More than this many bytes from one of the file is no file of weights.
_MOST_INFLATION = 100
# What data parallelism, training wrappers and torch.compile put before every name.
_PREFIXES = ("module.", "model.", "_orig_mod.")


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What our own export writes beside the arrays of a `.safetensors` file.

    Attributes:
      categories: the `categories` list of a COCO file, in label order.
      epsilon: of the BatchNorm; None in exports from before it was written.
      conventions: fields of the config that the weights were trained with, by dotted name.
    """

    categories: Sequence[Mapping[str, Any]]
    epsilon: float | None = None
    conventions: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in label order."""
        return tuple(category["name"] for category in self.categories)

    def to_text(self) -> dict[str, str]:
        """Return what `from_text` reads."""
        return {field.name: json.dumps(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_text(cls, text: Mapping[str, str]) -> "Metadata | None":
        """Return what the metadata of a file say; None if they are not ours.

        Raises:
          ValueError: they are damaged.
        """
        if "categories" not in text:
            return None
        try:
            found = cls(
                **{field.name: json.loads(text[field.name]) for field in dataclasses.fields(cls) if field.name in text}
            )
            is_whole = (
                all(isinstance(name, str) for name in found.classes)
                and len(set(found.classes)) == len(found.classes) > 0
                and (found.epsilon is None or (isinstance(found.epsilon, float) and 0 <= found.epsilon < 1))
            )
            conventions = {
                upgrade_name(field): tuple(value) if isinstance(value, list) else value
                for field, value in found.conventions.items()
            }
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError("damaged metadata: categories, epsilon or conventions cannot be read") from error
        if not is_whole:
            raise ValueError("damaged metadata: expected categories with different names, and an epsilon from 0 to 1")
        return dataclasses.replace(found, conventions=conventions)


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Attributes:
      path: of the file, for messages.
      arrays: by the names of the code base that wrote it; read-only.
      author: what detectron2's files say of their origin; "" elsewhere.
      prefix: that all names had in the file, such as "module."; "" where they had none.
      metadata: what our own export says of its file; None of others.
    """

    path: pathlib.Path
    arrays: Mapping[str, np.ndarray]
    author: str = ""
    prefix: str = ""
    metadata: Metadata | None = None


def read_weight_file(path: str | pathlib.Path) -> WeightFile:
    """Read a `.safetensors`, `.pth` (both of PyTorch's formats), `.pkl` (Detectron, detectron2) or `.npz` file.

    The format is recognised by its content. A dictionary inside a dictionary under "model", "state_dict", "model_state"
    or "blobs", where training programs put the weights, is found.

    Raises:
      FileNotFoundError: there is no such file.
      OSError: the file cannot be opened.
      ValueError: the format is unknown, the file is damaged, or it holds something that is no array of numbers; a
        pickle that names a function which rebuilds no array is refused with that function's name.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of weights; found no file {path}")
    with path.open("rb") as file:
        try:
            return _read(path, file)
        except Exception as error:
            # Whatever a damaged file makes the readers stumble over: one line that says which file it was.
            reason = " ".join(str(error).split())[:300]
            if not isinstance(error, ValueError | OSError | zipfile.BadZipFile):
                reason = f"{type(error).__name__} {reason}".strip()
            raise ValueError(f"{path}: cannot be read as weights: {reason}") from error


def _read(path: pathlib.Path, file: BinaryIO) -> WeightFile:
    metadata = None
    start = file.read(9)
    if start.startswith(b"PK"):
        content = _read_zip(file)
    elif path.suffix == ".safetensors" or start[8:9] == b"{":
        content, metadata = _read_safetensors(path)
    else:
        content = _read_pickles(file)
    arrays, author = _find_arrays(content)
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub" and array.dtype != ml_dtypes.bfloat16:
            raise ValueError(f"{name!r} is of dtype {array.dtype}; only plain numbers are read")
    prefix = _common_prefix(arrays)
    return WeightFile(path, {name[len(prefix) :]: arrays[name] for name in arrays}, author, prefix, metadata)


def _common_prefix(names: Collection[str]) -> str:
    """Return what of `_PREFIXES`, also several in a row, all names begin with."""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in names):
            return prefix + _common_prefix([name.removeprefix(prefix) for name in names])
    return ""


def _find_arrays(content: Any) -> tuple[dict[str, np.ndarray], str]:
    """Return the arrays of a nested dictionary's innermost part that training programs keep weights in."""
    author, above = "", set[int]()
    while isinstance(content, dict):
        if isinstance(content.get("__author__"), str):
            author = content["__author__"]
        inner = [key for key in _WRAPPERS if isinstance(content.get(key), dict)]
        if not inner:
            break
        above.add(id(content))
        content = content[inner[0]]
        if id(content) in above:
            raise ValueError("holds a dictionary that contains itself")
    if not isinstance(content, dict):
        raise ValueError(f"expected a dictionary of arrays; found {type(content).__name__}")
    built = {name: build(value) for name, value in content.items()}
    arrays = {name: value for name, value in built.items() if isinstance(value, np.ndarray)}
    # Numbers and strings beside the weights (a year, a config) are no weights; a nested structure could hold some.
    nested = sorted(str(name) for name, value in built.items() if isinstance(value, dict | list | tuple))
    if not arrays or nested or not all(isinstance(name, str) for name in arrays):
        found = nested or sorted(map(str, built))
        raise ValueError(f"expected a dictionary from names to arrays; found {len(arrays)} arrays, {found[:5]}")
    return arrays, author


def _read_safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], Metadata | None]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return arrays, Metadata.from_text(file.metadata() or {})


def _read_zip(file: BinaryIO) -> Any:
    """Read PyTorch's zip format, or NumPy's `.npz`."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        for entry in entries:
            parts = pathlib.PurePosixPath(entry.filename.replace("\\", "/"))
            if parts.is_absolute() or ".." in parts.parts or ":" in entry.filename:
                raise ValueError(f"the archive's entry {entry.filename!r} points out of the archive; refused")
            # Python unpacks the other methods in one piece, however large it gets.
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(
                    f"the archive's entry {entry.filename!r} is packed by method {entry.compress_type}; expected "
                    f"stored ({zipfile.ZIP_STORED}) or deflated ({zipfile.ZIP_DEFLATED})"
                )
        # No entry is read beyond the size that it declares; the sizes of packed entries may be lies.
        packed, size = file.seek(0, io.SEEK_END), sum(entry.file_size for entry in entries)
        if size > _MOST_INFLATION * packed + 2**20:
            raise ValueError(f"unpacks from {packed} to {size} bytes; refused")
        names = archive.namelist()
        programs = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if names and all(name.endswith(".npy") for name in names):
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        if len(programs) != 1:
            raise ValueError(f"a zip file, but neither PyTorch's (a data.pkl) nor NumPy's (.npy): holds {names[:3]}")
        root = programs[0].removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("written on a big-endian machine; only little-endian files are read")
        program = archive.read(programs[0])
        unpickler = ArrayUnpickler(io.BytesIO(program), len(program))
        content = unpickler.load()
        for key, storage in unpickler.storages.items():
            entry = archive.getinfo(f"{root}data/{key}")
            if entry.file_size != storage.num_bytes:
                raise ValueError(f"storage {key}: expected {storage.num_bytes} bytes; found {entry.file_size}")
            storage.fill(archive.read(entry))
        return content


def _read_pickles(file: BinaryIO) -> Any:
    """Read one pickle of arrays (Detectron, detectron2), or PyTorch's legacy format."""
    # Mapped, because a read from it never sets aside more memory than the file has bytes.
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as source:
        size = len(source)
        content = ArrayUnpickler(source, size).load()
        if type(content) is not int or content != _TORCH_MAGIC:
            return content
        protocol, machine = ArrayUnpickler(source, size).load(), ArrayUnpickler(source, size).load()
        if protocol != _TORCH_PROTOCOL or not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise ValueError(f"expected PyTorch's protocol {_TORCH_PROTOCOL} of a little-endian machine")
        unpickler = ArrayUnpickler(source, size)
        content, keys = unpickler.load(), ArrayUnpickler(source, size).load()
        if not isinstance(keys, list) or not all(isinstance(key, str) and key in unpickler.storages for key in keys):
            raise ValueError("expected a list of the storages' keys after the object")
        for key in keys:
            storage = unpickler.storages[key]
            length = int.from_bytes(source.read(8), "little")
            if length != storage.length:
                raise ValueError(f"storage {key}: expected {storage.length} elements; found {length}")
            storage.fill(source.read(storage.num_bytes))
        return content
