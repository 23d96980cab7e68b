import time

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_coder

from maskx_jax.evaluation import paste_masks

HEIGHT, WIDTH = 37, 53

BOXES = {
    "inside": (5.3, 4.2, 30.7, 25.9),
    "whole pixels": (5, 4, 33, 32),
    "full image": (0, 0, WIDTH, HEIGHT),
    "over the left and the top": (-9.4, -7.7, 12.3, 14.1),
    "over the right and the bottom": (40.2, 20.6, 70.9, 55.5),
    "larger than the image": (-20.5, -10.5, 80.5, 60.5),
    "wholly outside, left": (-40.0, 3.0, -20.0, 20.0),
    "wholly outside, below": (10.0, 60.0, 20.0, 80.0),
    "narrower than a pixel, over a centre": (10.2, 5.0, 10.7, 20.0),
    "narrower than a pixel, between centres": (10.6, 5.6, 11.4, 6.4),
    "one pixel": (7.0, 9.0, 8.0, 10.0),
    "thin and long": (3.1, 12.4, 50.2, 13.9),
}


def paste_continuous_slowly(mask, box, height, width):
    """Probabilities of the full image, pixel by pixel, from the equation of detectron2's grid_sample."""
    m = len(mask)
    x1, y1, x2, y2 = (float(value) for value in box)
    pasted = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            u = (column + 0.5 - x1) / (x2 - x1) * m - 0.5
            v = (row + 0.5 - y1) / (y2 - y1) * m - 0.5
            u0, v0 = int(np.floor(u)), int(np.floor(v))
            for i in (v0, v0 + 1):
                for j in (u0, u0 + 1):
                    if 0 <= i < m and 0 <= j < m:
                        pasted[row, column] += (1 - abs(v - i)) * (1 - abs(u - j)) * mask[i, j]
    return pasted


def paste_integer_like_detectron(mask, box, height, width):
    """Detectron's `segm_results`: core/test.py, lines 812 to 867; with torchvision's order of clipping."""
    m = len(mask)
    scale = (m + 2.0) / m
    x1, y1, x2, y2 = (float(value) for value in box)
    half_width, half_height = (x2 - x1) * 0.5 * scale, (y2 - y1) * 0.5 * scale
    middle_x, middle_y = (x2 + x1) * 0.5, (y2 + y1) * 0.5
    expanded = [middle_x - half_width, middle_y - half_height, middle_x + half_width, middle_y + half_height]
    left, top, right, bottom = np.array(expanded).astype(np.int32).tolist()
    padded = np.zeros((m + 2, m + 2), np.float32)
    padded[1:-1, 1:-1] = mask
    resized = cv2.resize(padded, (max(right - left + 1, 1), max(bottom - top + 1, 1)))
    pasted = np.zeros((height, width), bool)
    x_0, x_1 = max(left, 0), min(right + 1, width)
    y_0, y_1 = max(top, 0), min(bottom + 1, height)
    if x_1 > x_0 and y_1 > y_0:
        pasted[y_0:y_1, x_0:x_1] = (resized > 0.5)[y_0 - top : y_1 - top, x_0 - left : x_1 - left]
    return pasted


def full_bitmap(mask, box, threshold=0.5, grid="continuous"):
    region, (top, left) = paste_masks.paste_mask(mask, np.array(box), HEIGHT, WIDTH, threshold, grid)
    full = np.zeros((HEIGHT, WIDTH), bool)
    full[top : top + region.shape[0], left : left + region.shape[1]] = region
    return full


def smooth_mask(seed, m):
    """A blob with holes, with probabilities over all of 0..1 and no two alike."""
    values = np.random.default_rng(seed).random((m, m)).astype(np.float32)
    return cv2.GaussianBlur(values, (3, 3), 0.8)


