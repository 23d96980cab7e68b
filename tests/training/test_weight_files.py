import codecs
import collections
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from maskx_jax.training.weight_files import read_weight_file
from tests.training.torch_files import Tensor, legacy_pickles, zip_archive

ARRAYS = {
    "conv1.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "bn1.num_batches_tracked": np.array(3, np.int64),
}


def assert_same(arrays, expected):
    assert sorted(arrays) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value)
        assert arrays[name].dtype == value.dtype and arrays[name].shape == value.shape


def test_safetensors(tmp_path):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    assert_same(read_weight_file(tmp_path / "model.safetensors").arrays, ARRAYS)


def test_npz(tmp_path):
    np.savez(tmp_path / "model.npz", **ARRAYS)
    assert_same(read_weight_file(tmp_path / "model.npz").arrays, ARRAYS)


@pytest.mark.parametrize("write", [zip_archive, legacy_pickles])
def test_both_formats_of_pytorch(tmp_path, write):
    (tmp_path / "model.pth").write_bytes(write({name: Tensor(value) for name, value in ARRAYS.items()}))
    assert_same(read_weight_file(tmp_path / "model.pth").arrays, ARRAYS)


@pytest.mark.parametrize("write", [zip_archive, legacy_pickles])
def test_tensors_of_pytorch_may_share_storage_and_have_any_strides(tmp_path, write):
    values = np.arange(12, dtype=np.float32)
    tensors = {
        "rows": Tensor(values, shape=(3, 4), strides=(4, 1)),
        "transposed": Tensor(values, shape=(4, 3), strides=(1, 4)),
        "tail": Tensor(values, offset=9, shape=(3,), strides=(1,)),
        "broadcast": Tensor(values, offset=2, shape=(2, 2), strides=(0, 1)),
        "empty": Tensor(values, shape=(0, 3), strides=(3, 1)),
    }
    (tmp_path / "model.pth").write_bytes(write(tensors))
    arrays = read_weight_file(tmp_path / "model.pth").arrays
    np.testing.assert_array_equal(arrays["rows"], values.reshape(3, 4))
    np.testing.assert_array_equal(arrays["transposed"], values.reshape(3, 4).T)
    np.testing.assert_array_equal(arrays["tail"], [9, 10, 11])
    np.testing.assert_array_equal(arrays["broadcast"], [[2, 3], [2, 3]])
    assert arrays["empty"].shape == (0, 3)


def test_a_file_that_torch_wrote():
    # torch.save of a Linear(2, 1) with weight [[1, 2]] and bias [3], nested as training programs do; both formats.
    for name in ("torch_zip.pth", "torch_legacy.pth"):
        file = read_weight_file(os.path.join(os.path.dirname(__file__), "../golden", name))
        assert_same(file.arrays, {"weight": np.array([[1, 2]], np.float32), "bias": np.array([3], np.float32)})


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays_in_all_protocols(tmp_path, protocol):
    content = {"blobs": ARRAYS | {"fortran": np.asfortranarray(np.ones((2, 3)))}, "cfg": "MODEL:\n", "year": 2018}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    assert_same(read_weight_file(tmp_path / "model.pkl").arrays, content["blobs"])


def test_a_pickle_of_python_2(tmp_path):
    # Detectron wrote bytes as text and called NumPy's core by its old name: this is such a program, written by hand.
    values = np.array([1.5, -2.0], "<f4")
    text = codecs.decode(values.tobytes(), "latin1")
    program = (
        b"(dp0\nS'blobs'\np1\n(dp2\nS'conv1_w'\np3\ncnumpy.core.multiarray\n_reconstruct\np4\n(cnumpy\nndarray\np5\n"
        b"(I0\ntp6\nS'b'\np7\ntp8\nRp9\n(I1\n(I2\ntp10\ncnumpy\ndtype\np11\n(S'f4'\np12\nI0\nI1\ntp13\nRp14\n"
        b"(I3\nS'<'\np15\nNNNI-1\nI-1\nI0\ntp16\nbI00\nS" + ascii(text).encode("ascii") + b"\np17\ntp18\nbss."
    )
    (tmp_path / "model.pkl").write_bytes(program)
    assert_same(read_weight_file(tmp_path / "model.pkl").arrays, {"conv1_w": values})


def test_the_author_of_a_detectron2_file_is_kept(tmp_path):
    content = {"model": ARRAYS, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content))
    assert read_weight_file(tmp_path / "model.pkl").author == "torchvision"


