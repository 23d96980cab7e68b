import codecs
import collections
import io
import os
import pathlib
import pickle
import resource
import struct
import time
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from maskx_jax.weights.files import read_weight_file
from tests.weights.torch_files import Tensor, legacy_pickles, zip_archive

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
        ("model.pkl", b"", "empty file"),
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


def number(value):
    """Return the instruction that puts a whole number on the stack."""
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


EMPTY_ORDERED_DICT = name("collections", "OrderedDict") + b")R"
# Tells NumPy that an array lies at an address.
INTERFACE = (
    b"}" + text("data") + number(4096) + b"\x89\x86s" + text("shape") + b"K\x04\x85s" + text("typestr") + text("<f8")
    + b"s" + text("version") + b"K\x03s"
)  # fmt: skip
STORAGE = b"(" + text("storage") + name("torch", "DoubleStorage") + text("0") + text("cpu") + b"K\x00tQ"


# Programs that name nothing but what is admitted.
@pytest.mark.parametrize(
    ("program", "message"),
    [
        (name("torch", "DoubleStorage") + EMPTY_ORDERED_DICT + b"}" + text("__array_interface__") + INTERFACE
         + b"sb\x85R", "calls what is no function"),
        (STORAGE + b"}" + text("values") + b"(\x88\x88lsb", "sets attributes of Storage"),
        (name("_codecs", "encode") + b"N}" + text("__defaults__") + b"K\x05\x85s\x86b", "sets attributes of _Function"),
        (name("numpy", "dtype") + text("O8") + b"\x85R", "dtype 'O8'; only plain numbers"),
        (name("torch._utils", "_rebuild_tensor_v2") + b"(" + STORAGE + b"K\x00K\x02\x85K\x01\x85\x89}"
         + b"}" + text("neg") + b"\x88stR", "lazy negative"),
        (b"})" + b"\x85" * 100_000 + b"Ns", "key of type tuple"),
        (b"}\x8b" + struct.pack("<i", 300) + b"\x7f" * 300 + b"Ns", "key of type int"),
        (b"\x82\x01", "instruction EXT1"),
        (name("numpy", "dtype") + b")\x81", "instruction NEWOBJ"),
        (b"\x8f", "instruction EMPTY_SET"),
        (b"(K\x01" + name("numpy", "dtype") + b"o", "instruction OBJ"),
        (b"K\x01K\x02a", "'int' object has no attribute 'append'"),
        (b"K\x01K\x02K\x03s", "sets items of int"),
        (b"\x96" + struct.pack("<Q", 2**40), "cannot be read"),
        (b"\x8e" + struct.pack("<Q", 2**40), "cannot be read"),
    ],
)  # fmt: skip
def test_a_program_that_abuses_admitted_names_is_refused(tmp_path, program, message):
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04}" + text("a") + program + b"s.")
    with pytest.raises(ValueError, match=message):
        read_weight_file(tmp_path / "model.pkl")


def test_a_file_changes_nothing_for_the_next_one(tmp_path):
    poison = b"\x80\x04" + name("_codecs", "encode") + b"N}" + text("__defaults__") + b"K\x05\x85s\x86b."
    (tmp_path / "poison.pkl").write_bytes(poison)
    with pytest.raises(ValueError, match=r"poison.pkl"):
        read_weight_file(tmp_path / "poison.pkl")
    (tmp_path / "good.pkl").write_bytes(pickle.dumps(ARRAYS, protocol=2))
    assert_same(read_weight_file(tmp_path / "good.pkl").arrays, ARRAYS)


