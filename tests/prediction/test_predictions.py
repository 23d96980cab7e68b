"""What is predicted for one picture, and the forms that others take it in."""

import dataclasses
import sys
import types

import numpy as np
import pytest

from maskx_jax.coco import rle
from maskx_jax.coco.keypoints import Skeleton
from maskx_jax.evaluation import results
from maskx_jax.prediction.predictions import Masks, predictions_of
from maskx_jax.structures import Detections
from tests.prediction.finder import CATEGORIES, picture

SIZE = (60, 80)
# The second reaches over the border, the third lies beyond it, the last slot is empty.
BOXES = [[20, 20, 60, 80], [100, 10, 200, 90], [170, 10, 190, 40], [0, 0, 1, 1]]


@pytest.fixture
def found():
    rng = np.random.default_rng(0)
    return Detections(
        boxes=np.array(BOXES, np.float32),
        scores=np.array([0.9, 0.5, 0.4, 0.9], np.float32),
        labels=np.array([2, 1, 1, 1], np.int32),
        masks=rng.uniform(size=(4, 7, 7)).astype(np.float32),
        valid=np.array([True, True, True, False]),
    )


def predictions(found, threshold=0.0, **options):
    return predictions_of(
        found,
        name="street.jpg",
        size=SIZE,
        scale=2.0,
        categories=CATEGORIES,
        read=lambda: picture(SIZE),
        threshold=threshold,
        mask_threshold=0.5,
        grid="continuous",
        **options,
    )


def test_arrays_agree_and_lie_in_the_picture(found):
    made = predictions(found)
    assert len(made) == 2 and made.size == SIZE
    assert made.boxes.tolist() == [[10, 10, 30, 40], [50, 5, 80, 45]]
    assert made.labels.tolist() == [2, 1] and made.names == ["green", "red"] and made.category_ids.tolist() == [70, 3]
    assert made.scores.tolist() == pytest.approx([0.9, 0.5])
    assert len(made.masks) == 2 and made.masks[0].shape == SIZE and made.masks[0].dtype == bool


@pytest.fixture
def with_keypoints(found):
    maps = np.random.default_rng(1).normal(0, 3, (4, 3, 9, 9)).astype(np.float32)
    return dataclasses.replace(found, masks=None, keypoint_maps=maps)


@pytest.mark.parametrize("kind", ["found", "with_keypoints"])
def test_the_entries_are_those_of_an_evaluation(kind, request):
    found = request.getfixturevalue(kind)
    expected = results.entries(
        found, image_id=7, image_size=SIZE, scale=2.0, id_of_label=CATEGORIES.id_of_label(), mask_threshold=0.5
    )
    assert predictions(found).to_coco(7) == expected
    assert predictions(found, threshold=0.6).to_coco(7) == expected[:1]
    assert ("keypoints" in expected[0]) == (kind == "with_keypoints")


def test_keypoints_lie_in_their_boxes_and_are_drawn(with_keypoints):
    skeleton = Skeleton(("left", "right", "top"), ((0, 1), (0, 2)), (1, 0, 2))
    categories = dataclasses.replace(CATEGORIES, skeleton=skeleton)
    made = dataclasses.replace(predictions(with_keypoints), categories=categories)
    assert made.keypoints.shape == (2, 3, 3) and made.keypoints.dtype == np.float32
    # The second box reaches over the border, and its keypoints may, too.
    for points, box in zip(made.keypoints, np.array(BOXES) / 2, strict=False):
        assert (points[:, :2] > box[:2]).all() and (points[:, :2] < box[2:]).all()
    assert predictions(with_keypoints, threshold=0.95).keypoints.shape == (0, 3, 3)
    bare = dataclasses.replace(made, categories=CATEGORIES)
    assert (np.asarray(made.draw()) != np.asarray(bare.draw())).any()


def test_keypoints_on_the_grid_of_the_canvas_are_those_of_an_evaluation(with_keypoints):
    expected = results.entries(
        with_keypoints,
        image_id=7,
        image_size=SIZE,
        scale=2.0,
        id_of_label=CATEGORIES.id_of_label(),
        keypoint_grid="canvas",
        keypoint_score="logit",
    )
    found = predictions(with_keypoints, keypoint_scale=2.0, keypoint_score="logit")
    assert found.to_coco(7) == expected != predictions(with_keypoints, keypoint_score="logit").to_coco(7)


def test_without_maps_there_are_no_keypoints(found):
    assert predictions(found).keypoints is None
    without = found.replace(masks=None)
    assert predictions(without).masks is None and "segmentation" not in predictions(without).to_coco()[0]


def test_a_mask_is_what_its_encoding_says(found):
    masks = predictions(found).masks
    for index in range(2):
        np.testing.assert_array_equal(masks[index], rle.decode(masks.rle(index)))
    np.testing.assert_array_equal(np.stack(masks), np.stack([masks[0], masks[1]]))
    np.testing.assert_array_equal(masks[1:][0], masks[1])
    with pytest.raises(IndexError):
        masks[2]


def test_the_masks_of_a_very_large_picture_are_made_one_at_a_time():
    size = (6000, 8000)
    boxes = np.tile([100.0, 100.0, 900.0, 700.0], (100, 1))
    masks = Masks(np.ones((100, 28, 28), np.float32), boxes, size)
    assert masks[99].nbytes == 48_000_000 and masks[99][400, 500] and len(masks) == 100
    assert rle.decode(masks.rle(0)).sum() == pytest.approx(800 * 600, rel=0.01)


def stand_in(name, **members):
    """Return a module whose classes keep what they are made with."""
    module = types.ModuleType(name)
    for member in members:
        setattr(module, member, lambda **arguments: types.SimpleNamespace(**arguments))
    return module


def test_supervision_gets_full_masks_and_names(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", stand_in("supervision", Detections=None))
    made = predictions(found).to_supervision()
    assert made.xyxy.dtype == np.float32 and made.mask.shape == (2, *SIZE) and made.mask.dtype == bool
    assert made.class_id.tolist() == [70, 3] and made.data["class_name"].tolist() == ["green", "red"]
    assert predictions(found, threshold=1.0).to_supervision().mask.shape == (0, *SIZE)


def test_fiftyone_gets_relative_boxes_and_cut_masks(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "fiftyone", stand_in("fiftyone", Detections=None, Detection=None))
    first, second = predictions(found).to_fiftyone().detections
    assert first.bounding_box == [10 / 80, 10 / 60, 20 / 80, 30 / 60] and first.label == "green"
    assert first.mask.shape == (30, 20) and second.mask.shape == (40, 30)
    np.testing.assert_array_equal(first.mask, predictions(found).masks[0][10:40, 10:30])


def test_a_drawn_picture_shows_its_objects(found):
    drawn = np.asarray(predictions(found).draw())
    bare = np.asarray(predictions(found, threshold=1.0).draw())
    assert drawn.shape == bare.shape == (480, 640, 3)
    # Drawn at eight times its size: the frame of the first box, and nothing far from both.
    assert (drawn[80:320, 80] != bare[80:320, 80]).any(axis=-1).mean() > 0.9
    assert (drawn[400:, :300] == bare[400:, :300]).all()
