import copy
import json
import tracemalloc

import numpy as np
import pytest
from faster_coco_eval import mask as mask_coder

from maskx_jax.evaluation import checks as coco_checks
from maskx_jax.evaluation import results as coco_results
from maskx_jax.structures import Detections

GROUND_TRUTH = {
    "images": [{"id": 7, "height": 20, "width": 30}, {"id": 9, "height": 40, "width": 30}],
    "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 90, "name": "toothbrush"}],
    "annotations": [],
}
ID_OF_LABEL = np.array([0, 1, 18, 90])


def convert(boxes, scores, labels, valid, masks=None, scale=2.0):
    arrays = np.array(boxes, np.float32), np.array(scores, np.float32), np.array(labels)
    return coco_results.entries(
        Detections(*arrays, masks=masks, valid=np.array(valid)),
        image_id=np.int64(7),
        image_size=(20, 30),
        scale=np.float32(scale),
        id_of_label=ID_OF_LABEL,
    )


def entry(**changes):
    bitmap = np.zeros((20, 30), np.uint8, order="F")
    bitmap[2:8, 3:9] = 1
    encoded = mask_coder.encode(bitmap)
    segmentation = {"size": [20, 30], "counts": encoded["counts"].decode()}
    return {
        "image_id": 7,
        "category_id": 18,
        "bbox": [3, 2, 6, 6],
        "score": 0.5,
        "segmentation": segmentation,
    } | changes


def test_boxes_and_masks_come_out_in_the_original_image():
    masks = np.ones((2, 28, 28), np.float32)
    results = convert([[10, 4, 20, 16], [0, 0, 1, 1]], [0.9, 0.8], [2, 1], [True, False], masks)
    assert len(results) == 1
    (result,) = results
    bitmap = np.zeros((20, 30), np.uint8)
    bitmap[2:8, 5:10] = 1
    assert {key: result[key] for key in ("image_id", "category_id", "bbox", "score")} == {
        "image_id": 7,
        "category_id": 18,
        "bbox": [5.0, 2.0, 5.0, 6.0],
        "score": 0.9,
    }
    np.testing.assert_array_equal(mask_coder.decode(result["segmentation"]), bitmap)


def test_a_box_over_the_border_is_clipped_and_its_mask_is_not_squeezed():
    mask = np.zeros((1, 4, 4), np.float32)
    mask[0, :, 2:] = 1  # the right half
    (result,) = convert([[-20, -20, 20, 60]], [0.9], [3], [True], mask, scale=1)
    assert result["bbox"] == [0, 0, 20, 20]
    bitmap = np.zeros((20, 30), np.uint8)
    # The right half of -20..20 is 0..20; the fade from 0 to 1 crosses one half at its edge.
    bitmap[:, 0:20] = 1
    np.testing.assert_array_equal(mask_coder.decode(result["segmentation"]), bitmap)


def test_without_masks_there_is_no_segmentation():
    (result,) = convert([[10, 4, 20, 16]], [0.9], [2], [True])
    assert sorted(result) == ["bbox", "category_id", "image_id", "score"]


def test_boxes_outside_and_empty_boxes_are_no_entries():
    boxes = [[-9, -9, -1, -1], [100, 5, 120, 9], [4, 4, 4, 9], [8, 4, 6, 9], [4, 4, 8, 8]]
    results = convert(boxes, [0.9] * 5, [1] * 5, [True] * 5, np.ones((5, 28, 28), np.float32))
    assert [result["bbox"] for result in results] == [[2, 2, 2, 2]]


def test_scores_keep_their_order_to_the_last_bit():
    scores = np.nextafter(np.float32(0.7), np.float32([0, 1]))
    results = convert([[0, 0, 9, 9]] * 2, scores, [1, 1], [True, True])
    np.testing.assert_array_equal(np.float32([result["score"] for result in results]), scores)
    assert len(json.dumps(results[0]["score"])) <= 11


def test_slots_that_are_not_valid_may_hold_anything():
    assert convert([[np.nan] * 4], [np.nan], [0], [False], np.full((1, 28, 28), np.nan)) == []


