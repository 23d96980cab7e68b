import json

import numpy as np
import pytest
from hotcoco import mask as mask_coder
from PIL import Image

from maskx_jax.coco.keypoints import Skeleton
from maskx_jax.evaluation import drawing
from maskx_jax.evaluation import results as coco_results
from maskx_jax.structures import Detections

NAMES = {1: "person", 2: "bicycle"}
PERSON = {
    "image_id": 1,
    "category_id": 1,
    "bbox": [100, 300, 200, 100],
    "iscrowd": 0,
    "segmentation": [[100, 300, 300, 300, 300, 400, 100, 400]],
}


def result_of(box, score, image_size=(640, 640)):
    x, y, w, h = box
    boxes, one = np.array([[x, y, x + w, y + h]]), np.array([1])
    (result,) = coco_results.entries(
        Detections(boxes, np.array([score]), one, np.ones((1, 28, 28)), one > 0),
        image_id=1,
        image_size=image_size,
        scale=1,
        id_of_label=np.array([0, 1]),
    )
    return result


def panels(picture):
    width = (picture.shape[1] - 8) // 2
    return picture[-640:, :width], picture[-640:, -width:]


@pytest.fixture
def gray():
    return np.full((640, 640, 3), 128, np.uint8)


def test_ground_truth_left_predictions_right(gray):
    left, right = panels(
        drawing.draw_comparison(gray, [PERSON], {"found": [result_of((400, 100, 100, 100), 0.9)]}, NAMES)
    )
    # Far from boxes and words: tinted inside the mask, untouched outside.
    assert (left[360:390, 120:280] != 128).any(-1).all() and (right[360:390, 120:280] == 128).all()
    assert (right[150:190, 420:480] != 128).any(-1).all() and (left[150:190, 420:480] == 128).all()
    # Translucent: not the color of the box itself.
    assert (left[370, 200] != left[300, 200]).any()
    assert (gray == 128).all()


def test_predictions_below_the_threshold_are_left_out(gray):
    results = [result_of((400, 100, 100, 100), 0.4)]
    _, right = panels(drawing.draw_comparison(gray, [], {"found": results}, NAMES))
    assert (right == 128).all()
    _, right = panels(drawing.draw_comparison(gray, [], {"found": results}, NAMES, score_threshold=0.3))
    assert (right != 128).any()


@pytest.mark.parametrize("change", [{"iscrowd": 1}, {"segmentation": []}, {"segmentation": None}])
def test_crowds_and_objects_without_a_mask_are_boxes_alone(gray, change):
    left, _ = panels(drawing.draw_comparison(gray, [PERSON | change], {"found": []}, NAMES))
    assert (left[360:390, 120:280] == 128).all()
    assert (left[399, 100:300] != 128).any(-1).all()


def test_group_marks_and_unknown_categories_are_written(gray):
    plain = drawing.draw_comparison(gray, [PERSON], {"found": []}, NAMES)
    marked = drawing.draw_comparison(gray, [PERSON], {"found": []}, NAMES, {1: "A"})
    nameless = drawing.draw_comparison(gray, [PERSON], {"found": []}, {})
    assert (plain != marked).any() and (plain != nameless).any()


def test_small_images_are_enlarged():
    image = np.zeros((30, 64, 3), np.uint8)
    picture = drawing.draw_comparison(image, [], {"found": [result_of((60, 20, 30, 30), 0.9, (30, 64))]}, NAMES)
    assert picture.shape[0] > 300 and picture.shape[1] == 2 * 640 + 8 and picture.dtype == np.uint8


def test_large_images_are_reduced_until_the_words_can_be_read():
    image = np.full((3000, 4000, 3), 128, np.uint8)
    result = result_of((1000, 600, 800, 400), 0.9, (3000, 4000))
    picture = drawing.draw_comparison(image, [], {"found": [result]}, NAMES)
    assert picture.shape[1] == 2 * 1600 + 8 and 1200 < picture.shape[0] < 1240
    right = picture[-1200:, -1600:]
    # 400 x 240 pixels from the left and the top.
    assert (right[260:390, 420:700] != 128).any(-1).all()
    changed = (right != 128).any(-1)
    assert not changed[410:].any() and not changed[:, :390].any()


