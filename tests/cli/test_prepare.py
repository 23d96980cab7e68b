"""The command `python -m maskx_jax prepare`: what it prints, and that nothing bad ends in a traceback."""

import copy
import io
import json
import math
import os
import pathlib
import shutil
import signal

import pytest
from PIL import Image
from tqdm import tqdm

from maskx_jax import errors
from maskx_jax.cli.prepare import main
from maskx_jax.data.coco import builder as coco_builder
from maskx_jax.data.coco import examples as coco_examples
from maskx_jax.data.coco import unfinished
from maskx_jax.data.coco.source import CocoSource
from tests.data.coco.test_builder import annotation, content, left, make, pixels_of, write


def run(capsys, folder, annotations, images, *options):
    """Run the command; return its exit code and what it printed."""
    arguments = [f"--output={folder / 'out'}", f"--split=val={annotations},{images}", *options]
    with pytest.raises(SystemExit) as ended:
        errors.run(lambda: main(arguments))
    return ended.value.code, *capsys.readouterr()


def assert_refused(result, *said):
    code, printed, error = result
    (line,) = error.splitlines()
    assert code == 1 and printed == ""
    assert line.startswith("error: ") and len(line) < 1500
    for words in said:
        assert words in line


def test_it_prints_the_report_and_nothing_else(tmp_path, capsys):
    annotations, images = make(tmp_path, broken=[1])
    code, printed, error = run(capsys, tmp_path, annotations, images, "--skip_bad_images")
    assert code == 0 and error == ""
    assert printed.startswith("split val: 2 images, 2 objects (2 with mask), 0 crowd regions\n")
    assert "[image_skipped; ids 101]" in printed
    assert len(CocoSource(tmp_path / "out", "val")) == 2


def test_progress_has_a_total(tmp_path, capsys, monkeypatch):
    bars = []
    shown = {"disable": False, "file": io.StringIO()}
    monkeypatch.setattr(coco_builder, "tqdm", lambda **options: bars.append(tqdm(**options | shown)) or bars[-1])
    annotations, images = make(tmp_path)
    assert main([f"--output={tmp_path / 'out'}", *(f"--split={name}={annotations},{images}" for name in "ab")]) == 0
    assert [(bar.desc, bar.total, bar.n) for bar in bars] == [("checking images", 6, 6), ("writing records", 6, 6)]
    assert capsys.readouterr().err == ""


def test_parts_say_what_comes_next(tmp_path, capsys):
    annotations, images = make(tmp_path)
    for part in ("1/2", "2/2"):
        code, printed, _ = run(capsys, tmp_path, annotations, images, "--num_shards=2", f"--part={part}")
        assert code == 0
        assert printed == f"part {part} is written; when all are, run the same command without --part\n"
    assert run(capsys, tmp_path, annotations, images, "--num_shards=2")[0] == 0
    assert len(CocoSource(tmp_path / "out", "val")) == 3
    assert_refused(run(capsys, tmp_path, annotations, images, "--part=1"), "--part: got '1'; expected such as 3/16")


@pytest.mark.parametrize(
    "splits", [["val"], ["val=a.json"], ["=a.json,b"], ["val=a.json,"], ["val=,b"], ["val=a.json,b", "val=c.json,d"]]
)
def test_mistyped_splits_are_refused(tmp_path, splits):
    with pytest.raises(ValueError, match=r"^--split: "):
        main([f"--output={tmp_path / 'out'}", *(f"--split={split}" for split in splits)])


