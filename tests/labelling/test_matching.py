"""Masks made elsewhere for the boxes that they fit."""

import json

import numpy as np
import pytest

from maskx_jax.coco import rle
from maskx_jax.coco.polygons import outlines
from maskx_jax.data.coco.predicted import FIELD
from maskx_jax.labelling.label import label
from tests.labelling.scenes import write_scenes


@pytest.fixture
def scene(tmp_path):
    content, masks = write_scenes(tmp_path)
    return tmp_path, content, masks


def entry(image_id, mask, **fields):
    return {"image_id": image_id, "segmentation": rle.encode(mask)} | fields


def run(folder, results, **options):
    """Return the report and what was written, by annotation id."""
    (folder / "results.json").write_text(json.dumps(results))
    options = {"masks": folder / "results.json", "overwrite": True} | options
    report = label(folder / "train.json", folder / "out.json", **options)
    return report, {a["id"]: a for a in json.loads((folder / "out.json").read_text())["annotations"]}


def test_each_box_takes_the_mask_that_fits_it_and_scores_best(scene):
    folder, _, masks = scene
    smaller = masks[111].copy()
    smaller[:50] = False
    results = [
        entry(11, smaller, score=1.0),
        entry(11, masks[111], score=0.9),
        entry(11, masks[110], score=0.8),
        entry(13, masks[130]),
        entry(12, np.zeros((200, 120), bool)),
    ]
    report, found = run(folder, results)
    assert found[111]["segmentation"] == rle.encode(masks[111])
    source = f"{folder / 'results.json'}"
    assert found[111][FIELD] == {"quality": 0.9, "certainty": 0.9, "box_iou": 1.0, "source": source}
    # The only mask of image 13 lies on the object that has one, and that of image 12 is empty.
    assert report.left == {120: "no_match", 131: "no_match"}
    # Objects with masks keep theirs.
    assert FIELD not in found[110] and found[110]["segmentation"] == rle.encode(masks[110])


def test_a_mask_is_one_objects(scene):
    folder, content, masks = scene
    twin = content["annotations"][2] | {"id": 999, "bbox": [18, 40, 83, 83]}
    (folder / "train.json").write_text(json.dumps(content | {"annotations": [*content["annotations"], twin]}))
    report, _ = run(folder, [entry(12, masks[120])])
    assert report.left[999] == "no_match" and report.masks[120].box_iou == 1


def test_polygons_and_uncompressed_runs_are_read_and_polygons_written(scene):
    folder, _, masks = scene
    flat = masks[111].T.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    counts = np.diff([0, *edges, flat.size]).tolist()
    results = [
        {"image_id": 12, "segmentation": outlines(masks[120])},
        {"image_id": 11, "segmentation": {"size": list(masks[111].shape), "counts": counts}},
    ]
    _, found = run(folder, results)
    assert found[111]["segmentation"] == rle.encode(masks[111])
    assert np.array_equal(rle.decode(found[120]["segmentation"]), rle.draw_bitmap(outlines(masks[120]), (200, 120)))
    _, found = run(folder, results, segmentation="polygons")
    for i in (111, 120):
        assert isinstance(found[i]["segmentation"][0][0], float)
        drawn = rle.draw_bitmap(found[i]["segmentation"], masks[i].shape)
        assert (drawn & masks[i]).sum() / (drawn | masks[i]).sum() > 0.97


def test_classes_must_be_the_objects_own_unless_passed_over(scene):
    folder, _, masks = scene
    report, _ = run(folder, [entry(12, masks[120], category_id=7)])
    assert report.left[120] == "no_match"
    for category_id, options in ((3, {}), (7, {"ignore_classes": True}), (1, {"ignore_classes": True})):
        report, _ = run(folder, [entry(12, masks[120], category_id=category_id)], **options)
        assert 120 in report.taken


BAD = {
    "number": (1, "got 1; expected an object with image_id and segmentation"),
    "no mask": ({"image_id": 12}, "expected an object with image_id and segmentation"),
    "image": ({"image_id": 5, "segmentation": []}, "image_id 5; expected one of the annotations' images"),
    "class": ({"image_id": 12, "segmentation": [], "category_id": 1}, "category_id 1; expected one .*ignore_classes"),
    "class list": ({"image_id": 12, "segmentation": [], "category_id": [1]}, r"category_id \[1\]; expected one"),
    "score": ({"image_id": 12, "segmentation": [], "score": 3}, "score 3; expected a number from 0 to 1"),
    "size": ({"image_id": 12, "segmentation": {"size": [2, 2], "counts": "04"}}, r"of size \[2, 2\]; expected"),
    "short": ({"image_id": 12, "segmentation": {"size": [200, 120], "counts": "04"}}, "add up to 4 pixels"),
    "text": ({"image_id": 12, "segmentation": "mask"}, "expected a list of polygons or run lengths"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_unsound_entry_is_named(scene, name):
    folder, _, masks = scene
    bad, words = BAD[name]
    with pytest.raises(ValueError, match=rf"results\.json: results\[1\]: .*{words}") as caught:
        run(folder, [entry(12, masks[120]), bad])
    assert "\n" not in str(caught.value) and not (folder / "out.json").exists()


def test_a_run_or_results_but_not_both(scene):
    folder, *_ = scene
    with pytest.raises(ValueError, match=r"expected one of workdir, .* and masks"):
        run(folder, [], workdir="RUN")
    with pytest.raises(ValueError, match=r"expected one of workdir, .* and masks"):
        label(folder / "train.json", folder / "out.json")
    with pytest.raises(ValueError, match="expected images, their folder"):
        label(folder / "train.json", folder / "out.json", workdir="RUN")
    with pytest.raises(ValueError, match="step goes with workdir, and ignore_classes with masks"):
        run(folder, [], step=3)
    with pytest.raises(ValueError, match="step goes with workdir, and ignore_classes with masks"):
        label(folder / "train.json", folder / "o.json", workdir="RUN", images=folder, ignore_classes=True)
    with pytest.raises(ValueError, match="segmentation is 'mask'; expected one of rle, polygons"):
        run(folder, [], segmentation="mask")


def test_an_image_without_size_needs_its_file(scene):
    folder, content, masks = scene
    del content["images"][1]["height"], content["images"][1]["width"]
    (folder / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="image 12 has no height and width; expected them, or the folder"):
        run(folder, [entry(12, masks[120])])
    report, _ = run(folder, [entry(12, masks[120])], images=folder / "images")
    assert 120 in report.taken