@pytest.mark.parametrize("size", [(97, 61), (640, 640), (901, 1777)])
def test_exactly_the_pixels_of_the_mask_are_tinted(size):
    random = np.random.default_rng(0)
    bitmap = random.random((9, 7)) < 0.5
    bitmap = np.asfortranarray(np.kron(bitmap, np.ones((size[0] // 9, size[1] // 7))), np.uint8)
    full = np.zeros(size, np.uint8, order="F")
    full[: bitmap.shape[0], : bitmap.shape[1]] = bitmap
    for shape in (size, (size[0] * 2, size[1] * 2)):
        canvas = np.zeros((*shape, 3), np.uint8)
        drawing._tint(canvas, mask_coder.encode(full), (200, 100, 50))
        expected = full.repeat(shape[0] // size[0], 0).repeat(shape[1] // size[1], 1)
        np.testing.assert_array_equal(canvas.any(-1), expected)


def test_names_that_the_font_cannot_draw_say_so():
    names = {1: "\u732b cat", 2: "bicycle"}
    captions = [drawing._caption({"category_id": i}, names, {}) for i in (1, 2, 3)]
    assert captions == ["? cat category 1", "bicycle", "category 3"]


def test_results_of_masks_alone(gray):
    result = result_of((400, 100, 100, 100), 0.9)
    del result["bbox"]
    _, right = panels(drawing.draw_comparison(gray, [], {"found": [result]}, NAMES))
    assert (right[100, 400:500] != 128).any(-1).all()


def test_not_an_image():
    with pytest.raises(ValueError, match=r"shape \(5, 5\) and type float64; expected \(h, w, 3\) uint8"):
        drawing.draw_comparison(np.zeros((5, 5)), [], {}, {})


def test_real_annotations(coco_mini):
    ground_truth = json.loads((coco_mini / "annotations/instances_val2017.json").read_text())
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    crowded = {annotation["image_id"] for annotation in ground_truth["annotations"] if annotation["iscrowd"]}
    for entry in [image for image in ground_truth["images"] if image["id"] in crowded][:3]:
        with Image.open(coco_mini / "images/val2017" / entry["file_name"]) as file:
            image = np.asarray(file.convert("RGB"))
        annotations = [a for a in ground_truth["annotations"] if a["image_id"] == entry["id"]]
        picture = drawing.draw_comparison(image, annotations, {"found": []}, names)
        width = (picture.shape[1] - 8) // 2
        assert (picture[:, :width] != picture[:, -width:]).any(-1).mean() > 0.01


def test_several_models_stand_side_by_side(gray):
    first, second = result_of((100, 300, 200, 100), 0.9), result_of((400, 100, 100, 100), 0.9)
    picture = drawing.draw_comparison(gray, [], {"one": [first], "two": [second], "none": []}, NAMES)
    width = (picture.shape[1] - 3 * 8) // 4
    panels = [picture[:, i * (width + 8) : i * (width + 8) + width] for i in range(4)]
    marked = [(panel[30:] != 128).any() for panel in panels]
    assert marked == [False, True, True, False]
    assert (panels[1] != panels[2]).any()


CROSS = Skeleton(("left", "right", "top"), ((0, 1), (0, 2)), (1, 0, 2))


@pytest.mark.parametrize("entry", [PERSON, {**PERSON, "score": 0.9}])
def test_keypoints_are_points_with_lines(gray, entry):
    # A line from (150, 340) to (250, 340); the third has no place, or no score.
    entry = entry | {"keypoints": [149.5, 339.5, 2, 249.5, 339.5, 2, 200, 380, 0]}
    bare = drawing.draw_objects(gray, [entry | {"keypoints": None}], NAMES, skeletons={1: CROSS})
    assert (drawing.draw_objects(gray, [entry], NAMES) == bare).all()
    changed = (drawing.draw_objects(gray, [entry], NAMES, skeletons={1: CROSS, 2: CROSS}) != bare).any(-1)
    assert changed[339:341, 148:252].all()
    rows, columns = np.nonzero(changed)
    assert rows.min() >= 332 and rows.max() <= 348 and columns.min() >= 142 and columns.max() <= 258
    # Symmetric: the centre of a point is where it should be.
    assert abs(rows.mean() + 0.5 - 340) < 0.6 and abs(columns.mean() + 0.5 - 200) < 0.6


def test_hidden_keypoints_are_rings(gray):
    seen, hidden = ({**PERSON, "keypoints": [150, 340, flag, 250, 340, flag, 199.5, 379.5, flag]} for flag in (2, 1))
    apart = {1: Skeleton(CROSS.names, (), CROSS.flip)}
    bare = drawing.draw_objects(gray, [PERSON], NAMES)
    full, rings = (
        (drawing.draw_objects(gray, [entry], NAMES, skeletons=apart) != bare).any(-1) for entry in (seen, hidden)
    )
    assert full[380, 200] and not rings[380, 200] and rings[375:386, 195:206].any()
    assert rings.sum() < full.sum()


@pytest.mark.parametrize("keypoints", [[0, 0, 0] * 3, [], None])
def test_objects_without_keypoints_are_drawn_all_the_same(gray, keypoints):
    bare = drawing.draw_objects(gray, [PERSON], NAMES)
    assert (drawing.draw_objects(gray, [PERSON | {"keypoints": keypoints}], NAMES, skeletons={1: CROSS}) == bare).all()


def test_keypoints_in_an_enlarged_image_and_alone():
    image = np.full((64, 64, 3), 128, np.uint8)
    entry = {"category_id": 1, "score": 0.9, "keypoints": [9.5, 19.5, 1, 39.5, 19.5, 1, 20, 49.5, 1]}
    picture = drawing.draw_objects(image, [entry], NAMES, skeletons={1: CROSS})
    # Ten times as large. The box, where there is none, is that around the points.
    assert (picture[195:206, 95:106] != 128).any(-1).all()
    assert (picture[498:502, 100:400] != 128).any(-1).any(0).all()
