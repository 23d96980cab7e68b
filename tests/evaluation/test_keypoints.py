"""Keypoints from maps: against a slow reference, against torchvision, and in results entries."""

import json

import numpy as np
import pytest

from maskx_jax.evaluation import keypoints, results
from maskx_jax.structures import Detections
from tests.golden import keypoint_inputs as inputs
from tests.golden.comparing import golden
from tests.reference import keypoint_points as reference


@pytest.mark.parametrize("side", [4, 7])
def test_points_and_scores_equal_the_reference(side):
    random = np.random.default_rng(side)
    maps = random.normal(0, 3, (5, 2, side, side)).astype(np.float32)
    corners, sides = random.uniform(-9, 9, (5, 2)), random.uniform(0.5, 30, (5, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1)
    expected = np.array(
        [[reference.decode(cells, box) for cells in of_box] for of_box, box in zip(maps, boxes, strict=True)]
    )
    logits = keypoints.decode(maps, boxes, "logit")
    np.testing.assert_allclose(logits, expected[..., :3], rtol=1e-5, atol=1e-5)
    probabilities = keypoints.decode(maps, boxes)
    np.testing.assert_array_equal(probabilities[..., :2], logits[..., :2])
    np.testing.assert_allclose(probabilities[..., 2], np.minimum(expected[..., 3], 1), rtol=1e-4)


def test_points_equal_torchvision():
    found = keypoints.decode(inputs.maps(), inputs.boxes(), "logit")
    expected = golden("keypoint_points")
    # The same pixels; what is left is float32.
    np.testing.assert_allclose(found[..., :2], expected["points"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[..., 2], expected["logits"], rtol=0, atol=1e-4)


def test_hills_are_found_at_their_tops():
    rows, columns = np.mgrid[:56, :56] + 0.5
    hills = [-((columns - x) ** 2 + (rows - y) ** 2) / width for x, y, width in ((10.2, 30.9, 0.5), (55.9, 0.2, 50))]
    (points,) = keypoints.decode(np.array([hills], np.float32), np.array([[100.0, 200.0, 212.0, 312.0]]))
    # The cells are 2 pixels.
    assert np.abs(points[:, :2] - [[120.4, 261.8], [211.8, 200.4]]).max() <= 1
    assert points[0, 2] > 0.5 and points[1, 2] < 0.1


def test_a_box_of_any_size_takes_bounded_memory():
    rows, columns = np.mgrid[:56, :56] + 0.5
    hill = -((columns - 10.2) ** 2 + (rows - 30.9) ** 2)
    ((point,),) = keypoints.decode(np.array([[hill]], np.float32), np.array([[1e5, 2e5, 1e5 + 56e4, 2e5 + 56]]))
    # A cell of the map has 10,000 pixels in x and one in y; the cubic peaks within a tenth of one.
    assert abs(point[0] - 202_000) < 1_000 and abs(point[1] - 200_030.9) < 1


def test_no_probability_is_above_one():
    # Between two cells of equal logits the cubic goes higher than both, here by a factor of exp(2.5 or more).
    maps = np.full((1, 1, 8, 8), -40, np.float32)
    maps[0, 0, 3:5, 3:5] = 0
    points = keypoints.decode(maps, np.array([[0, 0, 8.5, 8.5]]))
    assert points[0, 0, 2] == 1
    assert keypoints.decode(maps, np.array([[0, 0, 8.5, 8.5]]), "logit")[0, 0, 2] > 2.5


def test_no_detections_have_no_points():
    assert keypoints.decode(np.zeros((0, 3, 8, 8)), np.zeros((0, 4))).shape == (0, 3, 3)


@pytest.mark.parametrize(
    "maps, box, score, message",
    [
        (np.zeros((2, 3, 8, 8)), [0, 0, 9, 9], "logit", r"got maps \(2, 3, 8, 8\) and boxes \(1, 4\); expected"),
        (np.zeros((1, 3, 8, 9)), [0, 0, 9, 9], "logit", r"expected \(d, k, m, m\)"),
        (np.full((1, 3, 8, 8), np.nan), [0, 0, 9, 9], "logit", "a map or a box is not finite"),
        (np.zeros((1, 3, 8, 8)), [0, 0, np.inf, 9], "logit", "a map or a box is not finite"),
        (np.zeros((1, 3, 8, 8)), [0, 0, 9, 9], "sigmoid", "unknown score of keypoints 'sigmoid'; expected"),
    ],
)
def test_wrong_arguments(maps, box, score, message):
    with pytest.raises(ValueError, match=message):
        keypoints.decode(maps, np.array([box], float), score)


def convert(boxes, maps, scale=2.0, **options):
    """The entries of an image of 100 by 80 pixels, whose canvas is `scale` times as large."""
    count = len(boxes)
    found = Detections(
        boxes=np.array(boxes, np.float32),
        scores=np.full(count, 0.9, np.float32),
        labels=np.ones(count, np.int32),
        masks=None,
        valid=np.arange(count) < max(count - 1, 1),
        keypoint_maps=maps,
    )
    arguments = {"image_id": 7, "image_size": (100, 80), "scale": scale, "id_of_label": np.array([0, 1])}
    return results.entries(found, **arguments, **options)


def test_entries_hold_keypoints_in_pixels_of_the_original_image():
    maps = np.full((3, 2, 8, 8), -9, np.float32)
    maps[:, 0, 1, 1] = maps[:, 1, 6, 3] = 9
    # The cells of the first box are 4 pixels of the image, so a peak lies on one of the 2 about their middle.
    boxes = [[20, 40, 84, 104], [-10, 40, 84, 104], [np.nan] * 4]
    first, second = convert(boxes, maps)
    points = np.array(first["keypoints"]).reshape(2, 3)
    # +0.5: COCO counts pixels.
    assert np.abs(points[:, :2] + 0.5 - [[10 + 6, 20 + 6], [10 + 14, 20 + 26]]).max() <= 0.5
    assert (points[:, :2] % 1 == 0).all() and (points[:, 2] > 0.2).all()
    # Of a box over the border they are found in the box as it was.
    assert np.array(second["keypoints"]).reshape(2, 3)[0, 0] == pytest.approx(-5 + 47 * 1.5 / 8, abs=1)
    assert second["bbox"][0] == 0
    json.dumps([first, second], allow_nan=False)


@pytest.mark.parametrize("scale", [0.5, 2.0, 1.37])
def test_the_grid_is_that_of_the_image_or_of_the_canvas(scale):
    random = np.random.default_rng(3)
    maps = random.normal(0, 3, (2, 4, 9, 9)).astype(np.float32)
    boxes = [[10, 12, 57, 93.5], [0, 0, 1, 1]]
    image, canvas = (
        np.array(convert(boxes, maps, scale, keypoint_grid=g)[0]["keypoints"]) for g in ("image", "canvas")
    )
    on_canvas = keypoints.decode(maps[:1], np.float32(boxes[:1]))[0]
    on_canvas[:, :2] = on_canvas[:, :2] / scale - 0.5
    np.testing.assert_allclose(canvas.reshape(4, 3), on_canvas, atol=6e-4)
    # Each is right to half of its own pixel.
    assert np.abs(image - canvas).reshape(4, 3)[:, :2].max() <= 0.5 + 0.5 / scale


def test_maps_that_are_not_finite_are_refused():
    maps = np.zeros((2, 3, 8, 8), np.float32)
    maps[0, 1, 2, 3] = np.inf
    with pytest.raises(ValueError, match="image 7, detection 0: its keypoints: a map or a box is not finite"):
        convert([[0, 0, 9, 9], [0, 0, 9, 9]], maps)
    # A slot that is not valid may hold anything.
    assert len(convert([[0, 0, 9, 9], [0, 0, 9, 9]], maps[::-1])) == 1
