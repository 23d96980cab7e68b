"""PyTorch's two file formats, written without PyTorch."""

import collections
import dataclasses
import io
import pickle
import struct
import sys
import types
import zipfile

import numpy as np

_STORAGES = {"float32": "FloatStorage", "float64": "DoubleStorage", "int64": "LongStorage", "float16": "HalfStorage"}


@dataclasses.dataclass(eq=False)
class Tensor:
    """A view of a flat array; all of it in C order if nothing else is said."""

    values: np.ndarray
    offset: int = 0
    shape: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

    def __reduce__(self):
        shape = self.values.shape if self.shape is None else self.shape
        strides = (
            tuple(s // self.values.itemsize for s in self.values.strides) if self.strides is None else self.strides
        )
        storage = _Storage(self.values)
        return _rebuild_tensor_v2, (storage, self.offset, shape, strides, False, collections.OrderedDict())


class _Storage:
    def __init__(self, values):
        self.values = values


def _rebuild_tensor_v2(*_):
    raise AssertionError("a name to pickle, never called")


class _Pickler(pickle.Pickler):
    """Writes the names that torch.save writes; keeps the storages, one for each array."""

    def __init__(self, file, with_view):
        super().__init__(file, protocol=2)
        self.storages = []
        self._with_view = with_view

    def persistent_id(self, obj):
        if not isinstance(obj, _Storage):
            return None
        if not any(obj.values is values for values in self.storages):
            self.storages.append(obj.values)
        key = next(str(i) for i, values in enumerate(self.storages) if values is obj.values)
        kind = getattr(sys.modules["torch"], _STORAGES[obj.values.dtype.name])
        fields = ("storage", kind, key, "cpu", obj.values.size)
        return (*fields, None) if self._with_view else fields


def _pickled(content, with_view=False):
    """Pickle with stand-ins for the modules that torch.save names."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in _STORAGES.values():
        kind = type(name, (), {"__module__": "torch", "__qualname__": name})
        setattr(torch, name, kind)
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    stands_in = _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__
    _rebuild_tensor_v2.__module__ = "torch._utils"
    sys.modules.update({"torch": torch, "torch._utils": utils})
    try:
        file = io.BytesIO()
        pickler = _Pickler(file, with_view)
        pickler.dump(content)
    finally:
        del sys.modules["torch"], sys.modules["torch._utils"]
        _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = stands_in
    return file.getvalue(), pickler.storages


def _state_dict(tensors, extra):
    content = collections.OrderedDict(tensors)
    if extra is not None:
        content["extra"] = extra
    # torch keeps the versions of modules as an attribute of the dictionary.
    content._metadata = collections.OrderedDict({"": {"version": 1}})
    return content


def zip_archive(tensors, extra=None, storage_bytes=lambda values: values.tobytes()):
    """Return a file as torch.save writes it since 1.6."""
    program, storages = _pickled(_state_dict(tensors, extra))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        for key, values in enumerate(storages):
            archive.writestr(f"archive/data/{key}", storage_bytes(values))
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def legacy_pickles(tensors, extra=None):
    """Return a file as torch.save wrote it before 1.6 (and torchvision's published detectors still are)."""
    program, storages = _pickled(_state_dict(tensors, extra), with_view=True)
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    header = b"".join(pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, machine))
    keys = pickle.dumps([str(key) for key in range(len(storages))], protocol=2)
    return header + program + keys + b"".join(struct.pack("<q", v.size) + v.tobytes() for v in storages)
