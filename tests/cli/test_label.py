"""The command `python -m maskx_jax label`."""

import json

import pytest

from maskx_jax import errors
from maskx_jax.cli.label import main
from maskx_jax.coco import rle
from maskx_jax.runs import loading
from tests.labelling.scenes import loaded, make_unknown_and_outside, write_scenes


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        errors.run(lambda: main(list(arguments)))
    return ended.value.code, *capsys.readouterr()


def test_it_prints_the_report_and_where_the_annotations_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loading, "load", lambda workdir, step: loaded())
    write_scenes(tmp_path)
    output = tmp_path / "out.json"
    options = [f"--annotations={tmp_path / 'train.json'}", f"--images={tmp_path / 'images'}", f"--output={output}"]
    code, printed, error = run(capsys, "--workdir=RUN", "--threshold=0.6", *options)
    assert code == 0 and error == ""
    first, second, last = printed.splitlines()
    assert first == "5 objects: 2 with mask, 3 with box only"
    assert second.startswith("        3  masks predicted, of a quality of 0.6 or more, 0.")
    assert last == f"wrote {output}" and len(json.loads(output.read_text())["annotations"]) == 6
    code, printed, error = run(capsys, "--workdir=RUN", *options)
    assert code == 1 and printed == "" and error.count("\n") == 1 and "overwrite" in error


def test_wrong_arguments_are_one_line(tmp_path, capsys):
    write_scenes(tmp_path)
    options = [
        f"--annotations={tmp_path / 'train.json'}",
        f"--images={tmp_path / 'images'}",
        f"--output={tmp_path}/out",
    ]
    for wrong, words in ((["--threshold=2"], "expected a value from 0 to 1"), ([], f"{tmp_path / 'RUN'}")):
        code, printed, error = run(capsys, f"--workdir={tmp_path / 'RUN'}", *options, *wrong)
        assert code == 1 and printed == "" and error.count("\n") == 1 and words in error, error


def test_masks_of_classes_that_are_not_named_are_predicted_in_their_place(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loading, "load", lambda workdir, step: loaded())
    write_scenes(tmp_path)
    (tmp_path / "moon.txt").write_text("moon")
    output = tmp_path / "out.json"
    options = [f"--annotations={tmp_path / 'train.json'}", f"--images={tmp_path / 'images'}", f"--output={output}"]
    code, printed, _ = run(capsys, "--workdir=RUN", f"--mask_classes={tmp_path / 'moon.txt'}", *options)
    first, second, *_ = printed.splitlines()
    assert code == 0 and first == "5 objects: 0 with mask, 5 with box only"
    assert second == "        2  of these have a mask that is not used, by the choice of classes"
    objects = [a for a in json.loads(output.read_text())["annotations"] if not a["iscrowd"]]
    assert [a["predicted_mask"]["source"] for a in objects] == 5 * ["RUN, step 30"]


def test_what_an_error_names_as_the_remedy_is_a_flag(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loading, "load", lambda workdir, step: loaded())
    write_scenes(tmp_path)
    make_unknown_and_outside(tmp_path)
    given = {a["id"]: a for a in json.loads((tmp_path / "train.json").read_text())["annotations"]}
    output = tmp_path / "out.json"
    options = [f"--annotations={tmp_path / 'train.json'}", f"--images={tmp_path / 'images'}", f"--output={output}"]
    code, _, error = run(capsys, "--workdir=RUN", *options)
    assert code == 1 and "Use allow_outside" in error
    code, _, error = run(capsys, "--workdir=RUN", "--allow_outside", *options)
    assert code == 1 and "Use drop_unknown" in error
    code, printed, _ = run(capsys, "--workdir=RUN", "--allow_outside", "--drop_unknown", *options)
    assert code == 0 and "        3  masks predicted" in printed
    assert "        2  annotations besides, of unknown categories or images: left as they are" in printed
    found = {a["id"]: a for a in json.loads(output.read_text())["annotations"]}
    assert (found[901], found[902]) == (given[901], given[902]) and "predicted_mask" in found[120]


def test_masks_made_elsewhere_need_no_run(tmp_path, capsys):
    _, masks = write_scenes(tmp_path)
    results = [{"image_id": 12, "category_id": 1, "segmentation": rle.encode(masks[120])}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    output = tmp_path / "out.json"
    files = [f"--masks={tmp_path / 'results.json'}", f"--annotations={tmp_path / 'train.json'}", f"--output={output}"]
    code, printed, _ = run(capsys, *files, "--ignore_classes", "--segmentation=polygons")
    lines = printed.splitlines()
    assert code == 0 and lines[1] == "        1  masks predicted, of a quality of 0.5 or more, 1.00 on average"
    assert lines[2] == "        2  left with box only: no mask of the results fits the box [no_match; ids 111, 131]"
    assert isinstance(json.loads(output.read_text())["annotations"][2]["segmentation"][0], list)