def test_a_few_bytes_do_not_become_gigabytes(tmp_path):
    # A memo of 2^27 places, lists of lists 40 deep of which each holds the one below twice, and a file in itself.
    for program in (
        b"]r" + struct.pack("<I", 2**27) + b".",
        b"}" + text("x") + b"]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(40)) + b"s.",
        b"}q\x00" + text("model") + b"h\x00s.",
    ):
        (tmp_path / "model.pkl").write_bytes(b"\x80\x04" + program)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ValueError, match=r"model.pkl"):
            read_weight_file(tmp_path / "model.pkl")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**27))
    (tmp_path / "model.pth").write_bytes(content.getvalue())
    with pytest.raises(ValueError, match=r"unpacks from \d+ to 134217728 bytes"):
        read_weight_file(tmp_path / "model.pth")
    (tmp_path / "model.pth").write_bytes(zip_archive({"a": Tensor(np.ones(1), shape=(10**9,), strides=(0,))}))
    with pytest.raises(ValueError, match=r"shape \(1000000000,\), strides \(0,\) over 1 elements"):
        read_weight_file(tmp_path / "model.pth")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_only_stored_and_deflated_entries_are_read(tmp_path, method):
    # What 1.5 kB unpack to is 4.1 GiB where Python's reader is let; here a small one.
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
    (tmp_path / "model.pth").write_bytes(content.getvalue())
    with pytest.raises(ValueError, match=rf"'archive/data.pkl' is packed by method {method}; expected stored \(0\) or"):
        read_weight_file(tmp_path / "model.pth")


def test_a_size_that_an_archive_claims_for_itself_is_not_believed(tmp_path):
    # The directory says that the entry is as long packed as unpacked.
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**21))
        packed = struct.pack("<II", archive.infolist()[0].compress_size, 2**21)
    damaged = content.getvalue()
    assert damaged.count(packed) == 2
    (tmp_path / "model.pth").write_bytes(damaged.replace(packed, struct.pack("<II", 2**21, 2**21)))
    with pytest.raises(ValueError, match=r"unpacks from \d{4} to 2097152 bytes"):
        read_weight_file(tmp_path / "model.pth")


# A list of lists 40 deep, of which each holds the one below twice: printed, it would fill any memory.
TOWER = b"(]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(40)) + b"1h%c" % 40
LONG_TEXT = b"X" + struct.pack("<I", 2**17) + b"t" * 2**17


def nested_dictionaries(depth):
    return b"}" + (text("model") + b"}") * depth + b"s" * depth


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (name("numpy", "dtype") + TOWER + b"\x85R", "dtype given by a list"),
        (name("_codecs", "encode") + text("a") + TOWER + b"\x86R", "another encoding"),
        (name("numpy.core.numeric", "_frombuffer") + b"(C\x00" + name("numpy", "dtype") + text("f4") + b"\x85R("
         + number(2**61) * 300_000 + b"ttR", "got 300000 dimensions; expected at most 64"),
        # One text of 128 KiB, encoded and kept 30,000 times.
        (LONG_TEXT + b"q\x00" + name("_codecs", "encode") + b"q\x01(" + b"h\x01h\x00\x85R" * 30_000 + b"l",
         "copies its parts"),
        # One list of 40,000 pairs, made into 40,000 dictionaries.
        (name("collections", "OrderedDict") + b"q\x01(" + b"(K\x01K\x02l" * 40_000 + b"l\x85q\x02("
         + b"h\x01h\x02R" * 40_000 + b"l", "copies its parts"),
        # One tuple of 100,000 arguments, given 40,000 times.
        (name("numpy.core.multiarray", "_reconstruct") + b"q\x01(" + b"N" * 100_000 + b"tq\x02("
         + b"h\x01h\x02R" * 40_000 + b"l", "copies its parts"),
    ],
    ids=["dtype", "encoding", "shape", "texts", "dictionaries", "arguments"],
)  # fmt: skip
def test_a_small_program_is_answered_at_once(tmp_path, program, message):
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04}" + text("a") + program + b"s.")
    start = time.process_time()
    with pytest.raises(ValueError, match=message):
        read_weight_file(tmp_path / "model.pkl")
    assert time.process_time() - start < 5


