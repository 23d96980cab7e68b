import os
import signal

import pytest

from maskx_jax.data.coco import builder, workers
from maskx_jax.data.coco.builder import prepare
from maskx_jax.data.coco.images import UnreadableImageError
from maskx_jax.data.coco.workers import choose_workers
from tests.data.coco.test_builder import left, make
from tests.data.coco.test_shards import files_of, mixed


def test_any_number_of_processes_write_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "_IMAGES_AT_ONCE", 2)
    split = mixed(tmp_path)
    reports = [
        prepare(tmp_path / f"out{number}", {"val": split}, 3, skip_bad_images=True, num_workers=number)
        for number in (1, 2)
    ]
    assert reports[0] == reports[1] and reports[0]["val"].counts["annotation_image_skipped"] == 1
    assert files_of(tmp_path / "out1") == files_of(tmp_path / "out2")


def test_an_error_of_a_process_is_that_of_the_image_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "_IMAGES_AT_ONCE", 1)
    split = make(tmp_path, 5)
    # A sound header and no end.
    os.truncate(split[1] / "3.png", (split[1] / "3.png").stat().st_size - 20)
    before = left(tmp_path)
    with pytest.raises(UnreadableImageError, match=r"^image 103: .*3\.png: "):
        prepare(tmp_path / "out", {"val": split}, num_workers=2)
    assert left(tmp_path) == before


def test_a_process_that_is_killed_is_one_line(tmp_path, monkeypatch):
    split = make(tmp_path, 5)
    before = left(tmp_path)
    monkeypatch.setattr(workers, "_start", _die)
    with pytest.raises(ChildProcessError, match="one of 2 worker processes has ended"):
        prepare(tmp_path / "out", {"val": split}, num_workers=2)
    assert left(tmp_path) == before


def _die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_few_images_are_left_to_one_process(monkeypatch):
    monkeypatch.setattr(workers, "usable_cores", lambda: 16)
    assert [choose_workers(number, None) for number in (0, 1000, 5000, 10**6)] == [1, 1, 9, 16]
    assert choose_workers(3, 2) == 2


def test_a_number_of_processes_below_1_is_refused(tmp_path):
    with pytest.raises(ValueError, match="num_workers is 0; expected at least 1"):
        prepare(tmp_path / "out", {"val": make(tmp_path)}, num_workers=0)
