"""Several machines that share a disk each write a part of a dataset."""

import concurrent.futures
import multiprocessing

import pytest

from maskx_jax.data.coco import workers
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


def test_a_part_checks_its_own_images_and_keeps_those_of_others(tmp_path, arguments):
    prepare(**arguments, part=(1, 3))
    (tmp_path / "images/4.png").write_bytes(b"no image")
    with pytest.raises(FileExistsError, match="out-unfinished holds parts that were made of other input"):
        prepare(**arguments, part=(3, 3))
    broken = arguments | {"output": tmp_path / "broken"}
    prepare(**broken, part=(1, 3))
    with pytest.raises(ValueError, match="1 of 3 images cannot be used: image"):
        prepare(**broken, part=(2, 3))
    prepare(**broken, part=(3, 3))


@pytest.mark.parametrize("part", [None, (2, 3)])
def test_parts_of_other_options_are_neither_used_nor_removed(arguments, monkeypatch, part):
    prepare(**arguments, part=(1, 3))
    with pytest.raises(FileExistsError, match="give all parts, and the run without one, the same, or remove it"):
        prepare(**arguments | {"num_shards": 4}, part=part)
    assert len(read_by(monkeypatch, lambda: prepare(**arguments))) == 2 * 6


@pytest.mark.parametrize(
    ("part", "message"),
    [((0, 2), r"part is 0/2; expected 1/n to n/n"), ((3, 2), r"part is 3/2"), ((1, 4), r"expected at most 3 parts")],
)
def test_a_part_that_there_is_not_is_refused(arguments, part, message):
    with pytest.raises(ValueError, match=message):
        prepare(**arguments, part=part)
