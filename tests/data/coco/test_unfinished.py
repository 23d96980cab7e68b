import functools
import multiprocessing
import os
import signal

import pytest

from maskx_jax.data.coco import examples, workers
from maskx_jax.data.coco.builder import prepare
from maskx_jax.data.coco.unfinished import work_folder
from tests.data.coco.test_builder import left, make
from tests.data.coco.test_shards import files_of

NUM_IMAGES = 9


def killed(calls, **arguments):
    """Prepare in a process that is killed as the image is made before which `calls` calls came."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([workers.__name__])
    process = context.Process(target=_prepare, args=(calls, arguments))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _prepare(calls, arguments):
    todo = iter(range(calls))
    prepare(**arguments, before_image=lambda: next(todo, None) is None and os.kill(os.getpid(), signal.SIGKILL))


def read_by(monkeypatch, prepare):
    """Return the names of the image files that are read while it prepares."""
    names = []
    read = examples.read_image
    with monkeypatch.context() as patched:
        patched.setattr(examples, "read_image", lambda path, size: names.append(path.name) or read(path, size))
        prepare()
    return names


def test_what_is_whole_after_a_kill_is_not_made_again(tmp_path, monkeypatch):
    split = make(tmp_path, NUM_IMAGES)
    again = functools.partial(prepare, tmp_path / "out", {"train": split, "val": split}, 3)
    monkeypatch.setattr("maskx_jax.data.coco.builder._IMAGES_AT_ONCE", 1)
    expected = prepare(tmp_path / "whole", {"train": split, "val": split}, 3)
    # All are checked first; of the second split one shard is whole and the next one begun.
    killed(
        2 * NUM_IMAGES + NUM_IMAGES + 5, output=tmp_path / "out", splits={"train": split, "val": split}, num_shards=3
    )
    assert left(tmp_path) == [".out-unfinished", "images", "instances.json", "whole"]
    reports = []
    assert read_by(monkeypatch, lambda: reports.append(again())) == [f"{index}.png" for index in range(3, 9)]
    assert reports == [expected] and files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert left(tmp_path) == ["images", "instances.json", "out", "whole"]


def test_shards_are_made_again_where_an_image_of_them_or_an_option_has_changed(tmp_path, monkeypatch):
    split = make(tmp_path, NUM_IMAGES)
    arguments = {"output": tmp_path / "out", "splits": {"val": split}, "num_shards": 3}
    killed(2 * NUM_IMAGES - 1, **arguments)
    os.utime(split[1] / "0.png", (1, 1))
    # The second shard was whole, and is so still.
    assert read_by(monkeypatch, lambda: prepare(**arguments)) == [f"{index}.png" for index in (0, 1, 2, 6, 7, 8)]
    killed(2 * NUM_IMAGES - 1, **arguments, overwrite=True)
    changed = arguments | {"predicted_masks": "use", "overwrite": True}
    assert len(read_by(monkeypatch, lambda: prepare(**changed))) == NUM_IMAGES


def test_two_do_not_make_the_same_output(tmp_path):
    split = make(tmp_path)
    with work_folder(tmp_path / "out"), pytest.raises(FileExistsError, match="out is being prepared by another"):
        prepare(tmp_path / "out", {"val": split})
    prepare(tmp_path / "out", {"val": split})


def test_a_folder_that_others_laid_is_left_alone(tmp_path):
    split = make(tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").write_text("years of work")
    (tmp_path / ".out-unfinished").symlink_to(tmp_path / "thesis")
    (tmp_path / ".other-unfinished").mkdir()
    (tmp_path / ".other-unfinished/chapter2.tex").write_text("more of it")
    for name in ("out", "other"):
        with pytest.raises(FileExistsError, match=rf"{name}-unfinished exists and is no"):
            prepare(tmp_path / name, {"val": split})
    assert left(tmp_path / "thesis") == ["chapter1.tex"] and left(tmp_path / ".other-unfinished") == ["chapter2.tex"]
