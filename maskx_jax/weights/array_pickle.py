"""Arrays from pickles that cannot be trusted.

A pickle is a program for a small machine that can import and call whatever it names, and set attributes of what it
made. Here the machine has no other instructions than those that numbers, strings, lists, tuples and dictionaries need;
the names of the few functions that rebuild arrays stand for stand-ins of our own, which keep what they are given and
build an array only when it has been checked. It is Python's own interpreter in Python: the one in C has instructions
that cannot be taken away.

A few bytes can make a list that holds itself twice, forty levels deep. So nothing of a file is printed, compared or
hashed before its type is known to be flat, and what is copied is counted.
"""

import dataclasses
import math
import mmap
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

# What files of weights are made of; no sets, no classes, no instances, no extension registry, no out-of-band buffers.
_ADMITTED_OPCODES = (
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE"),
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE", "LIST", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("DICT", "EMPTY_DICT", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
)

# NumPy's own limit.
_MOST_DIMENSIONS = 64

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


@dataclasses.dataclass(slots=True)
class Storage:
    """A flat array of a PyTorch file; its bytes lie beside the pickle that names it."""

    dtype: np.dtype
    length: int
    values: np.ndarray | None = None

    @property
    def num_bytes(self) -> int:
        return self.length * self.dtype.itemsize

    def fill(self, content: bytes) -> None:
        """Take the bytes.

        Raises:
          ValueError: there are too few or too many.
        """
        if len(content) != self.num_bytes:
            raise ValueError(f"the file ends early: expected {self.num_bytes} bytes of a storage; found {len(content)}")
        self.values = np.frombuffer(content, self.dtype)


@dataclasses.dataclass(frozen=True, slots=True)
class _Function:
    """What the name of a function in a pickle stands for."""

    call: Callable[..., Any]


@dataclasses.dataclass(frozen=True, slots=True)
class _Tensor:
    """A view of a storage."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any

    def array(self) -> np.ndarray:
        if not isinstance(self.storage, Storage) or self.storage.values is None:
            raise ValueError("holds a tensor without a storage")
        values, itemsize = self.storage.values, self.storage.dtype.itemsize
        shape, strides = _whole_numbers(self.shape), _whole_numbers(self.strides)
        (offset,) = _whole_numbers((self.offset,))
        if len(shape) != len(strides) or math.prod(shape) > len(values):
            raise ValueError(f"got a tensor of shape {shape}, strides {strides} over {len(values)} elements")
        if math.prod(shape) == 0:
            return np.zeros(shape, values.dtype)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if last >= len(values):
            raise ValueError(f"got a tensor that reaches to element {last} of a storage of {len(values)}")
        in_bytes = tuple(stride * itemsize for stride in strides)
        return np.lib.stride_tricks.as_strided(values[offset:], shape, in_bytes, writeable=False)


class _Dtype:
    """A NumPy dtype; only plain numbers are admitted."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not code or code[0] not in "fiub" or not code[1:].isdigit():
            said = repr(code[:20]) if isinstance(code, str) else f"given by a {type(code).__name__}"
            raise ValueError(f"holds an array of dtype {said}; only plain numbers are read")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        """Take the byte order."""
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
            raise ValueError("holds an array of a dtype without byte order; only plain numbers are read")
        if any(part is not None for part in state[2:5]):
            raise ValueError("holds an array of a structured dtype; only plain numbers are read")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """A NumPy array, described at once or in two steps."""

    __slots__ = ("content", "dtype", "order", "shape")

    def __init__(self, content: Any = None, dtype: Any = None, shape: Any = (), order: Any = "C") -> None:
        self.content, self.dtype, self.shape, self.order = content, dtype, shape, order

    def set_state(self, state: Any) -> None:
        """Take version, shape, dtype, whether columns come first, and the bytes."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("holds an array without values")
        _, self.shape, self.dtype, is_fortran, self.content = state
        self.order = "F" if is_fortran is True or is_fortran == 1 else "C"

    def array(self) -> np.ndarray:
        if not isinstance(self.dtype, _Dtype):
            raise ValueError("holds an array without dtype; only plain numbers are read")
        # Python 2 wrote bytes as text.
        content = self.content.encode("latin1") if isinstance(self.content, str) else self.content
        if not isinstance(content, bytes | bytearray):
            raise ValueError(f"holds an array of {type(content).__name__}; only plain numbers are read")
        shape = _whole_numbers(self.shape)
        if math.prod(shape) * self.dtype.dtype.itemsize != len(content):
            raise ValueError(f"holds {len(content)} bytes for an array of shape {shape}, dtype {self.dtype.dtype}")
        return np.frombuffer(content, self.dtype.dtype).reshape(shape, order="F" if self.order == "F" else "C")


def build(value: Any) -> Any:
    """Return the array that a stand-in from a pickle stands for, and anything else as it is.

    Raises:
      ValueError: what the pickle says of the array does not fit together.
    """
    return value.array() if isinstance(value, _Tensor | _Array) else value


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or not all(type(n) is int and 0 <= n < 2**62 for n in values):
        raise ValueError("got sizes, strides or an offset that are no whole numbers")
    if len(values) > _MOST_DIMENSIONS:
        raise ValueError(f"got {len(values)} dimensions; expected at most {_MOST_DIMENSIONS}")
    return values


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or not isinstance(encoding, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("holds bytes in another encoding than latin1")
    return text.encode("latin1")


def _ordered_dict(items: Any = ()) -> dict:
    # Python 2 lists the items here; later ones set them afterwards, with keys that are checked.
    if not isinstance(items, list | tuple) or not all(isinstance(item, list) and len(item) == 2 for item in items):
        raise ValueError("holds an ordered dictionary of something else than pairs")
    return {_checked_key(key): value for key, value in items}


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> _Tensor:
    # requires_grad and hooks do not matter; a seventh argument would say that the values are negated or conjugated.
    if len(more) > 2 and more[2]:
        raise ValueError("holds a tensor that is a lazy negative or conjugate")
    return _Tensor(storage, offset, shape, strides)


def _first_step(*_: Any) -> _Array:
    return _Array()


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any] | None] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("_codecs", "encode"): _encode,
    # Named as the type to rebuild, never called.
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Dtype,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
}
# NumPy 2 renamed its core.
for _core in ("numpy.core", "numpy._core"):
    _FUNCTIONS[f"{_core}.multiarray", "_reconstruct"] = _first_step
    _FUNCTIONS[f"{_core}.multiarray", "scalar"] = lambda dtype, content: _Array(content, dtype)
    _FUNCTIONS[f"{_core}.numeric", "_frombuffer"] = _Array


def _checked_key(key: Any) -> Any:
    """Return a dictionary's key if it is plain: hashing a deep tuple would exhaust the stack of C."""
    if not (key is None or isinstance(key, str | bytes | float) or (isinstance(key, int) and key.bit_length() < 64)):
        raise ValueError(f"holds a dictionary with a key of type {type(key).__name__}; only plain keys are read")
    return key


