"""Which areas are believed."""

import math

import pytest

from maskx_jax.coco.areas import is_plausible


@pytest.mark.parametrize(
    "given, mask_areas, believed",
    [
        (700, (1000,), True),
        (1800, (1000,), True),  # Polygons that overlap count twice: COCO has such.
        (2000, (1000,), False),  # That of the box.
        (300, (1000,), False),
        (1500, (500, 1000), True),  # Two formulas: an object that reaches out of the image.
        (300, (500, 200), True),
        (3.0, (1,), True),  # Polygons hold parts of pixels.
        (700, (), True),  # The area of a mask that was left out.
        (2104, (), True),
        (2105, (), False),
        *(
            (value, masks, False)
            for value in (0, -5, math.nan, math.inf, "700", None, [], 10**400)
            for masks in ((), (9,))
        ),
    ],
)
def test_an_area_is_no_larger_than_the_box_and_about_that_of_the_mask(given, mask_areas, believed):
    assert is_plausible(given, 2000, mask_areas) == believed


def test_a_box_smaller_than_its_mask_does_not_make_the_masks_area_wrong():
    assert is_plausible(400, 200, (400,)) and not is_plausible(400, 200)
