"""Annotations with boxes in, the same with masks out."""

import json

import cv2
import numpy as np
import pytest

from maskx_jax.coco import rle
from maskx_jax.data.coco.images import UnreadableImageError
from maskx_jax.data.coco.predicted import FIELD
from maskx_jax.labelling import predicting
from maskx_jax.labelling.label import label
from maskx_jax.runs import loading
from tests.labelling.scenes import Bright, loaded, write_scenes

BOX_ONLY = [111, 120, 131]


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load", lambda workdir, step: loaded())
    content, masks = write_scenes(tmp_path)
    return tmp_path, content, masks


def run(folder, content=None, **options):
    """Label the annotations, changed or not; return the report and what was written, by annotation id."""
    if content is not None:
        (folder / "train.json").write_text(json.dumps(content))
    options = {"workdir": "RUN", "images": folder / "images", "overwrite": True} | options
    report = label(folder / "train.json", folder / "out.json", **options)
    return report, {a["id"]: a for a in json.loads((folder / "out.json").read_text())["annotations"]}


def iou(segmentation, mask):
    found = rle.decode(segmentation)
    return (found & mask).sum() / (found | mask).sum()


def test_objects_with_boxes_get_masks_and_all_else_stays(scene):
    folder, content, masks = scene
    report, found = run(folder)
    assert [i for i in found if FIELD in found[i]] == BOX_ONLY
    for i in BOX_ONLY:
        assert iou(found[i]["segmentation"], masks[i]) > 0.93
        marks = found[i][FIELD]
        # Bright and dark are 235 and 20 of 255: sure to 0.84, less along the border.
        assert 0.7 < marks["certainty"] < 0.85 and marks["box_iou"] > 0.9
        assert marks["quality"] == pytest.approx(marks["certainty"] * marks["box_iou"], abs=1e-3)
        assert marks["source"] == "RUN, step 30"
    written = json.loads((folder / "out.json").read_text())
    assert {key: written[key] for key in written if key != "annotations"} == {
        key: content[key] for key in content if key != "annotations"
    }
    # Nothing but the two fields is another, and the crowd region is left alone.
    for before, after in zip(content["annotations"], written["annotations"], strict=True):
        changed = {"segmentation", FIELD} if before["id"] in BOX_ONLY else set()
        assert {k: v for k, v in after.items() if k not in changed} == {
            k: v for k, v in before.items() if k not in changed
        }
    counts = report.to_json()
    assert json.loads((folder / "out.report.json").read_text()) == counts
    assert (counts["num_objects"], counts["num_boxes_only"], counts["num_masks"]) == (5, 3, 3)
    assert "5 objects: 2 with mask, 3 with box only" in report.table()


@pytest.mark.parametrize(
    "unusable",
    [
        [[]],
        [[5, 5, 20, 20]],
        [[500, 500, 520, 500, 520, 520]],
        {"counts": []},
        {"size": [160, 90], "counts": [14400]},
        {"size": [90, 160], "counts": [14400]},
        "here",
    ],
)
@pytest.mark.parametrize("sized", [True, False])
def test_a_segmentation_that_prepare_makes_no_mask_of_is_none(scene, unusable, sized):
    folder, content, masks = scene
    content["annotations"] = [
        a | ({"segmentation": unusable} if a["id"] == 110 else {}) for a in content["annotations"]
    ]
    content["images"] = [i if sized else {"id": i["id"], "file_name": i["file_name"]} for i in content["images"]]
    report, found = run(folder, content)
    assert [i for i in found if FIELD in found[i]] == [110, *BOX_ONLY]
    assert iou(found[110]["segmentation"], masks[110]) > 0.93
    assert report.to_json()["num_unusable"] == 1 and "1  of these have a segmentation that is no" in report.table()
    assert run(folder, content, threshold=1)[1][110]["segmentation"] == []


def test_masks_below_the_threshold_are_not_taken(scene):
    folder, *_ = scene
    report, found = run(folder, threshold=0.99)
    assert not any(FIELD in a for a in found.values()) and found[120]["segmentation"] == []
    assert report.to_json()["left"]["below_threshold"]["count"] == 3
    assert set(report.masks) == set(BOX_ONLY)
    assert "3  left with box only: quality below the threshold [below_threshold; ids 111, 120, 131]" in report.table()


