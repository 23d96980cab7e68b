import json

import numpy as np
import pytest

from maskx_jax.data.coco import builder, shards
from maskx_jax.data.coco.builder import prepare
from maskx_jax.data.coco.source import CocoSource
from tests.data.coco.test_builder import annotation, content, make, write


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mixed(folder, num_images=12):
    """Return a split with images that are left out, without annotations, and with several."""
    _, images = make(folder, num_images, broken=[0, 5])
    whole = content(num_images)
    whole["annotations"] = [
        annotation(10 * index + k, 100 + index, iscrowd=int(k == 2))
        for index in range(num_images)
        for k in range(index % 4)
    ]
    return write(folder, whole), images


def test_a_large_split_has_few_shards():
    # COCO's number of images at 3 MB each: TFDS would take 1,024.
    planned = shards.plan(np.full(118_287, 3_000_000))
    assert len(planned) == shards.MAX_SHARDS
    assert [index for images in planned for index in images] == list(range(118_287))
    assert shards.plan(np.full(10, 5)) == [range(10)]
    assert list(map(len, shards.plan(np.full(10, 5), 3))) == [3, 4, 3]


def test_the_files_are_the_same_however_many_images_are_taken_at_once(tmp_path, monkeypatch):
    split = mixed(tmp_path)
    reports = []
    for name, number in (("whole", 32), ("singly", 1)):
        monkeypatch.setattr(builder, "_IMAGES_AT_ONCE", number)
        reports.append(prepare(tmp_path / name, {"val": split}, 3, skip_bad_images=True))
    assert reports[0] == reports[1] and reports[0]["val"].counts["image_skipped"] == 2
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "singly")


def test_what_is_left_of_the_ground_truth_is_joined_as_json_writes_it(tmp_path):
    prepare(tmp_path / "out", {"val": mixed(tmp_path)}, 4, skip_bad_images=True)
    text = (tmp_path / "out/annotations_val.json").read_text()
    assert text == json.dumps(json.loads(text))
    assert [image["id"] for image in json.loads(text)["images"]] == [101, 102, 103, 104, *range(106, 112)]


def test_a_shard_without_images_makes_no_file(tmp_path):
    split = make(tmp_path, 4, broken=[0, 1])
    prepare(tmp_path / "out", {"val": split}, 2, skip_bad_images=True)
    names = [path.name for path in (tmp_path / "out").glob("*array_record*")]
    assert names == ["coco_records-val.array_record-00000-of-00001"]


def test_the_temporary_folder_is_little_larger_than_the_output(tmp_path):
    sizes = [0]

    def measure():
        found = [path.stat() for path in tmp_path.glob(".out-*/**/*") if path.is_file()]
        # What has two names is there once.
        sizes.append(sum({status.st_ino: status.st_size for status in found}.values()))

    prepare(tmp_path / "out", {"val": make(tmp_path, 12)}, 3, before_image=measure)
    assert 0 < max(sizes) <= 1.1 * sum(map(len, files_of(tmp_path / "out").values()))


def test_a_split_that_is_added_is_as_if_prepared_with_the_others(tmp_path):
    split = mixed(tmp_path)
    prepare(tmp_path / "both", {"train": split, "val": split}, 2, skip_bad_images=True)
    prepare(tmp_path / "out", {"train": split}, 2, skip_bad_images=True)
    prepare(tmp_path / "out", {"val": split}, 2, skip_bad_images=True, add=True)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "both")
    assert [len(CocoSource(tmp_path / "out", name)) for name in ("train", "val")] == [10, 10]


def test_what_does_not_fit_is_not_added(tmp_path):
    split = make(tmp_path)
    prepare(tmp_path / "out", {"train": split})
    before = files_of(tmp_path / "out")
    other = content()
    other["categories"] = [{"id": 90, "name": "wolf"}, *other["categories"][1:]]
    for name, added, message in (
        ("train", split, "has a split 'train'"),
        ("val", (write(tmp_path, other, "other.json"), split[1]), "'dog' .* and 'wolf'"),
    ):
        with pytest.raises((FileExistsError, ValueError), match=message):
            prepare(tmp_path / "out", {name: added}, add=True)
    with pytest.raises(FileNotFoundError, match="found no prepared dataset to add to"):
        prepare(tmp_path / "nowhere", {"val": split}, add=True)
    assert files_of(tmp_path / "out") == before