class Command:
    """Unpickled by anyone else, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def evil_builtin(path):
    """Return a pickle that evaluates Python code."""
    return b'cbuiltins\neval\n(S\'__import__("os").mkdir("' + str(path).encode() + b"\")'\ntR."


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda path: pickle.dumps({"model": ARRAYS, "extra": Command(path)}), "posix.mkdir"),
        (evil_builtin, "builtins.eval"),
        (lambda path: zip_archive({"a": Tensor(np.ones(2))}, extra=Command(path)), "posix.mkdir"),
        (lambda path: legacy_pickles({"a": Tensor(np.ones(2))}, extra=Command(path)), "posix.mkdir"),
    ],
)
def test_a_pickle_that_would_run_a_command_is_refused_by_name_and_runs_nothing(tmp_path, make, named):
    trace = tmp_path / "it ran"
    (tmp_path / "model.pth").write_bytes(make(trace))
    with pytest.raises(ValueError, match=rf"model.pth.*asks for {named}, which rebuilds no array; refused") as caught:
        read_weight_file(tmp_path / "model.pth")
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    # This is no check that cannot fail: an unpickler that trusts the file runs it.
    run_as_a_trusting_reader_would(tmp_path / "model.pth")
    assert trace.exists()


def test_a_harmless_class_is_refused_too(tmp_path):
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"a": np.ones(2), "b": collections.Counter()}))
    with pytest.raises(ValueError, match=r"asks for collections.Counter"):
        read_weight_file(tmp_path / "model.pkl")


class TrustingUnpickler(pickle.Unpickler):
    def persistent_load(self, pid):
        return pid

    def find_class(self, module, name):
        return (lambda *_: None) if module.startswith("torch") else super().find_class(module, name)


def run_as_a_trusting_reader_would(path):
    content = path.read_bytes()
    if content.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            content = archive.read("archive/data.pkl")
    file = io.BytesIO(content)
    # The legacy format's object is its fourth pickle.
    for _ in range(4 if content.startswith(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)) else 1):
        TrustingUnpickler(file).load()


def truncated(content):
    return content[: len(content) * 2 // 3]


def with_entry(name):
    """Return a zip archive with an entry of that name beside PyTorch's."""
    content = io.BytesIO(zip_archive({"a": Tensor(np.ones(2, np.float32))}))
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr(name, b"x")
    return content.getvalue()


def object_arrays():
    content = io.BytesIO()
    np.savez(content, a=np.array([{"b": 1}], dtype=object))
    return content.getvalue()


def safetensors_bytes(tmp_path):
    save_file(ARRAYS, tmp_path / "whole.safetensors")
    return (tmp_path / "whole.safetensors").read_bytes()


TENSORS = {"a": Tensor(np.arange(1000, dtype=np.float32))}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.npz", object_arrays(), "allow_pickle=False"),
        ("model.pth", truncated(zip_archive(TENSORS)), "zip"),
        ("model.pth", truncated(legacy_pickles(TENSORS)), "ends early: expected 4000 bytes"),
        ("model.pkl", truncated(pickle.dumps(ARRAYS)), "(truncated|EOF|Ran out|exhausted)"),
        ("model.pkl", b"", "Ran out of input"),
        ("model.pth", with_entry("../../etc/passwd"), r"entry '\.\./\.\./etc/passwd' points out of the archive"),
        ("model.pth", with_entry("/etc/passwd"), "points out of the archive"),
        ("model.pth", with_entry("..\\boot.ini"), "points out of the archive"),
        ("model.pth", b"<!DOCTYPE html><html>404</html>", "cannot be read as weights"),
        ("model.pth", zip_archive({"a": Tensor(np.ones(4), offset=2, shape=(3,), strides=(1,))}), "element 4 of a"),
        ("model.pth", zip_archive({"a": Tensor(np.ones(4), shape=(2,), strides=(-1,))}), "strides"),
        ("model.pkl", pickle.dumps([1, 2]), "expected a dictionary of arrays; found list"),
        ("model.pkl", pickle.dumps({"a": "text"}), r"found 0 arrays, \['a'\]"),
        ("model.pkl", pickle.dumps({"model": {"a": {"deeper": np.ones(1)}}}), r"found 0 arrays, \['a'\]"),
        ("model.pkl", pickle.dumps({"a": np.array(["text"])}), "dtype 'U4'; only plain numbers"),
        ("model.pkl", pickle.dumps({"a": np.zeros(1, [("x", "f4")])}), "only plain numbers"),
        ("model.pkl", pickle.dumps({"a": np.array([{"b": 1}], dtype=object)}), "dtype 'O8'; only plain numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_file_is_refused_with_one_line_that_names_it(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_weight_file(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_truncated_safetensors_file_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tmp_path)[:-3])
    with pytest.raises(ValueError, match=r"model.safetensors: cannot be read as weights: .*incomplete"):
        read_weight_file(tmp_path / "model.safetensors")


def test_a_storage_shorter_than_the_pickle_says_is_refused(tmp_path):
    content = zip_archive(TENSORS, storage_bytes=lambda values: values.tobytes()[:-4])
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"storage 0: expected 4000 bytes; found 3996"):
        read_weight_file(tmp_path / "model.pth")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*model.pth"):
        read_weight_file(tmp_path / "model.pth")


def test_legacy_length_is_checked(tmp_path):
    content = legacy_pickles(TENSORS).replace(struct.pack("<q", 1000), struct.pack("<q", 999))
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"expected 1000 elements; found 999"):
        read_weight_file(tmp_path / "model.pth")
