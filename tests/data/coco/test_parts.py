"""Several machines that share a disk each write a part of a dataset."""

import concurrent.futures
import multiprocessing

import pytest

from maskx_jax.data.coco import shards, workers
from maskx_jax.data.coco.builder import prepare
from tests.data.coco.test_builder import left, make
from tests.data.coco.test_shards import files_of
from tests.data.coco.test_unfinished import read_by

NUM_IMAGES = 9


@pytest.fixture
def arguments(tmp_path):
    split = make(tmp_path, NUM_IMAGES)
    return {"output": tmp_path / "out", "splits": {"train": split, "val": split}, "num_shards": 3}


def test_parts_in_any_order_are_joined_to_the_same_dataset(tmp_path, arguments, monkeypatch):
    expected = prepare(**arguments | {"output": tmp_path / "whole"})
    for index in (3, 1, 2):
        read = read_by(monkeypatch, lambda index=index: prepare(**arguments, part=(index, 3)))
        assert read == 2 * [f"{number}.png" for number in range(3 * index - 3, 3 * index)]
        assert not (tmp_path / "out").exists()
    reports = []
    assert read_by(monkeypatch, lambda: reports.append(prepare(**arguments))) == []
    assert reports == [expected] and files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert left(tmp_path) == ["images", "instances.json", "out", "whole"]


def test_parts_may_run_at_the_same_time(tmp_path, arguments):
    prepare(**arguments | {"output": tmp_path / "whole"})
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([workers.__name__])
    with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
        for ended in [pool.submit(prepare, **arguments, part=(index, 2)) for index in (1, 2)]:
            ended.result()
    prepare(**arguments)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_the_run_that_joins_makes_what_is_missing_and_keeps_parts_when_it_fails(tmp_path, arguments, monkeypatch):
    prepare(**arguments, part=(1, 3))
    prepare(**arguments, part=(2, 3))

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(**arguments, before_image=interrupt)
    assert ".out-unfinished" in left(tmp_path)
    assert read_by(monkeypatch, lambda: prepare(**arguments)) == 2 * ["6.png", "7.png", "8.png"]
    assert left(tmp_path) == ["images", "instances.json", "out"]


def test_a_join_that_fails_at_its_end_keeps_parts(tmp_path, arguments, monkeypatch):
    for index in (1, 2, 3):
        prepare(**arguments, part=(index, 3))
    with monkeypatch.context() as patched, pytest.raises(OSError, match="quota"):
        patched.setattr(shards, "write_info", raising(OSError("the quota is used up")))
        prepare(**arguments)
    assert read_by(monkeypatch, lambda: prepare(**arguments)) == []
    assert left(tmp_path) == ["images", "instances.json", "out"]


DAMAGE = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-9],
    "no archive": lambda content: b"damaged",
    # In the report, whose text NumPy stores in 4 bytes a character.
    "changed": lambda content: content.replace('"val"'.encode("utf-32-le"), '"vol"'.encode("utf-32-le")),
}


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [*((".npz", damage) for damage in DAMAGE), (".ground_truth", "empty"), (".array_record", "cut")],
)
def test_a_shard_with_a_damaged_file_is_made_again(tmp_path, arguments, monkeypatch, suffix, damage):
    prepare(**arguments | {"output": tmp_path / "whole"})
    for index in (1, 2, 3):
        prepare(**arguments, part=(index, 3))
    path = tmp_path / f".out-unfinished/shards_val/00001{suffix}"
    content = path.read_bytes()
    path.write_bytes(DAMAGE[damage](content))
    assert path.read_bytes() != content
    assert read_by(monkeypatch, lambda: prepare(**arguments)) == ["3.png", "4.png", "5.png"]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def raising(error):
    def function(*_):
        raise error

    return function


def test_an_image_that_is_mended_or_skipped_leaves_the_parts_of_others(tmp_path, arguments, monkeypatch):
    good = (tmp_path / "images/4.png").read_bytes()
    (tmp_path / "images/4.png").write_bytes(b"no image")
    prepare(**arguments, part=(1, 3))
    with pytest.raises(ValueError, match="1 of 3 images cannot be used: image"):
        prepare(**arguments, part=(2, 3))
    prepare(**arguments, part=(3, 3))
    skipped = arguments | {"skip_bad_images": True}
    assert read_by(monkeypatch, lambda: prepare(**skipped, part=(2, 3))) == 2 * ["3.png", "4.png", "5.png"]
    (tmp_path / "images/4.png").write_bytes(good)
    assert read_by(monkeypatch, lambda: prepare(**arguments)) == 2 * ["3.png", "4.png", "5.png"]


def test_a_shard_with_a_skipped_image_is_whole_only_where_they_are_skipped(tmp_path, arguments):
    (tmp_path / "images/4.png").write_bytes(b"no image")
    prepare(**arguments, skip_bad_images=True, part=(2, 3))
    with pytest.raises(ValueError, match="1 of 9 images cannot be used"):
        prepare(**arguments)


def test_parts_of_other_options_are_not_used(tmp_path, arguments, monkeypatch):
    prepare(**arguments, part=(1, 3))
    changed = arguments | {"predicted_masks": "use"}
    assert len(read_by(monkeypatch, lambda: prepare(**changed))) == 2 * NUM_IMAGES
    assert left(tmp_path) == ["images", "instances.json", "out"]


def test_parts_of_a_split_that_is_not_named_are_not_lost(arguments, monkeypatch):
    for index in (1, 2, 3):
        prepare(**arguments, part=(index, 3))
    split = arguments["splits"]["train"]
    with pytest.raises(FileExistsError, match=r"holds parts of other splits, shards_val; give all splits, or remove"):
        prepare(**arguments | {"splits": {"train": split}})
    assert read_by(monkeypatch, lambda: prepare(**arguments)) == []


@pytest.mark.parametrize(
    ("part", "message"),
    [((0, 2), r"part is 0/2; expected 1/n to n/n"), ((3, 2), r"part is 3/2"), ((1, 4), r"expected at most 3 parts")],
)
def test_a_part_that_there_is_not_is_refused(arguments, part, message):
    with pytest.raises(ValueError, match=message):
        prepare(**arguments, part=part)
    # As if it had not been asked for.
    prepare(**arguments)
