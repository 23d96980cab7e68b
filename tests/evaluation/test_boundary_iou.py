"""Boundary IoU against a reference that looks at every pixel."""

import numpy as np
import pytest

from maskx_jax.coco import rle
from maskx_jax.evaluation import boundary_iou
from tests.reference import boundary_iou as reference


def blob(random, height, width):
    """A rough shape: within the image, over its borders, all of it, or nothing."""
    rows, columns = np.mgrid[:height, :width]
    centre, radius = random.random(2) * (height, width), random.choice([0, 0.2, 0.5, 2]) * min(height, width)
    distance = np.hypot(rows - centre[0], columns - centre[1])
    return distance + random.normal(0, 0.5, distance.shape) < radius


@pytest.mark.parametrize(
    ("height", "width", "band"),
    # 2 % of the diagonal is 0.3, 2.0, 3.1, 3.5 (to the even number, 4), 2.5 (to 2).
    [(9, 12, 1), (60, 80, 2), (140, 70, 3), (105, 140, 4), (100, 75, 2)],
)
def test_boundaries_of_masks_everywhere_in_an_image(height, width, band):
    random = np.random.default_rng(height)
    for _ in range(4):
        detected = [blob(random, height, width) for _ in range(5)]
        # Some are nearly the same, so that their boundaries decide.
        objects = [np.roll(mask, random.integers(-2, 3, 2), (0, 1)) for mask in detected[:3]]
        found = boundary_iou.ious(list(map(rle.encode, detected)), list(map(rle.encode, objects)), [0, 0, 1])
        for mask, row in zip(detected, found, strict=True):
            assert row[:2].tolist() == [reference.smaller_iou(mask, other, band) for other in objects[:2]]
            # Of a crowd only the mask counts.
            assert row[2] == (mask & objects[2]).sum() / max(mask.sum(), 1)


def test_boundaries_are_made_only_of_masks_that_match_well_enough(monkeypatch):
    random = np.random.default_rng(0)
    detected = [blob(random, 60, 80) for _ in range(8)]
    objects = [np.roll(mask, 3, axis=1) for mask in detected]
    encoded = [list(map(rle.encode, masks)) for masks in (detected, objects)]
    exact = boundary_iou.ious(*encoded, [0] * 8)
    made, make = [], boundary_iou._boundary
    monkeypatch.setattr(boundary_iou, "_boundary", lambda mask: made.append(mask) or make(mask))
    found = boundary_iou.ious(*encoded, [0] * 8, least=0.5)
    needed = np.array([[reference.iou(d, g) >= 0.5 for g in objects] for d in detected])
    assert 0 < needed.sum() < (exact > 0).sum()
    np.testing.assert_array_equal(found[needed], exact[needed])
    assert (found[~needed] < 0.5).all()
    assert len(made) == needed.any(axis=0).sum() + needed.any(axis=1).sum()
