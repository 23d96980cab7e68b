"""What is malformed is answered by one line that names the entry, whoever would have to take it."""

import copy
import math

import numpy as np
import pytest
from pycocotools import mask as authority

from maskx_jax.evaluation import checks as coco_checks


def random_mask(random, height=23, width=31):
    bitmap = random.random((height, width)) < random.choice([0.0, 0.02, 0.5, 1.0])
    # Runs of all lengths.
    bitmap = np.repeat(bitmap, random.integers(1, 9), axis=0)[:height]
    return authority.encode(np.asfortranarray(bitmap, np.uint8))


def test_run_totals_of_masks_of_all_kinds():
    random = np.random.default_rng(0)
    results = [{"segmentation": random_mask(random)} for _ in range(700)]
    coco_checks.check_run_totals(results)
    for number in random.integers(0, 700, 40):
        changed = copy.deepcopy(results)
        # The same runs in an image of another size.
        changed[number]["segmentation"]["size"] = [24, 31]
        with pytest.raises(ValueError, match=rf"results\[{number}\]: .* add up to 713 pixels .*expected 24 x 31 = 744"):
            coco_checks.check_run_totals(changed)


@pytest.mark.parametrize("counts", ["", "o", "1o", "\x00", "é", "ooooooooooo0", "~~~", "hb", "P"])
def test_corrupt_counts(counts):
    with pytest.raises(ValueError, match="are corrupt; expected 20 x 30 = 600"):
        coco_checks.check_run_totals([{"segmentation": {"size": [20, 30], "counts": counts}}])


def test_negative_runs_are_found_before_they_are_scored():
    # Runs of -1 and 601 pixels.
    with pytest.raises(ValueError, match=r"results\[1\]: segmentation: .*negative"):
        coco_checks.mask_areas([{"size": [20, 30], "counts": "hb0"}, {"size": [20, 30], "counts": "Oib0"}])


@pytest.mark.parametrize(
    "value, expected",
    [(7, 7), (7.0, 7), ("2299", 2299), ("-3", -3), (-(2**70), -(2**70)), (np.int64(5), 5)]
    + [(value, None) for value in (None, 7.5, math.nan, math.inf, "", "x", "7.0", "1" * 5000, [7], {}, "²")],
)
def test_ids(value, expected):
    assert coco_checks.as_id(value) == expected


@pytest.mark.parametrize(
    "given, num_pixels, believed",
    [
        (1000, 1000, True),
        (700, 1000, True),
        (1800, 1000, True),  # Polygons that overlap: COCO has such.
        (0, 1000, False),
        (300, 1000, False),
        (2500, 1000, False),  # Larger than the box.
        (-1000, 1000, False),
        (307_200, 1000, False),  # Of the whole image.
        (math.nan, 1000, False),
        ("1000", 1000, False),
        (None, 1000, False),
        (10**400, 1000, False),
        (3.0, 1, True),  # A tiny object: polygons hold parts of pixels.
        (700, 0, True),  # Without a mask it may be that of one that is not there.
        (2000, 0, True),
        (2500, 0, False),
        (0, 0, False),
    ],
)
def test_which_areas_are_believed(given, num_pixels, believed):
    annotation = {"bbox": [5, 5, 40, 50], "area": given}
    area, is_given = coco_checks.believed_area(annotation, num_pixels)
    assert is_given == believed and area == (given if believed else num_pixels or 2000)
