"""Statistics of a split, and what is advised for a config."""

import copy

import numpy as np
import pytest

from configs import demo, fcos, maskx_rcnn
from maskx_jax.doctor import statistics
from maskx_jax.doctor.examination import examine
from tests.doctor.dataset import Dataset, synthetic


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Dataset:
    data = synthetic(tmp_path_factory.mktemp("sound") / "data")
    data.with_pictures = False
    return data


def advised(data: Dataset, config) -> dict:
    return {advice.field: advice for advice in data.examine(config=config).advice}


def changed(sound: Dataset, root) -> Dataset:
    return Dataset(root, copy.deepcopy(sound.contents), with_pictures=False)


def test_statistics_count_classes_images_and_sizes(sound):
    found = sound.examine().statistics["train"]
    assert (found["num_objects"], found["num_crowds"], found["num_masks"]) == (24, 0, 24)
    assert found["objects_per_image"]["median"] == found["objects_per_image"]["most"] == 3
    cat, dog = found["classes"]
    assert (cat["name"], cat["objects"], cat["images"], cat["masks"], cat["box_only"]) == ("cat", 16, 8, 16, 0)
    assert (dog["objects"], dog["small"], dog["medium"], dog["large"]) == (8, 0, 8, 0)
    # The square root of 80 x 60.
    assert cat["median_side"] == 69.3
    assert [row["count"] for row in found["box_sides"] if row["from"] == 64] == [24]
    assert sum(row["count"] for row in found["mask_sides"]) == 24


def test_the_share_of_objects_with_boxes_only_is_by_class(sound, tmp_path):
    data = changed(sound, tmp_path)
    for annotation in data.train["annotations"]:
        if annotation["category_id"] == 2:
            annotation["segmentation"] = []
    config = maskx_rcnn.get_config()
    config.data.mask_classes = "all"
    found = data.examine(config=config)
    assert [row["box_only"] for row in found.statistics["train"]["classes"]] == [0, 1]
    (advice,) = [advice for advice in found.advice if advice.field == "data.mask_classes"]
    assert (advice.now, advice.value) == ("all", "annotated") and "1 of 2 classes have boxes only: dog" in advice.reason


def test_crowded_images_want_more_slots(sound, tmp_path):
    data = changed(sound, tmp_path)
    first = data.train["annotations"][0]
    for number in range(20):
        data.train["annotations"].append({**first, "id": 5000 + number, "bbox": [10 * number, 5, 80, 60]})
    config = maskx_rcnn.get_config()
    config.data.transform.num_slots = 10
    found = data.examine(config=config)
    (advice,) = [advice for advice in found.advice if advice.field == "data.transform.num_slots"]
    assert (advice.now, advice.value) == (10, 30) and "the fullest 23" in advice.reason
    assert found.splits["train"].findings["image_over_slots"].examples == [(1, "23 objects, 10 slots")]
    assert advised(sound, maskx_rcnn.get_config())["data.transform.num_slots"].value == 10


def test_anchors_fit_the_sizes_of_objects(sound, tmp_path):
    data = changed(sound, tmp_path)
    for image in data.train["images"]:
        image |= {"height": 1600, "width": 2000}
    found = data.examine(config=maskx_rcnn.get_config())
    by_field = {advice.field: advice for advice in found.advice}
    # 80 x 60 pixels, of which the canvas shows half.
    assert found.canvas["scale"] == 0.5
    assert "model.rcnn.rpn.anchor_sizes" not in by_field
    config = maskx_rcnn.get_config()
    config.model.rcnn.rpn.anchor_sizes = (128.0, 256.0, 512.0, 1024.0, 2048.0)
    advice = advised(data, config)["model.rcnn.rpn.anchor_sizes"]
    assert advice.value == (32.0, 64.0, 128.0, 256.0, 512.0)
    assert "in the mean" in advice.line() and "(now (128, 256, 512, 1024, 2048))" in advice.line()


def test_objects_lost_on_a_small_canvas_want_a_larger_one(sound, tmp_path):
    data = changed(sound, tmp_path)
    for image in data.train["images"]:
        image |= {"height": 3000, "width": 4000}
    found = data.examine(config=demo.get_config())
    (advice,) = [advice for advice in found.advice if advice.field == "data.transform.canvas"]
    assert advice.value == (3008, 4000) and "100% of the objects are less than 8 pixels" in advice.reason


def test_a_detector_without_anchors_has_levels(sound):
    config = fcos.get_config()
    config.data.transform.update(canvas=(256, 320), short_sides=(240,), max_long_side=320)
    # All objects are of one size: no borders spread them.
    assert not {field for field in advised(sound, config) if "rpn" in field or "level_sizes" in field}


@pytest.mark.parametrize(("name", "cause"), [("dgo", "mask_classes_unknown"), ("dog", "class_without_masks")])
def test_mask_classes_that_do_not_fit_are_named(name, cause, sound, tmp_path):
    data = changed(sound, tmp_path)
    for annotation in data.train["annotations"]:
        if annotation["category_id"] == 2:
            annotation["segmentation"] = []
    (tmp_path / "masks.txt").write_text(name)
    config = maskx_rcnn.get_config()
    config.data.mask_classes = str(tmp_path / "masks.txt")
    assert data.examine(config=config).splits["train"].findings[cause].count == 1


def test_anchor_overlaps_are_those_of_boxes_on_one_centre():
    anchors = statistics.anchor_sides((10.0,), (1.0, 4.0))
    np.testing.assert_allclose(anchors, [[10, 10], [5, 20]])
    np.testing.assert_allclose(statistics.anchor_overlaps(np.array([[10.0, 20.0], [5.0, 5.0]]), anchors), [0.5, 0.25])


def test_a_config_is_not_needed(sound):
    found = examine({"train": (sound.path(), None)})
    assert found.advice == [] and found.canvas == {}