def test_what_was_predicted_before_is_predicted_anew_or_taken_away(scene):
    folder, *_ = scene
    _, first = run(folder)
    (folder / "out.json").rename(folder / "train.json")
    report, again = run(folder)
    assert again == first and report.num_predicted_before == 3
    (folder / "out.json").rename(folder / "train.json")
    _, none = run(folder, threshold=1)
    assert not any(FIELD in a for a in none.values()) and all(none[i]["segmentation"] == [] for i in BOX_ONLY)


def test_what_cannot_have_a_mask_keeps_its_box_and_is_counted(scene):
    folder, content, _ = scene
    changes = {111: {"bbox": [500, 0, 9, 9]}, 120: {"category_id": 7}, 131: {"bbox": [1, 1, 4, 3]}}
    content["annotations"] = [a | changes.get(a["id"], {}) for a in content["annotations"]]
    content["categories"].append({"id": 9, "name": "comet"})
    content["annotations"].append(content["annotations"][0] | {"id": 5, "category_id": 9, "segmentation": None})
    report, _ = run(folder, content)
    assert report.left == {111: "box_unusable", 120: "mask_empty", 131: "mask_empty", 5: "class_unknown"}
    assert report.to_json()["classes"]["comet"] == {"boxes_only": 1, "masks": 0, "mean_quality": None}


def test_an_image_with_more_boxes_than_slots_comes_again(scene, monkeypatch):
    folder, content, masks = scene
    monkeypatch.setattr(predicting, "_MOST_SLOTS", 2)
    copies = [a | {"id": 1000 + n, "segmentation": []} for n in range(5) for a in content["annotations"][:1]]
    _, found = run(folder, content | {"annotations": content["annotations"] + copies})
    assert all(iou(found[1000 + n]["segmentation"], masks[110]) > 0.93 for n in range(5))


@pytest.mark.parametrize(
    ("damage", "sized"),
    [("missing", True), ("missing", False), ("no image", True), ("no image", False), ("other size", True)],
)
def test_an_image_that_cannot_be_read_stops_it_or_is_counted(scene, monkeypatch, damage, sized):
    folder, content, _ = scene
    path = folder / "images" / "12.png"
    path.unlink()
    if damage == "no image":
        path.write_bytes(b"no image")
    elif damage == "other size":
        cv2.imwrite(str(path), np.zeros((9, 9, 3), np.uint8))
    if not sized:
        del content["images"][1]["height"], content["images"][1]["width"]
    report, found = run(folder, content, skip_bad_images=True)
    assert report.left == {120: "image_skipped"} and FIELD in found[131]
    # Before an hour of work.
    monkeypatch.setattr(loading, "load", None)
    with pytest.raises(UnreadableImageError, match=r"image 12: .*12\.png.*Use skip_bad_images"):
        run(folder, content)


def test_an_image_whose_pixels_cannot_be_read_stops_it_or_is_counted(scene):
    folder, *_ = scene
    path = folder / "images" / "12.png"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnreadableImageError, match=r"image 12: .*12\.png.*Use skip_bad_images"):
        run(folder)
    report, found = run(folder, skip_bad_images=True)
    assert report.left == {120: "image_skipped"} and FIELD in found[131]


def test_what_is_wrong_is_said_before_the_model_runs(scene, monkeypatch):
    folder, content, _ = scene
    with pytest.raises(ValueError, match=r"threshold is 1\.5; expected a value from 0 to 1"):
        run(folder, threshold=1.5)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        run(folder, images=folder / "nowhere")
    with pytest.raises(ValueError, match="is the file of annotations itself"):
        label(folder / "train.json", folder / "train.json", workdir="RUN", images=folder, overwrite=True)
    (folder / "out.json").write_text("{}")
    with pytest.raises(FileExistsError, match="overwrite"):
        run(folder, overwrite=False)
    with pytest.raises(ValueError, match="knows none of the 1 classes of the annotations by name"):
        names = [{"id": 3, "name": "cat"}]
        run(folder, content | {"categories": names})
    fcos = type("Boxes", (Bright,), {"produces": frozenset({"boxes"})})()
    monkeypatch.setattr(loading, "load", lambda workdir, step: loaded(fcos))
    with pytest.raises(ValueError, match="makes boxes; expected one that makes masks"):
        run(folder, content)


def test_a_mask_that_is_not_finite_is_named(scene, monkeypatch):
    folder, *_ = scene

    class Diverged(Bright):
        def predict_masks(self, *inputs):
            return super().predict_masks(*inputs) * np.nan

    monkeypatch.setattr(loading, "load", lambda workdir, step: loaded(Diverged()))
    with pytest.raises(ValueError, match="annotation 111: its predicted mask is not finite"):
        run(folder)
    assert not (folder / "out.json").exists()
