"""Planted defects are named, and nothing else is; what can be mended is gone from a mended copy."""

import copy
import functools
import json
import math
import os
import pathlib
import random
import re

import pytest

from maskx_jax.data.coco.annotations import read_instances
from maskx_jax.data.coco.report import Report
from maskx_jax.doctor import repair
from maskx_jax.doctor.examination import Examination, examine
from maskx_jax.doctor.page import render
from tests.conftest import ROOT
from tests.doctor.dataset import Dataset, real, synthetic
from tests.doctor.defects import DEFECTS

# What takes somebody who looks: a repair would guess.
LEFT = {
    *("category_alike", "category_negative", "categories_differ", "class_new_in_split", "class_rectangles"),
    *("file_name_outside", "image_same_file", "image_size_swapped", "image_thin", "image_twice", "image_in_splits"),
    *(
        "image_alike_in_splits",
        "image_other_size",
        "image_turn_ambiguous",
        "box_maybe_corners",
        "box_loose",
        "box_twice",
    ),
    *("box_two_classes", "mask_box_differ", "mask_leaves_box", "mask_leaves_image", "mask_crosses", "object_unchecked"),
    *("keypoints_number", "keypoints_invalid", "keypoints_outside", "keypoints_unnamed", "keypoints_skeleton"),
    *("keypoints_differ", "keypoints_differ_in_split", "keypoints_unpaired"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Dataset:
    root = tmp_path_factory.mktemp("sound")
    folder = pathlib.Path(os.environ.get("MASKX_COCO_MINI", ROOT.parent / "shared/data/coco_mini"))
    return real(root / "data", folder) if folder.is_dir() else synthetic(root / "data")


def counts(found: Examination) -> dict[tuple[str, str], int]:
    return {(name, finding.cause): finding.count for name, split in found.splits.items() for finding in split.findings}


@pytest.fixture(scope="module")
def before(sound) -> dict[tuple[str, str], int]:
    return counts(sound.examine())


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_named_and_nothing_else_and_mended_where_it_can_be(name, sound, before, tmp_path):
    defect = DEFECTS[name]
    data = sound.copy(tmp_path / "data")
    example = defect.plant(data)
    data.with_pictures = defect.pictures
    found = data.examine(keep_changes=True)
    new = {cause for (split, cause), number in counts(found).items() if number > before.get((split, cause), 0)}
    assert defect.cause in new
    assert new <= {defect.cause, *defect.also}
    finding = found.splits[defect.split].findings[defect.cause]
    assert example in [found_in for found_in, _ in finding.examples] or example in finding.classes

    original, output = data.path().read_bytes(), tmp_path / "mended.json"
    repair.write(found.splits["train"], output)
    assert data.path().read_bytes() == original
    again = examine({"train": (output, data.splits()["train"][1])}, keep_changes=True).splits["train"]
    left = {finding.cause for finding in again.findings if finding.level != "note"}
    # A box that may be corners is not clipped.
    assert left <= LEFT | ({"box_clipped"} if "box_maybe_corners" in left else set())
    assert not again.changes
    if not left & {"file_name_outside"}:
        read_instances(output, Report("train"))


def test_there_are_sixty_defects():
    assert len(DEFECTS) >= 60


@pytest.mark.slow
def test_coco_mini_has_no_defects(coco_mini):
    splits = ("train", "val")
    found = examine(
        {
            split: (coco_mini / f"annotations/instances_{split}2017.json", coco_mini / f"images/{split}2017")
            for split in splits
        }
    )
    assert found.count("error") == found.count("warning") == 0
    # As its README says: category ids have gaps, 56 crowd regions as lists of runs, 5 images without annotations.
    notes = {"category_gaps", "rle_uncompressed", "image_negative", "mask_rectangle"}
    assert {finding.cause for split in found.splits.values() for finding in split.findings} == notes
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "half\ud800"])
def test_names_of_a_file_print_as_one_line(name, tmp_path):
    data = synthetic(tmp_path / "data")
    data.train["categories"][0]["name"] = data.val["categories"][0]["name"] = name
    data.train["annotations"][0]["area"] = 0
    data.with_pictures = False
    lines = data.examine().table().splitlines()
    assert len(lines) == 4 and all(line.isprintable() for line in lines)


# Values that somebody's file may have anywhere.
ODD = (
    None,
    0,
    -1,
    3.5,
    10**20,
    1e308,
    math.nan,
    math.inf,
    "",
    "7",
    "x\ud800",
    [],
    {},
    [[]],
    [None] * 6,
    True,
    [[1] * 6],
)
ODD = (*ODD, {"counts": "x", "size": [240, 320]}, {"size": 3, "counts": 3}, "../x", 10**9)


def places(value, place=()):
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, item in inner for found in places(item, (*place, key)))]


def test_nothing_in_a_file_ends_in_an_error(tmp_path):
    rng = random.Random(0)
    data = synthetic(tmp_path / "data")
    for content in data.contents.values():
        content["categories"][0] |= {"keypoints": ["left", "right"], "skeleton": [[1, 2]]}
        content["annotations"][0] |= {"keypoints": [1, 1, 2, 3, 3, 2], "num_keypoints": 2}
    data.with_pictures, all_places = False, places(data.train)[1:]
    for number in range(40):
        broken = Dataset(data.root, copy.deepcopy(data.contents), with_pictures=False)
        for *path, last in rng.sample(all_places, rng.choice([1, 2, 20])):
            try:
                functools.reduce(lambda value, key: value[key], path, broken.train)[last] = copy.deepcopy(
                    rng.choice(ODD)
                )
            except (KeyError, IndexError, TypeError):
                # Something on the way is another one already.
                continue
        found = broken.examine(keep_changes=True)
        json.dumps(found.to_json(), allow_nan=False)
        render(found).encode()
        output = tmp_path / f"mended{number}.json"
        repair.write(found.splits["train"], output)
        assert not examine({"train": (output, None)}, keep_changes=True).splits["train"].changes


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("picture_that_was_resized", "it seems to be resized, 0.5 times as large"),
        ("picture_that_was_turned", "boxes fit|turned"),
    ],
)
def test_of_a_picture_of_another_size_is_said_what_it_looks_like(name, said, sound, tmp_path):
    data = sound.copy(tmp_path / "data")
    DEFECTS[name].plant(data)
    ((_, found),) = data.examine().splits["train"].findings["image_other_size"].examples
    assert re.search(said, found)
