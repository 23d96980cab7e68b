"""Boxes on the host."""

import numpy as np
import pytest

from maskx_jax.coco import boxes
from tests.reference.boxes import iou_of_pair


def test_clipping_keeps_the_type_and_what_lies_inside():
    found = boxes.clip(np.array([[-1, 2, 9, 9], [3, 4, 5, 6]], np.float32), (7, 8))
    assert found.dtype == np.float32 and found.tolist() == [[0, 2, 8, 7], [3, 4, 5, 6]]
    assert boxes.clip(np.array([-1.0, 2, 9, 9]), (7, 8)).dtype == np.float64


def test_the_area_of_a_turned_box_is_zero():
    assert boxes.area(np.array([[0, 0, 2, 3], [2, 0, 0, 3], [2, 3, 0, 0]])).tolist() == [6, 0, 0]


def test_iou_is_that_of_the_reference_for_each_pair():
    corners = np.random.default_rng(0).uniform(0, 10, (2, 200, 2, 2)).astype(np.float32)
    first, second = np.sort(corners, axis=2).reshape(2, 200, 4)
    expected = [iou_of_pair(*pair) for pair in zip(first.tolist(), second.tolist(), strict=True)]
    np.testing.assert_allclose(boxes.iou(first, second), expected, rtol=1e-5, atol=1e-6)
    assert boxes.iou(first[0], first[0]) == pytest.approx(1) and boxes.iou(first[:1], second).shape == (200,)


def test_boxes_without_area_share_nothing():
    assert boxes.iou(np.zeros(4, int), np.zeros(4, int)) == 0


@pytest.mark.parametrize("box", [(0, 0, 7, 5), (2, 1, 3, 2), (4, 0, 7, 5)])
def test_a_tight_box_holds_every_pixel_that_is_set(box):
    bitmap = np.zeros((5, 7), bool)
    x1, y1, x2, y2 = box
    bitmap[y1, x1] = bitmap[y2 - 1, x2 - 1] = True
    assert boxes.tight(bitmap).tolist() == list(box)


def test_the_tight_box_of_no_pixel_is_empty():
    assert boxes.tight(np.zeros((5, 7), bool)).tolist() == [0, 0, 0, 0]
