import json
import os

import cv2
import numpy as np
import pytest
from faster_coco_eval import mask as mask_coder

from maskx_jax import errors
from tools import grabcut


@pytest.fixture
def scene():
    """Return a picture of a red disc on a green ground, with some noise, and the disc."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:120, :160]
    disc = (x - 70) ** 2 + (y - 60) ** 2 < 30**2
    image = np.where(disc[..., None], [40, 40, 200], [60, 160, 60]) + rng.integers(-15, 16, (120, 160, 3))
    return image.clip(0, 255).astype(np.uint8), disc


def iou(first, second):
    return (first & second).sum() / (first | second).sum()


def test_it_finds_the_object_of_a_box_that_is_a_little_too_large(scene):
    image, disc = scene
    mask = grabcut.grabcut_mask(image, (35, 25, 70, 70))
    assert iou(mask, disc) > 0.97
    # The box alone is no such mask.
    box = np.zeros_like(disc)
    box[25:95, 35:105] = True
    assert iou(box, disc) < 0.7
    np.testing.assert_array_equal(mask, grabcut.grabcut_mask(image, (35, 25, 70, 70)))


@pytest.mark.parametrize("box", [(0, 0, 160, 120), (-5, -5, 300, 300), (10.2, 10.4, 0.1, 0.1)])
def test_a_box_without_surroundings_or_object_is_all_object(scene, box):
    image, _ = scene
    mask = grabcut.grabcut_mask(image, box)
    assert mask.any()
    if box[2] > 100:
        assert mask.all()


def files(tmp_path, scene):
    image, disc = scene
    cv2.imwrite(str(tmp_path / "1.png"), image)
    annotation = {
        "image_id": 1,
        "bbox": [35, 25, 70, 70],
        "area": 4900,
        "iscrowd": 0,
        "segmentation": [[0, 0, 9, 0, 9, 9]],
    }
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 120, "width": 160}],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "kite"}],
        "annotations": [{**annotation, "id": 1, "category_id": 1}, {**annotation, "id": 2, "category_id": 2}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return content, disc


def test_annotations_get_masks_but_for_the_classes_to_keep(tmp_path, scene):
    content, disc = files(tmp_path, scene)
    options = [
        f"--annotations={tmp_path / 'instances.json'}",
        f"--images={tmp_path}",
        f"--output={tmp_path / 'out.json'}",
    ]
    grabcut.main([*options, "--keep=voc"])
    person, kite = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert person == content["annotations"][0]
    assert iou(mask_coder.decode(kite["segmentation"]).astype(bool), disc) > 0.97
    assert kite["area"] == mask_coder.area(kite["segmentation"])


def test_annotations_that_are_refused_are_read_if_asked(tmp_path, scene, capsys):
    content, _ = files(tmp_path, scene)
    content["annotations"][1]["category_id"] = 77
    content["images"][0]["file_name"] = str(tmp_path / "1.png")
    (tmp_path / "instances.json").write_text(json.dumps(content))
    options = [
        f"--annotations={tmp_path / 'instances.json'}",
        f"--images={tmp_path}",
        f"--output={tmp_path / 'out.json'}",
    ]
    with pytest.raises(ValueError, match="Use allow_outside"):
        grabcut.main([*options, "--drop_unknown"])
    with pytest.raises(ValueError, match="category"):
        grabcut.main([*options, "--allow_outside"])
    grabcut.main([*options, "--allow_outside", "--drop_unknown"])
    assert [a["id"] for a in json.loads((tmp_path / "out.json").read_text())["annotations"]] == [1]
    assert "1  annotations dropped: unknown category_id [unknown_category; ids 2]" in capsys.readouterr().out


def test_detections_get_masks(tmp_path, scene):
    _, disc = files(tmp_path, scene)
    results = [{"image_id": 1, "category_id": 2, "score": 0.5, "bbox": [35, 25, 70, 70]}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    options = [
        f"--annotations={tmp_path / 'instances.json'}",
        f"--images={tmp_path}",
        f"--output={tmp_path / 'out.json'}",
    ]
    grabcut.main([*options, f"--results={tmp_path / 'results.json'}"])
    (found,) = json.loads((tmp_path / "out.json").read_text())
    assert found["score"] == 0.5 and "area" not in found
    assert iou(mask_coder.decode(found["segmentation"]).astype(bool), disc) > 0.97


def test_unknown_and_unreadable_images_are_named(tmp_path, scene):
    content, _ = files(tmp_path, scene)
    images = {image["id"]: image for image in content["images"]}
    with pytest.raises(ValueError, match=r"entry 0 has image_id 7; expected one of 1 of the annotations"):
        grabcut.add_masks([{"image_id": 7, "bbox": [0, 0, 1, 1]}], images, tmp_path)
    (tmp_path / "1.png").write_text("text")
    with pytest.raises(ValueError, match=r"image 1: .*1\.png cannot be read as an image"):
        grabcut.add_masks(content["annotations"], images, tmp_path)
    (tmp_path / "1.png").unlink()
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"1\.png: expected a file; it is a pipe"):
        grabcut.add_masks(content["annotations"], images, tmp_path)


BAD_RESULTS = {
    "numbers": ([1, 2], "entry 0 is a int"),
    "an object": ({"a": 1}, "results.json: got a dict at the top; expected a list"),
    "no image": ([{"bbox": [0, 0, 1, 1]}], "entry 0 has image_id None"),
    "image a list": ([{"image_id": [1], "bbox": [0, 0, 1, 1]}], "entry 0 has image_id [1]"),
    "no box": ([{"image_id": 1}], "entry 0 has bbox None"),
    "box not finite": ([{"image_id": 1, "bbox": [0, 0, float("nan"), 1]}], "entry 0 has bbox [0, 0, nan, 1]"),
    "box without area": ([{"image_id": 1, "bbox": [0, 0, 0, 1]}], "entry 0 has bbox [0, 0, 0, 1]"),
    "cut": ("[{", "results.json: not JSON"),
    "nested": ("[" * 100_000, "results.json: not usable JSON: nested too deeply"),
}


@pytest.mark.parametrize("name", BAD_RESULTS)
def test_bad_results_are_refused_by_one_line(tmp_path, scene, capsys, name):
    files(tmp_path, scene)
    results, said = BAD_RESULTS[name]
    (tmp_path / "results.json").write_text(results if isinstance(results, str) else json.dumps(results))
    options = {"annotations": "instances.json", "results": "results.json", "output": "out.json", "images": ""}
    arguments = [f"--{option}={tmp_path / file}" for option, file in options.items()]
    with pytest.raises(SystemExit) as ended:
        errors.run(lambda: grabcut.main(arguments))
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and line.startswith("error: ") and said in line
    assert not (tmp_path / "out.json").exists()