class Collected:
    """What raises as it is collected: Python prints that and goes on."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_is_not_lost_in_a_callback(tmp_path, capsys, monkeypatch):
    annotations, images = make(tmp_path)
    before, read = left(tmp_path), coco_examples.read_image

    def interrupted(path, size):
        if path.name == "1.png":
            del [Collected()][0]
        return read(path, size)

    monkeypatch.setattr(coco_examples, "read_image", interrupted)
    code, printed, error = run(capsys, tmp_path, annotations, images)
    assert (code, printed, error) == (143, "", "error: ended (SIGTERM); nothing was written\n")
    assert left(tmp_path) == before


def test_a_signal_that_the_shell_ignores_stays_ignored(tmp_path, capsys, monkeypatch):
    annotations, images = make(tmp_path)
    monkeypatch.setattr(coco_builder, "_move", lambda *_: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run(capsys, tmp_path, annotations, images)[0] == 0
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing_behind_and_prints_one_line(tmp_path, capsys, monkeypatch, request, number):
    # In the background of a shell without job control, tests inherit a SIGINT that is ignored.
    inherited = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(number, inherited))
    annotations, images = make(tmp_path)
    before, handlers = left(tmp_path), [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    read, remove = coco_examples.read_image, shutil.rmtree

    def interrupted(path, size):
        if path.name == "1.png":
            assert any(name.startswith(".out-") for name in left(tmp_path))
            signal.raise_signal(number)
        return read(path, size)

    def interrupted_again(folder, **options):
        signal.raise_signal(number)
        remove(folder, **options)

    monkeypatch.setattr(coco_examples, "read_image", interrupted)
    monkeypatch.setattr(unfinished.shutil, "rmtree", interrupted_again)
    code, printed, error = run(capsys, tmp_path, annotations, images)
    assert (code, printed) == (128 + number, "") and number.name in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert left(tmp_path) == before
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_folder_without_permission_is_one_line(tmp_path, capsys, monkeypatch):
    annotations, images = make(tmp_path)

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied", str(arguments[-1]))

    monkeypatch.setattr(pathlib.Path, "mkdir", lambda path, **_: path == tmp_path or refuse(path.parent))
    assert_refused(run(capsys, tmp_path, annotations, images), f"error: {tmp_path}: Permission denied")
    monkeypatch.undo()
    # A test that runs as root can take no permission away.
    opens = pathlib.Path.open
    monkeypatch.setattr(
        "pathlib.Path.open", lambda path, *a, **k: refuse(path) if path.suffix == ".png" else opens(path, *a, **k)
    )
    assert_refused(run(capsys, tmp_path, annotations, images), f"{images / '0.png'}: Permission denied", "3 of 3")


# Bad input: for each what is changed in sound annotations or images, and what is said.

NESTED = "[" * 100_000


def nested(depth):
    return json.loads("[" * depth + "]" * depth)


def first(key, **changes):
    """Return the change of the first entry of a list; `...` deletes a field."""

    def change(whole):
        whole[key][0] |= changes
        for name in [name for name, value in changes.items() if value is ...]:
            del whole[key][0][name]

    return change


def top(**changes):
    return lambda whole: whole.update(changes)


REFUSED = {
    "text": ("no JSON at all", "instances.json: not JSON"),
    "empty file": ("", "instances.json: not JSON"),
    "cut": ('{"images": [{"id": 1', "not JSON"),
    "nested lists": (NESTED, "nested too deeply"),
    "nested objects": ('{"a":' * 100_000, "nested too deeply"),
    "nested in a segmentation": ('{"annotations": [{"segmentation": ' + NESTED, "nested too deeply"),
    "endless number": ('{"images": ' + "1" * 10_000 + "}", "not JSON: Exceeds the limit"),
    "list": ("[1, 2, 3]", "got a list at the top"),
    "number": ("3", "got a int at the top"),
    "null": ("null", "got a NoneType at the top"),
    "no images": (top(images=[]), "'images' is empty"),
    "no categories": (top(categories=[]), "'categories' is empty"),
    "images a number": (top(images=3), "'images' must be a list of objects"),
    "images of numbers": (top(images=[1, 2, 3]), "'images' must be a list of objects"),
    "annotations of numbers": (top(annotations=[1, 2, 3]), "'annotations' must be a list of objects"),
    "annotations of lists": (top(annotations=[[{}]]), "'annotations' must be a list of objects"),
    "annotations an object": (top(annotations={"1": {}}), "'annotations' must be a list of objects"),
    "categories of text": (top(categories=["cat"]), "'categories' must be a list of objects"),
    "image id a list": (first("images", id=[1]), "images[0] has id [1]"),
    "image id an object": (first("images", id={"a": 1}), "images[0] has id {'a': 1}"),
    "image id huge": (first("images", id=10**4000), "images[0] has id 1000"),
    "image id a fraction": (first("images", id=1.5), "images[0] has id 1.5"),
    "image id not a number": (first("images", id=math.nan), "images[0] has id nan"),
    "image id nested": (first("images", id=nested(500)), "images[0] has id [[[[[["),
    "image ids repeated": (first("images", id=101), "ids of images must be unique"),
    "annotation id a list": (first("annotations", id=[7]), "annotations[0] has id [7]"),
    "annotation id a flag": (first("annotations", id=True), "annotations[0] has id True"),
    "annotation ids repeated": (first("annotations", id=1), "ids of annotations must be unique"),
    "image_id a list": (first("annotations", image_id=[100]), "annotation 0 has image_id [100]"),
    "image_id huge": (first("annotations", image_id=2**64), "annotation 0 has image_id 18446744073709551616"),
    "image_id unknown": (first("annotations", image_id=2**63 - 1), "unknown image_id: 9223372036854775807"),
    "category_id a list": (first("annotations", category_id=[5]), "annotation 0 has category_id [5]"),
    "category_id unknown": (first("annotations", category_id=-5), "unknown category_id: -5"),
    "category id a list": (first("categories", id=[1]), "categories[0] is {"),
    "category name a list": (first("categories", name=["dog"]), "categories[0] is {"),
    "category name nested": (first("categories", name=nested(500)), "categories[0] is {"),
    "category names repeated": (first("categories", name="cat"), "category names must be unique"),
    "file_name a number": (first("images", file_name=3), "image 100 has file_name 3"),
    "file_name empty": (first("images", file_name=""), "image 100 has file_name ''"),
    "file_name with a zero": (first("images", file_name="a\0"), "image 100 has file_name 'a\\x00'"),
    "file_name half a letter": (first("images", file_name="\udcff"), "image 100 has file_name '\\udcff'"),
    "file_name of the folder": (first("images", file_name="."), "images: expected a file; it is a folder"),
    "file_name too long": (first("images", file_name="a" * 1000), "File name too long"),
    "file_name absolute": (first("images", file_name="/dev/zero"), "'/dev/zero', which leads out of the image folder"),
    "file_name goes up": (first("images", file_name="../images/0.png"), "which leads out of the image folder"),
    "height text": (first("images", height="20"), "image 100 has height '20'"),
    "height negative": (first("images", height=-20), "image 100 has height -20"),
    "height huge": (first("images", height=2**62), "0.png: the image has height 20 and width 30; the JSON says"),
    "height missing": (first("images", height=...), "image 100 has height None and width 30"),
    "iscrowd a list": (first("annotations", iscrowd=[0]), "annotation 0 has iscrowd [0]"),
    "ignore text": (first("annotations", ignore="yes"), "annotation 0 has ignore 'yes'"),
    "boxes as fractions": (
        lambda whole: [entry.update(bbox=[0.1, 0.1, 0.5, 0.5]) for entry in whole["annotations"]],
        "'bbox' looks like fractions of the image",
    ),
    "boxes as corners": (
        lambda whole: [entry.update(bbox=[15, 10, 25, 20]) for entry in whole["annotations"]],
        "'bbox' looks like x1, y1, x2, y2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_annotations_are_refused_by_one_line(tmp_path, capsys, name):
    change, said = REFUSED[name]
    annotations, images = make(tmp_path)
    if isinstance(change, str):
        annotations.write_text(change)
    else:
        whole = copy.deepcopy(content())
        change(whole)
        write(tmp_path, whole)
    before = left(tmp_path)
    result = run(capsys, tmp_path, annotations, images)
    # The file, or the image folder.
    assert_refused(result, "/im" if "/instances.json" not in result[2] else "", said)
    assert left(tmp_path) == before


RUNS = {"size": [20, 30]}
REPAIRED = {
    "box of text": (first("annotations", bbox=["1"] * 4), "box_invalid"),
    "box not finite": (first("annotations", bbox=[1, 1, math.nan, 5]), "box_invalid"),
    "box huge": (first("annotations", bbox=[1, 1, 10**4000, 5]), "box_invalid"),
    "box nested": (first("annotations", bbox=nested(500)), "box_invalid"),
    "box missing": (first("annotations", bbox=...), "box_filled"),
    "area of text": (first("annotations", area="40"), "area_filled"),
    "area nothing": (first("annotations", area=0), "area_repaired"),
    "area of the image": (first("annotations", area=600), "area_repaired"),
    "flat polygon": (first("annotations", segmentation=[2, 3, 12, 3, 2, 11]), "polygon_flat"),
    "flat polygon, not finite": (first("annotations", segmentation=[2, 3, 12, 3, 2, math.nan]), "polygon_none_left"),
    "polygon not finite": (first("annotations", segmentation=[[2, 3, 12, 3, 2, math.inf]]), "polygon_none_left"),
    "polygon far away": (first("annotations", segmentation=[[1e15, 3, 1e15, 9, 1e15, 3]]), "mask_empty"),
    "polygon endless": (first("annotations", segmentation=[[0, 0, 30, 20] * 5000]), "polygon_none_left"),
    "polygon without a pixel": (first("annotations", segmentation=[[2, 3, 2.1, 3, 2.1, 3.1]]), "mask_empty"),
    "segmentation a number": (first("annotations", segmentation=3), "mask_malformed"),
    "segmentation nested": (first("annotations", segmentation=nested(500)), "polygon_none_left"),
    "runs without a pixel": (first("annotations", segmentation={**RUNS, "counts": [600]}), "mask_empty"),
    "runs of another size": (first("annotations", segmentation={"size": [30, 20], "counts": [600]}), "rle_other_size"),
    "runs of a huge size": (
        first("annotations", segmentation={"size": [2**40, 2**40], "counts": [2**80]}),
        "rle_other_size",
    ),
    "runs that are huge": (first("annotations", segmentation={**RUNS, "counts": [10**4000]}), "rle_corrupt"),
    "runs of text": (first("annotations", segmentation={**RUNS, "counts": ["600"]}), "rle_corrupt"),
    "runs without an end": (first("annotations", segmentation={**RUNS, "counts": "o" * 10**6}), "rle_corrupt"),
    "runs below nothing": (first("annotations", segmentation={**RUNS, "counts": [-600, 1200]}), "rle_corrupt"),
    "to be ignored": (first("annotations", ignore=1), "ignore_as_crowd"),
    "annotations of no one": (top(annotations=[]), "there is no object to learn from"),
    "other entries nested": (top(info=nested(900)), "split val: 3 images"),
}


@pytest.mark.parametrize("name", REPAIRED)
def test_bad_annotations_that_can_be_repaired_are_counted(tmp_path, capsys, name):
    change, said = REPAIRED[name]
    annotations, images = make(tmp_path)
    whole = copy.deepcopy(content())
    change(whole)
    write(tmp_path, whole)
    code, printed, error = run(capsys, tmp_path, annotations, images)
    assert (code, error) == (0, "") and said in printed
    CocoSource(tmp_path / "out", "val").coco_ground_truth()


IMAGES = {
    "missing": (lambda path: path.unlink(), "there is no such file"),
    "folder": (lambda path: path.unlink() or path.mkdir(), "expected a file; it is a folder"),
    "pipe": (lambda path: path.unlink() or os.mkfifo(path), "expected a file; it is a pipe"),
    "device": (lambda path: path.unlink() or path.symlink_to("/dev/zero"), "expected a file; it is a device"),
    "broken link": (lambda path: path.unlink() or path.symlink_to("nowhere"), "there is no such file but a link"),
    "circle of links": (lambda path: path.unlink() or path.symlink_to(path), "Too many levels of symbolic links"),
    "endless file": (lambda path: os.truncate(path, 40 * 2**30), "the file has 40.0 GiB; expected at most 2 GiB"),
    "empty": (lambda path: os.truncate(path, 0), "the file is empty (0 bytes)"),
    "text": (lambda path: path.write_text("text"), "cannot be read as an image"),
    "cut": (lambda path: os.truncate(path, 60), "cannot be"),
    "other size": (lambda path: Image.fromarray(pixels_of(2)).save(path), "the image has height 22 and width 34"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_bad_images_are_refused_by_one_line_or_skipped(tmp_path, capsys, name):
    change, said = IMAGES[name]
    annotations, images = make(tmp_path)
    change(images / "1.png")
    before = left(tmp_path)
    assert_refused(run(capsys, tmp_path, annotations, images), f"image 101: {images / '1.png'}: ", said)
    assert left(tmp_path) == before
    code, printed, error = run(capsys, tmp_path, annotations, images, "--skip_bad_images")
    assert (code, error) == (0, "") and printed.startswith("split val: 2 images")


def test_images_outside_their_folder_are_read_only_where_allowed(tmp_path, capsys):
    _, images = make(tmp_path)
    (images / "1.png").rename(tmp_path / "secret.png")
    for name in (str(tmp_path / "secret.png"), "../secret.png"):
        whole = content()
        whole["images"][1]["file_name"] = name
        whole["annotations"][1] = annotation(1, 101)
        annotations = write(tmp_path, whole)
        assert_refused(
            run(capsys, tmp_path, annotations, images, "--overwrite"), "image 101 has file_name", "out of the image"
        )
        assert run(capsys, tmp_path, annotations, images, "--allow_outside", "--overwrite")[0] == 0
