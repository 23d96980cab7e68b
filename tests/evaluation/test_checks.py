"""What is malformed is answered by one line that names the entry, whoever would have to take it."""

import math

import numpy as np
import pytest

from maskx_jax.evaluation import checks as coco_checks


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
