"""The command `python -m maskx_jax doctor`: what it prints and writes, its exit codes, and that errors are one line."""

import json

import pytest

from maskx_jax import errors
from maskx_jax.cli.doctor import main
from tests.doctor.dataset import Dataset, synthetic
from tests.processes import ROOT


@pytest.fixture
def data(tmp_path) -> Dataset:
    data = synthetic(tmp_path / "data")
    data.save()
    return data


def run(capsys, *arguments: object):
    """Run the command; return its exit code and what it printed."""
    with pytest.raises(SystemExit) as ended:
        errors.run(lambda: main([str(argument) for argument in arguments]))
    return ended.value.code, *capsys.readouterr()


def test_a_sound_dataset_is_a_line_a_split(data, capsys):
    val = [f"--val_annotations={data.path('val')}", f"--val_images={data.root / 'val'}"]
    code, printed, error = run(
        capsys, f"--annotations={data.path()}", f"--images={data.root / 'train'}", *val, f"--output={data.root / 'out'}"
    )
    assert code == 0 and error == ""
    assert printed.startswith("split train: 8 images, 24 annotations (pictures in ")
    assert printed.count("0 errors, 0 warnings, 0 notes") == 2
    assert (data.root / "out/doctor.html").read_text().startswith("<!doctype html>")
    written = json.loads((data.root / "out/doctor.json").read_text())
    assert written["totals"] == {"error": 0, "warning": 0, "note": 0}
    assert list(written["splits"]) == ["train", "val"]


def test_errors_have_an_exit_code_of_their_own(data, capsys):
    data.train["annotations"][3]["bbox"] = [5, 5, 0, 5]
    data.save()
    code, printed, _ = run(capsys, f"--split=a={data.path()},{data.root / 'train'}", "--no_pictures")
    assert code == 2
    assert "error        1  annotations dropped: bbox of zero or negative size [box_empty: 20; cat 1]" in printed


def test_fix_writes_a_mended_copy(data, capsys):
    data.train["annotations"][3]["bbox"] = [5, 5, 0, 5]
    data.save()
    output = data.root / "mended.json"
    code, printed, _ = run(capsys, f"--annotations={data.path()}", f"--fix={output}")
    assert code == 2
    assert f"wrote {output}: 0 entries changed, 1 left out (mended.changes.json); 0 errors and warnings" in printed
    assert run(capsys, f"--annotations={output}")[0] == 0
    code, _, error = run(capsys, f"--annotations={data.path()}", f"--fix={data.path()}")
    assert code == 1 and error.startswith(f"error: {data.path()} exists; ")
    code, _, error = run(capsys, f"--annotations={data.path()}", "--fix=other=a.json")
    assert code == 1 and "expected NAME=OUT.json, once each, NAME one of ['train']" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "got both --annotations and --split, or neither"),
        (["--split=a=b.json"], "expected NAME=JSON,IMAGES"),
        (["--split=a=b.json,c", "--split=a=b.json,c"], "'a' is given twice"),
        (["--annotations=missing.json"], "missing.json: No such file or directory"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, said, capsys):
    code, printed, error = run(capsys, *arguments)
    assert code == 1 and printed == ""
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


@pytest.mark.parametrize("text", ["", "{", "[]", "nothing"])
def test_what_is_no_coco_file_is_one_line(text, data, capsys):
    data.path().write_text(text)
    code, _, error = run(capsys, f"--annotations={data.path()}")
    assert code == 1 and error.startswith(f"error: {data.path()}: ") and error.count("\n") == 1


def test_a_byte_order_mark_is_named(data, capsys):
    data.path().write_bytes(b"\xef\xbb\xbf" + data.path().read_bytes())
    code, printed, _ = run(capsys, f"--annotations={data.path()}")
    assert code == 0 and "[file_mark: train.json]" in printed


# ml_collections loads a config so.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_config_is_advised_on(data, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, printed, _ = run(
        capsys, f"--annotations={data.path()}", "--config=configs/maskx_rcnn.py", "--config.data.transform.num_slots=2"
    )
    assert code == 0
    assert "  data.transform.num_slots = 10 (now 2): 8 images have more than 2 objects, the fullest 3" in printed
