"""Arrays from other people's weight files, without running anything that a file asks for.

PyTorch's and Detectron's formats are pickles, and a pickle is a program: it may name any Python function and call it.
Here it may name only the few that rebuild arrays, and those are written out below, so that not even NumPy's own
reconstruction sees unchecked input. Everything else is refused with its name.
"""

import dataclasses
import io
import pathlib
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

# The legacy PyTorch format is five pickles (this number, the protocol, the machine, the object, the storages' keys) and
# then the storages' bytes.
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_PROTOCOL = 1001

_TORCH_DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Attributes:
      path: of the file, for messages.
      arrays: by the names of the code base that wrote it.
      author: what detectron2's files say of their origin; "" elsewhere.
    """

    path: pathlib.Path
    arrays: Mapping[str, np.ndarray]
    author: str = ""


def read_weight_file(path: str | pathlib.Path) -> WeightFile:
    """Read a `.safetensors`, `.pth` (both of PyTorch's formats), `.pkl` (Detectron, detectron2) or `.npz` file.

    The format is recognised by its content. A dictionary inside a dictionary under "model", "state_dict", "model_state"
    or "blobs", where training programs put the weights, is found.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the format is unknown, the file is damaged, or it holds something that is no array; a pickle that
        names a function which rebuilds no array is refused with that function's name.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of weights; found no file {path}")
    try:
        with path.open("rb") as file:
            start = file.read(9)
            file.seek(0)
            if start.startswith(b"PK"):
                content = _read_zip(file)
            elif path.suffix == ".safetensors" or start[8:9] == b"{":
                content = dict(load_file(path))
            else:
                content = _read_pickles(file)
    except (
        *(ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError, MemoryError),
        *(pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError, NotImplementedError, OSError, RecursionError),
    ) as error:
        # Whatever a damaged file makes the readers stumble over: one line that says which file it was.
        raise ValueError(f"{path}: cannot be read as weights: {str(error) or type(error).__name__}") from error
    arrays, author = _find_arrays(content, path)
    return WeightFile(path, arrays, author)


def _find_arrays(content: Any, path: pathlib.Path) -> tuple[dict[str, np.ndarray], str]:
    """Return the arrays of a nested dictionary's innermost part that training programs keep weights in."""
    author = ""
    while isinstance(content, dict):
        if isinstance(content.get("__author__"), str):
            author = content["__author__"]
        inner = [key for key in ("model", "state_dict", "model_state", "blobs") if isinstance(content.get(key), dict)]
        if not inner:
            break
        content = content[inner[0]]
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dictionary of arrays; found {type(content).__name__}")
    arrays = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
    others = {name: type(value).__name__ for name, value in content.items() if not isinstance(value, np.ndarray)}
    # Numbers and strings beside the weights (a year, a config) are no weights; a nested structure could hold some.
    nested = sorted(str(name) for name, kind in others.items() if kind in ("dict", "OrderedDict", "list", "tuple"))
    if not arrays or nested or not all(isinstance(name, str) for name in arrays):
        found = nested or sorted(map(str, others)) or sorted(map(str, content))
        raise ValueError(f"{path}: expected a dictionary from names to arrays; found {len(arrays)} arrays, {found[:5]}")
    return arrays, author


def _read_zip(file: BinaryIO) -> Any:
    """Read PyTorch's zip format, or NumPy's `.npz`."""
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            parts = pathlib.PurePosixPath(entry.filename.replace("\\", "/"))
            if parts.is_absolute() or ".." in parts.parts or ":" in entry.filename:
                raise ValueError(f"the archive's entry {entry.filename!r} points out of the archive; refused")
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
        unpickler = _ArrayUnpickler(io.BytesIO(archive.read(programs[0])))
        content = unpickler.load()
        for key, storage in unpickler.storages.items():
            entry = archive.getinfo(f"{root}data/{key}")
            if entry.file_size != storage.num_bytes:
                raise ValueError(f"storage {key}: expected {storage.num_bytes} bytes; found {entry.file_size}")
            storage.fill(archive.read(entry))
        return _resolve(content)


def _read_pickles(file: BinaryIO) -> Any:
    """Read one pickle of arrays (Detectron, detectron2), or PyTorch's legacy format."""
    content = _ArrayUnpickler(file).load()
    if content != _TORCH_MAGIC:
        return _resolve(content)
    protocol = _ArrayUnpickler(file).load()
    machine = _ArrayUnpickler(file).load()
    if protocol != _TORCH_PROTOCOL or not machine.get("little_endian"):
        raise ValueError(f"expected PyTorch's protocol {_TORCH_PROTOCOL}, little-endian; found {protocol}, {machine}")
    unpickler = _ArrayUnpickler(file)
    content = unpickler.load()
    for key in _ArrayUnpickler(file).load():
        storage = unpickler.storages[key]
        length = int.from_bytes(file.read(8), "little")
        if length != storage.length:
            raise ValueError(f"storage {key}: expected {storage.length} elements; found {length}")
        storage.fill(file.read(storage.num_bytes))
    return _resolve(content)


class _Storage:
    """A flat array of a PyTorch file; its bytes are read after the pickle that names it."""

    def __init__(self, dtype: Any, length: int) -> None:
        if not isinstance(length, int) or length < 0:
            raise ValueError(f"got a storage of length {length!r}")
        self.dtype, self.length = np.dtype(dtype), length
        self.values: np.ndarray | None = None

    @property
    def num_bytes(self) -> int:
        return self.length * self.dtype.itemsize

    def fill(self, content: bytes) -> None:
        if len(content) != self.num_bytes:
            raise ValueError(f"the file ends early: expected {self.num_bytes} bytes of a storage; found {len(content)}")
        self.values = np.frombuffer(content, self.dtype)


@dataclasses.dataclass
class _Tensor:
    """A view of a storage, resolved into an array once the storage is read."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        values, dtype = self.storage.values, self.storage.dtype
        numbers = (self.offset, *self.shape, *self.strides)
        if values is None or not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise ValueError(f"got a tensor of offset {self.offset}, shape {self.shape}, strides {self.strides}")
        if len(self.shape) != len(self.strides):
            raise ValueError(f"got a tensor of shape {self.shape} with strides {self.strides}")
        if 0 in self.shape:
            return np.zeros(self.shape, dtype)
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        if last >= len(values):
            raise ValueError(f"got a tensor that reaches to element {last} of a storage of {len(values)}")
        strides = tuple(stride * dtype.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides).copy()


class _Dtype:
    """A NumPy dtype as a pickle describes it; only plain numbers are admitted."""

    def __init__(self, code: str, *_: Any) -> None:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not code or code[0] not in "fiub" or not code[1:].isdigit():
            raise ValueError(f"holds an array of dtype {code!r}; only plain numbers are read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        byte_order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if byte_order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise ValueError(f"holds an array of a structured dtype {state!r}; only plain numbers are read")
        self.dtype = self.dtype.newbyteorder(byte_order)  # type: ignore[arg-type]

    def array(self, content: Any, shape: Any, order: str) -> np.ndarray:
        """Return the array with these bytes."""
        # Python 2 wrote bytes as text.
        content = content.encode("latin1") if isinstance(content, str) else content
        if not isinstance(content, bytes | bytearray):
            raise ValueError(f"holds an array of {type(content).__name__}; only plain numbers are read")
        return np.frombuffer(bytes(content), self.dtype).reshape(shape, order=order).copy()  # type: ignore[call-overload]


class _Array:
    """A NumPy array that a pickle builds in two steps."""

    def __init__(self, *_: Any) -> None:
        self.values: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        if not isinstance(dtype, _Dtype):
            raise ValueError(f"holds an array of dtype {dtype!r}; only plain numbers are read")
        self.values = dtype.array(content, shape, "F" if is_fortran else "C")

    def array(self) -> np.ndarray:
        if self.values is None:
            raise ValueError("holds an array without values")
        return self.values


def _from_buffer(content: Any, dtype: _Dtype, shape: Any, order: str) -> np.ndarray:
    return dtype.array(content, shape, order)


def _scalar(dtype: _Dtype, content: Any) -> Any:
    return dtype.array(content, (), "C").item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"holds bytes in the encoding {encoding!r}; expected latin1")
    return text.encode("latin1")


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError(f"holds a tensor over {type(storage).__name__}; expected a storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data: _Tensor, *_: Any) -> _Tensor:
    return data


def _no_array(*_: Any) -> Any:
    raise ValueError("calls numpy.ndarray; expected it as a type alone")


_ADMITTED: dict[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _no_array,
    ("numpy", "dtype"): _Dtype,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}
# NumPy 2 renamed its core.
for _core in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _Array
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _ArrayUnpickler(pickle.Unpickler):
    """Reads plain containers and arrays; anything else that a pickle names is refused, and not imported.

    Attributes:
      storages: of a PyTorch file, by key; to be filled by the caller.
    """

    def __init__(self, file: BinaryIO) -> None:
        # Python 2's byte strings, which Detectron's files are full of, become text.
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _TORCH_DTYPES:
            return _TORCH_DTYPES[name]
        if (module, name) not in _ADMITTED:
            raise ValueError(f"the pickle asks for {module}.{name}, which rebuilds no array; refused, nothing was run")
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        # The legacy format has a sixth field for views of other storages, which is None in every state dict.
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or pid[5:] not in ((), (None,)):
            raise ValueError(f"got the reference {pid!r}; expected a storage")
        _, dtype, key, _, length = pid[:5]
        if key not in self.storages:
            self.storages[key] = _Storage(dtype, length)
        return self.storages[key]


def _resolve(content: Any) -> Any:
    """Replace the stand-ins for arrays in nested containers by arrays."""
    if isinstance(content, _Tensor | _Array):
        return content.array()
    if isinstance(content, dict):
        return {key: _resolve(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(_resolve(value) for value in content)
    return content