class ArrayUnpickler(pickle._Unpickler):
    """Reads plain containers and stand-ins for arrays; everything else is refused with its name, and not imported.

    Args:
      file: with the pickle at its position. A read from it must not set aside more than there is: a pickle names its
        own lengths.
      size: of the whole file in bytes. A program that copies more elements than that is refused: one text or list can
        be named often, but what wrote the file named each once.

    Attributes:
      storages: of a PyTorch file, by key; to be filled before its arrays are built.
    """

    # Of the base class, which is typed without them.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(self, file: BinaryIO | mmap.mmap, size: int) -> None:
        # Python 2's byte strings, which Detectron's files are full of, become text.
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, Storage] = {}
        self._copies_left = size

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _TORCH_DTYPES:
            return np.dtype(_TORCH_DTYPES[name])
        if (module, name) not in _FUNCTIONS:
            # A name may hold anything, also what a terminal would obey.
            asked = f"{module}.{name}"[:200].encode("unicode_escape").decode("ascii")
            raise ValueError(
                f"the pickle asks for {asked}, which rebuilds no array; refused, nothing was run. Of a "
                "training checkpoint, save only the state dict"
            )
        call = _FUNCTIONS[module, name]
        return None if call is None else _Function(call)

    def persistent_load(self, pid: Any) -> Storage:
        # The legacy format has a sixth field for views of other storages, which is None in every state dict.
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or pid[5:] not in ((), (None,)):
            raise ValueError("holds a reference to something else than a storage")
        _, kind, key, _, length = pid[:5]
        (length,) = _whole_numbers((length,))
        if not isinstance(kind, np.dtype) or not isinstance(key, str):
            raise ValueError("holds a storage without type or key")
        storage = self.storages.setdefault(key, Storage(kind, length))
        if (storage.dtype, storage.length) != (kind, length):
            raise ValueError(f"storage {key} is named with two types or lengths")
        return storage

    def load_reduce(self) -> None:
        """Call a stand-in."""
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(function, _Function) or not isinstance(arguments, tuple):
            raise ValueError("calls what is no function; refused")
        self._count_copies(arguments)
        self.stack[-1] = function.call(*arguments)

    def load_build(self) -> None:
        """Tell a stand-in the rest; the attributes that torch gives its dictionaries are dropped."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _Array | _Dtype):
            self._count_copies(state)
            target.set_state(state)
        elif type(target) is not dict:
            raise ValueError(f"sets attributes of {type(target).__name__}; refused")

    def load_setitem(self) -> None:
        """Set an item of a dictionary."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        """Set items of a dictionary."""
        self._set_items(self.pop_mark())

    def load_dict(self) -> None:
        """Make a dictionary of items."""
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def load_bytearray8(self) -> None:
        """Read bytes; the base class would set aside as many as the file claims to have."""
        length = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(length)))

    def _count_copies(self, arguments: Any) -> None:
        values = (arguments, *arguments) if isinstance(arguments, tuple) else ()
        self._copies_left -= sum(len(value) for value in values if isinstance(value, str | list | tuple))
        if self._copies_left < 0:
            raise ValueError("copies its parts more often than any program that writes weights; refused")

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise ValueError(f"sets items of {type(target).__name__}; refused")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_checked_key(key)] = value


class _Instructions(dict):
    """Instructions by their byte; any other is refused by name."""

    def __missing__(self, code: int) -> Any:
        names = [opcode.name for opcode in pickletools.opcodes if opcode.code == chr(code)]
        raise ValueError(f"is no pickle of arrays: instruction {names[0] if names else code}; refused")


# The base class looks its methods up in a table.
_TABLE: dict[int, Callable] = pickle._Unpickler.dispatch
_CODES = [getattr(pickle, name)[0] for name in _ADMITTED_OPCODES]
ArrayUnpickler.dispatch = _Instructions({code: getattr(ArrayUnpickler, _TABLE[code].__name__) for code in _CODES})