@pytest.mark.parametrize("m", [7, 28])
@pytest.mark.parametrize("threshold", [0.5, 0.1])
@pytest.mark.parametrize("case", BOXES)
def test_continuous_equals_slow_loops(case, threshold, m):
    mask = smooth_mask(0, m)
    expected = paste_continuous_slowly(mask, BOXES[case], HEIGHT, WIDTH) >= threshold
    np.testing.assert_array_equal(full_bitmap(mask, BOXES[case], threshold), expected)


@pytest.mark.parametrize("m", [7, 28])
@pytest.mark.parametrize("case", BOXES)
def test_integer_equals_detectron(case, m):
    mask = smooth_mask(1, m)
    expected = paste_integer_like_detectron(mask, BOXES[case], HEIGHT, WIDTH)
    np.testing.assert_array_equal(full_bitmap(mask, BOXES[case], grid="integer"), expected)


def test_cases_are_not_all_empty():
    sizes = {case: full_bitmap(np.ones((28, 28)), box).sum() for case, box in BOXES.items()}
    assert [case for case, size in sizes.items() if size == 0] == [
        "wholly outside, left",
        "wholly outside, below",
        "narrower than a pixel, between centres",
    ]


def test_a_full_mask_fills_the_pixels_whose_centre_is_in_the_box():
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[4:26, 5:31] = True  # centres 4.5 .. 25.5 and 5.5 .. 30.5
    np.testing.assert_array_equal(full_bitmap(np.ones((28, 28)), BOXES["inside"]), expected)


def test_at_the_threshold_the_two_grids_differ():
    # On whole numbers of pixels a constant mask gives the constant itself.
    mask = np.full((4, 4), 0.5)
    assert full_bitmap(mask, (10, 10, 14, 14))[11:13, 11:13].all()
    assert not full_bitmap(mask, (10, 10, 14, 14), grid="integer").any()


@pytest.mark.parametrize("grid", ["continuous", "integer"])
@pytest.mark.parametrize("case", BOXES)
def test_encoding_equals_pycocotools_on_the_full_image(case, grid):
    mask = smooth_mask(2, 28)
    encoded = paste_masks.paste_and_encode(mask, np.array(BOXES[case]), HEIGHT, WIDTH, grid=grid)
    expected = mask_coder.encode(np.asfortranarray(full_bitmap(mask, BOXES[case], grid=grid).astype(np.uint8)))
    assert encoded == {"size": [HEIGHT, WIDTH], "counts": expected["counts"].decode()}


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (5.5, 5, 5.5, 9), (9, 5, 5, 9)])
def test_a_box_without_area_gives_an_empty_mask(box):
    region, _ = paste_masks.paste_mask(np.ones((28, 28)), np.array(box), HEIGHT, WIDTH)
    assert not region.any()
    assert mask_coder.area(paste_masks.paste_and_encode(np.ones((28, 28)), np.array(box), HEIGHT, WIDTH)) == 0


@pytest.mark.parametrize(
    "mask, box, grid, message",
    [
        (np.ones((28, 14)), (1, 2, 3, 4), "continuous", r"shape \(28, 14\); expected \(m, m\)"),
        (np.ones((28, 28)), (1, 2, np.nan, 4), "continuous", "nan.*expected 4 finite numbers"),
        (np.ones((28, 28)), (1, 2, 3, 4), "whole", "unknown grid 'whole'; expected 'continuous' or 'integer'"),
    ],
)
def test_wrong_arguments(mask, box, grid, message):
    with pytest.raises(ValueError, match=message):
        paste_masks.paste_mask(mask, np.array(box), HEIGHT, WIDTH, grid=grid)


def test_a_hundred_masks_are_pasted_and_encoded_fast():
    random = np.random.default_rng(0)
    corners = random.random((100, 2, 2)) * (1333, 800)
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    masks = [smooth_mask(seed, 28) for seed in range(100)]
    seconds = []
    for _ in range(3):
        start = time.process_time()
        for mask, box in zip(masks, boxes, strict=True):
            paste_masks.paste_and_encode(mask, box, 800, 1333)
        seconds.append(time.process_time() - start)
    # Measured 0.1 s; interpolating over the full image takes over a second.
    assert min(seconds) < 0.6