def test_dictionaries_may_be_nested_deeply(tmp_path):
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04" + nested_dictionaries(50_000) + b".")
    start = time.process_time()
    with pytest.raises(ValueError, match="found 0 arrays"):
        read_weight_file(tmp_path / "model.pkl")
    assert time.process_time() - start < 5


def legacy_with_keys(program):
    """Return a file of the legacy format with another program for the list of the storages' keys."""
    whole = legacy_pickles(TENSORS)
    keys = pickle.dumps(["0"], protocol=2)
    assert whole.count(keys) == 1
    return whole.replace(keys, b"\x80\x02" + program + b".")


@pytest.mark.parametrize("program", [b"]" + TOWER + b"\x85a", b"K\x03", text("0"), b"]" + text("1") + b"a"])
def test_the_keys_of_storages_are_a_list_of_known_names(tmp_path, program):
    (tmp_path / "model.pth").write_bytes(legacy_with_keys(program))
    with pytest.raises(ValueError, match="expected a list of the storages' keys"):
        read_weight_file(tmp_path / "model.pth")


def npz_bytes(save):
    content = io.BytesIO()
    save(content, **ARRAYS)
    return content.getvalue()


@pytest.mark.parametrize(
    ("suffix", "make"),
    [
        (".pth", lambda folder: zip_archive({name: Tensor(array) for name, array in ARRAYS.items()})),
        (".pth", lambda folder: legacy_pickles({name: Tensor(array) for name, array in ARRAYS.items()})),
        (".pkl", lambda folder: pickle.dumps({"blobs": ARRAYS}, protocol=0)),
        (".pkl", lambda folder: pickle.dumps({"model": ARRAYS}, protocol=2)),
        (".pkl", lambda folder: pickle.dumps({"model": ARRAYS}, protocol=5)),
        (".npz", lambda folder: npz_bytes(np.savez)),
        (".npz", lambda folder: npz_bytes(np.savez_compressed)),
        (".safetensors", safetensors_bytes),
    ],
    ids=["zip", "legacy", "pickle-0", "pickle-2", "pickle-5", "npz", "npz-deflated", "safetensors"],
)
def test_a_damaged_file_is_read_or_refused_with_one_line(tmp_path, suffix, make):
    whole, path, rng = make(tmp_path), tmp_path / f"model{suffix}", np.random.default_rng(0)
    refused = 0
    for round_number in range(90):
        damaged = bytearray(whole)
        if round_number % 3 == 0:
            del damaged[rng.integers(len(whole)) :]
        for _ in range(rng.integers(1, 9) if round_number % 3 else 0):
            damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            read_weight_file(path)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{path}: cannot be read as weights: ") and "\n" not in str(error)
    assert refused > 30


def test_a_file_that_may_not_be_read_is_no_damaged_one(tmp_path, monkeypatch):
    (tmp_path / "model.npz").write_bytes(npz_bytes(np.savez))

    def refuse(self, *_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(pathlib.Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"model\.npz"):
        read_weight_file(tmp_path / "model.npz")


@pytest.mark.parametrize("values", [["1.5", "2"], [1j, 2j], np.array(["2020-01-01"], "M8[D]")])
def test_arrays_of_something_else_than_numbers_are_refused_in_every_format(tmp_path, values):
    np.savez(tmp_path / "model.npz", a=np.array(values))
    with pytest.raises(ValueError, match=r"model.npz: .*'a' is of dtype .*; only plain numbers are read"):
        read_weight_file(tmp_path / "model.npz")


def test_a_name_in_a_message_can_neither_break_the_line_nor_command_a_terminal(tmp_path):
    program = text("os\nall is fine \x1b[31m") + text("x") + b"\x93."
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04" + program)
    with pytest.raises(ValueError, match=r"asks for os\\nall is fine \\x1b\[31m.x") as caught:
        read_weight_file(tmp_path / "model.pkl")
    assert str(caught.value).isprintable()


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