@pytest.mark.parametrize(
    "box, score, label, message",
    [
        ([0, 0, np.nan, 9], 0.5, 1, "image 7, detection 0: not finite: box"),
        ([0, 0, 9, 9], np.inf, 1, "image 7, detection 0: not finite.*score inf"),
        ([0, 0, 9, 9], 0.5, 4, r"image 7, detection 0: label 4 is not in 1\.\.3"),
        ([0, 0, 9, 9], 0.5, 0, r"label 0 is not in 1\.\.3"),
    ],
)
def test_broken_detections_are_refused(box, score, label, message):
    with pytest.raises(ValueError, match=message):
        convert([box], [score], [label], [True])


def test_writing_and_reading(tmp_path):
    results = convert([[10, 4, 20, 16]], [0.9], [2], [True], np.ones((1, 28, 28), np.float32))
    path = tmp_path / "results.json"
    coco_results.write_results(path, results)
    assert coco_results.read_results(path) == results
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_encoded_results_are_the_entries_in_less_than_half_of_their_memory():
    def make_images():
        for seed in range(20):
            masks = np.random.default_rng(seed).random((30, 9, 9)).astype(np.float32)
            yield convert([[9, 2, 40, 30]] * 30, masks[:, 0, 0], [2] * 30, [True] * 30, masks)

    tracemalloc.start()
    entries = [entry for image in make_images() for entry in image]
    of_entries, _ = tracemalloc.get_traced_memory()
    encoded = coco_results.EncodedResults(map(coco_results.encode, make_images()))
    of_all, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for _ in range(2):
        assert list(encoded) == entries
    assert of_all - of_entries < of_entries / 2


def test_writing_refuses_nan_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    coco_results.write_results(path, [])
    with pytest.raises(ValueError, match="JSON compliant"):
        coco_results.write_results(path, [entry(score=float("nan"))])
    assert coco_results.read_results(path) == []


@pytest.mark.parametrize(
    "text, message",
    [('{"annotations": []}', r"got a dict with keys \['annotations'\]; expected a list"), ("[{", "not JSON")],
)
def test_reading_what_is_no_results_file(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        coco_results.read_results(path)


def without(key):
    return {name: value for name, value in entry().items() if name != key}


@pytest.mark.parametrize(
    "wrong, message",
    [
        (entry(image_id=8), r"results\[1\]: image_id 8 is not in the ground truth: 2 image ids \(7, 9\)"),
        (entry(image_id="7"), r"image_id '7' is not in the ground truth"),
        (entry(category_id=2), r"category_id 2 is not in the ground truth: 3 category ids \(1, 18, 90\) .*label"),
        (entry(score=float("nan")), r"results\[1\]: image_id 7: score nan; expected a finite number"),
        (entry(score="0.5"), "score '0.5'; expected a finite number"),
        (entry(bbox=[1, 2, 3]), r"bbox \[1, 2, 3\]; expected \[x, y, width, height\]"),
        (entry(bbox=[1, 2, -3, 4]), "sides >= 0"),
        (without("segmentation"), r"missing \['segmentation'\]; it has \['bbox', 'category_id', 'image_id', 'score'\]"),
        (without("score"), r"missing \['score'\]"),
        (entry(image_id=9), r"segmentation of size \[20, 30\]; expected the image's \[height, width\] \[40, 30\]"),
        (entry(segmentation=[[1, 1, 5, 1, 5, 5]]), r"expected a compressed RLE"),
        ("entry", "got a str; expected a dict"),
    ],
)
def test_wrong_entries_are_named(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        coco_checks.check_results([entry(), wrong], GROUND_TRUTH)
    assert "\n" not in str(caught.value)


def test_right_entries_pass_and_are_not_changed():
    results = [entry(), entry(score=1)]
    before = copy.deepcopy(results)
    coco_checks.check_results(results, GROUND_TRUTH)
    coco_checks.check_results([], GROUND_TRUTH)
    coco_checks.check_results([without("segmentation")], GROUND_TRUTH, kinds=["bbox"])
    coco_checks.check_results([without("bbox")], GROUND_TRUTH, kinds=["segm"])
    assert results == before


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"unknown kinds \['mask'\]; expected some of \['bbox', 'segm', 'keypoints'\]"):
        coco_checks.check_results([], GROUND_TRUTH, kinds=["mask"])
