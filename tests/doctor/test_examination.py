"""Planted defects are named, and nothing else is; what `doctor` counts is what `prepare` counts."""

import json
import os
import pathlib

import pytest

from maskx_jax.doctor.examination import Examination, examine
from tests.conftest import ROOT
from tests.doctor.dataset import Dataset, real, synthetic
from tests.doctor.defects import DEFECTS


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
def test_a_planted_defect_is_named_and_nothing_else(name, sound, before, tmp_path):
    defect = DEFECTS[name]
    data = sound.copy(tmp_path / "data")
    example = defect.plant(data)
    data.with_pictures = defect.pictures
    found = data.examine()
    new = {cause for (split, cause), number in counts(found).items() if number > before.get((split, cause), 0)}
    assert defect.cause in new
    assert new <= {defect.cause, *defect.also}
    finding = found.splits[defect.split].findings[defect.cause]
    assert example in [found_in for found_in, _ in finding.examples] or example in finding.classes


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
