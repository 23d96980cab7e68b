import numpy as np
import pytest

from maskx_jax.coco import rle
from maskx_jax.coco.polygons import outlines
from maskx_jax.data.shapes.source import ShapesSource


def iou(polygons, mask):
    drawn = rle.draw_bitmap(polygons, mask.shape)
    return (drawn & mask).sum() / (drawn | mask).sum()


def test_a_rectangle_has_four_points_a_quarter_of_a_pixel_inside():
    mask = np.zeros((20, 30), bool)
    mask[4:9, 10:22] = True
    (polygon,) = outlines(mask)
    assert sorted(zip(polygon[::2], polygon[1::2], strict=True)) == [
        (10.25, 4.25),
        (10.25, 8.75),
        (21.75, 4.25),
        (21.75, 8.75),
    ]
    assert iou([polygon], mask) == 1


@pytest.mark.parametrize("tolerance", [0, 0.5, 2])
def test_single_pixels_and_lines_are_drawn_again(tolerance):
    mask = np.zeros((16, 16), bool)
    mask[0, 0] = mask[15, 15] = mask[4, 2:12] = mask[8:14, 6] = True
    polygons = outlines(mask, tolerance)
    assert len(polygons) == 4 and iou(polygons, mask) > 0.8
    assert outlines(np.zeros((9, 9), bool)) == []


def test_holes_are_filled():
    mask = np.zeros((16, 16), bool)
    mask[2:14, 2:14] = True
    whole = mask.copy()
    mask[6:10, 6:10] = False
    assert iou(outlines(mask), whole) == 1


def test_masks_come_back_as_the_tolerance_says():
    content = ShapesSource(30, 5).coco_ground_truth()
    masks = [rle.decode(a["segmentation"]) for a in content["annotations"] if not a["iscrowd"]]
    # Without holes: what the outlines enclose at no tolerance.
    masks = [rle.draw_bitmap(outlines(mask, 0), mask.shape) for mask in masks]
    exact, near = ([iou(outlines(mask, tolerance), mask) for mask in masks] for tolerance in (0, 0.5))
    assert min(exact) == 1 and min(near) > 0.9 and np.mean(near) > 0.98
    points = [sum(len(polygon) for mask in masks for polygon in outlines(mask, tolerance)) for tolerance in (0, 0.5)]
    assert points[1] < 0.6 * points[0]
