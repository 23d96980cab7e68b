"""Keypoints from a COCO file to records and back to ground truth."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from maskx_jax.coco.keypoints import Skeleton
from maskx_jax.data.coco.builder import prepare
from maskx_jax.data.coco.source import CocoSource
from maskx_jax.data.records import check_record
from maskx_jax.data.shapes.source import ShapesSource

HEIGHT, WIDTH = 20, 30
NAMED = {"keypoints": ["nose", "left_ear", "right_ear"], "skeleton": [[1, 2], [1, 3]]}
CATEGORIES = [{"id": 3, "name": "cat", **NAMED}, {"id": 7, "name": "car"}]
SKELETON = Skeleton(("nose", "left_ear", "right_ear"), ((0, 1), (0, 2)), (0, 2, 1))
NONE = [0] * 9
# What is given; what is kept of it; and why it is not the same.
GIVEN = {
    1: ([4, 5, 2, 10, 6, 1, 0, 0, 0], [4, 5, 2, 10, 6, 1, 0, 0, 0], []),
    # Labelled or not, in the corners: the last pixels, and the border in coordinates.
    2: ([0, 0, 2, 29, 19, 2, 30, 20, 1], [0, 0, 2, 29, 19, 2, 30, 20, 1], []),
    3: (None, NONE, ["keypoints_missing"]),
    4: ([1, 2, 0, 3, 4, 0, 0, 0, 0], [1, 2, 0, 3, 4, 0, 0, 0, 0], ["keypoints_missing"]),
    5: ([1, 1, 2, 1, 1], NONE, ["keypoints_missing", "keypoints_number"]),
    6: ("many", NONE, ["keypoints_missing", "keypoints_number"]),
    7: ([math.nan, 1, 2, 7, 8, 2, 9, 9, 1], [0, 0, 0, 7, 8, 2, 9, 9, 1], ["keypoints_invalid"]),
    8: ([1, 1, 3, 7, None, 2, 9, 9, 1], [0, 0, 0, 0, 0, 0, 9, 9, 1], ["keypoints_invalid"]),
    9: ([30.5, 1, 2, 7, -0.75, 1, 9, 9, 2], [0, 0, 0, 0, 0, 0, 9, 9, 2], ["keypoints_outside"]),
}
CROWD, CAR, MISCOUNTED = 20, 21, 22


def annotation(annotation_id, **changes):
    box = {"bbox": [2, 3, 10, 8], "area": 40.0, "segmentation": [[2, 3, 12, 3, 2, 11]]}
    return {"id": annotation_id, "image_id": 100 + annotation_id % 2, "category_id": 3, "iscrowd": 0} | box | changes


def labelled(points):
    return sum(isinstance(value, int | float) and value > 0 for value in points[2::3]) if points else 0


def write(folder, categories=CATEGORIES, annotations=None, name="instances"):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images = [{"id": 100 + i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(2)]
    for image in images:
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(folder / "images" / image["file_name"])
    if annotations is None:
        annotations = [
            annotation(number, **({} if points is None else {"keypoints": points, "num_keypoints": labelled(points)}))
            for number, (points, _, _) in GIVEN.items()
        ]
        annotations[5].update(num_keypoints=0)
        good = GIVEN[1][0]
        annotations += [
            annotation(CROWD, iscrowd=1, keypoints=good, num_keypoints=2),
            annotation(CAR, category_id=7, keypoints=good, num_keypoints=2),
            annotation(MISCOUNTED, keypoints=good, num_keypoints=3),
        ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / f"{name}.json", folder / "images"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keypoints")
    reports = prepare(folder / "out", {"train": write(folder)})
    return folder / "out", reports["train"]


def rows(source):
    """Return for each annotation id the keypoints of its record, as rows (x, y, v)."""
    found = {}
    kept = [a["id"] for a in source.coco_ground_truth()["annotations"]]
    for index in range(2):
        record = source[index]
        check_record(record, 2, source.skeleton)
        points = record.keypoints
        ids = [i for i in kept if 100 + i % 2 == record.image_id]
        values = np.concatenate([points.points, (points.labelled + 1 * points.visible)[..., None]], axis=2)
        found |= dict(zip(ids, values, strict=True))
    return found


def test_records_have_the_keypoints_in_continuous_pixels(prepared):
    source = CocoSource(prepared[0], "train")
    assert source.skeleton == SKELETON
    found = rows(source)
    for number, (_, kept, _) in GIVEN.items():
        triples = np.array(kept, np.float64).reshape(-1, 3)
        is_labelled = triples[:, 2] > 0
        expected = np.where(is_labelled[:, None], triples + np.array([0.5, 0.5, 0]), 0)
        expected[:, :2] = np.minimum(expected[:, :2], (WIDTH, HEIGHT))
        np.testing.assert_array_equal(found[number], expected, str(number))
    assert not found[CROWD].any() and not found[CAR].any() and found[MISCOUNTED][0].tolist() == [4.5, 5.5, 2]


def test_ground_truth_has_them_as_they_were(prepared):
    kept = {a["id"]: a for a in CocoSource(prepared[0], "train").coco_ground_truth()["annotations"]}
    for number, (given, expected, _) in GIVEN.items():
        assert kept[number]["keypoints"] == expected and kept[number]["num_keypoints"] == labelled(expected)
        if given == expected:
            assert list(kept[number])[-2:] == ["keypoints", "num_keypoints"]
    good = GIVEN[1][0]
    assert [kept[number]["keypoints"] for number in (CROWD, CAR, MISCOUNTED)] == [good, NONE, good]
    assert [kept[number]["num_keypoints"] for number in (CROWD, CAR, MISCOUNTED)] == [2, 0, 2]


def test_what_is_wrong_is_counted(prepared):
    report = prepared[1]
    reasons = {reason for _, _, found in GIVEN.values() for reason in found}
    for reason in reasons:
        expected = [number for number, (_, _, found) in GIVEN.items() if reason in found]
        assert report.counts[reason] == len(expected) and set(report.examples[reason]) == set(expected[:5])
    assert report.examples["keypoints_unnamed"] == [7] and report.examples["keypoints_count"] == [MISCOUNTED]
    assert {name for name in report.counts if name.startswith("keypoints")} == reasons | {
        *("keypoints_unnamed", "keypoints_count")
    }
    assert report.num_with_keypoints == report.to_json()["num_with_keypoints"] == 6
    assert "with mask, 6 with keypoints)" in report.table()


def test_a_dataset_without_keypoints_is_written_as_ever(tmp_path):
    plain = [{"id": entry["id"], "name": entry["name"]} for entry in CATEGORIES]
    prepare(tmp_path / "none", {"train": write(tmp_path / "a", plain)})
    prepare(tmp_path / "dropped", {"train": write(tmp_path / "b")}, keypoints="drop")
    for name in ("none", "dropped"):
        source = CocoSource(tmp_path / name, "train")
        assert source.skeleton is None and source[0].keypoints is None
        assert json.loads((tmp_path / name / "categories.json").read_text()) == plain
        assert "keypoints" not in (tmp_path / name / "features.json").read_text()
        report = json.loads((tmp_path / name / "report_train.json").read_text())
        assert "num_with_keypoints" not in report
    # As before keypoints were read: annotations stay as they are, records have none.
    first = source.coco_ground_truth()["annotations"]
    assert next(a for a in first if a["id"] == 5)["keypoints"] == [1, 1, 2, 1, 1]


def test_a_dataset_of_the_earlier_format_has_none(prepared, tmp_path):
    # Its categories have ids and names only, and so do the features of its records.
    prepare(tmp_path / "earlier", {"train": write(tmp_path)}, keypoints="drop")
    earlier, now = CocoSource(tmp_path / "earlier", "train"), CocoSource(prepared[0], "train")
    assert earlier[1].keypoints is None and earlier.identity != now.identity
    for name in ("boxes", "labels", "masks", "mask_frames", "has_mask", "is_crowd"):
        np.testing.assert_array_equal(getattr(earlier[1], name), getattr(now[1], name))


def test_shapes_come_back_as_they_were(tmp_path):
    shapes = ShapesSource(6, 11, image_size=64, crowd_fraction=0.5, keypoints=True)
    (tmp_path / "images").mkdir()
    content = shapes.coco_ground_truth()
    for index, image in enumerate(content["images"]):
        Image.fromarray(shapes[index].image).save(tmp_path / "images" / image["file_name"])
    (tmp_path / "shapes.json").write_text(json.dumps(content))
    report = prepare(tmp_path / "out", {"val": (tmp_path / "shapes.json", tmp_path / "images")})["val"]
    source = CocoSource(tmp_path / "out", "val")
    assert source.skeleton == shapes.skeleton and not any(name.startswith("keypoints") for name in report.counts)
    assert source.coco_ground_truth()["annotations"] == content["annotations"]
    for index in range(6):
        for name, value in vars(shapes[index].keypoints).items():
            np.testing.assert_array_equal(getattr(source[index].keypoints, name), value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"keypoints": ["nose", "tail", "paw"]}, "the categories 'cat' and 'car' have different keypoints"),
        ({"keypoints": ["nose", "nose"]}, "category 'car': got keypoints"),
    ],
)
def test_categories_that_do_not_fit_are_refused_with_the_remedy(changed, message, tmp_path):
    split = write(tmp_path, [CATEGORIES[0], CATEGORIES[1] | changed])
    with pytest.raises(ValueError, match=rf"instances\.json: {message}.*Use keypoints=drop"):
        prepare(tmp_path / "out", {"train": split})
    assert not (tmp_path / "out").exists()


def test_splits_with_different_keypoints_are_refused(tmp_path):
    splits = {
        "train": write(tmp_path),
        "val": write(tmp_path, [CATEGORIES[0] | {"keypoints": []}, CATEGORIES[1]], name="b"),
    }
    with pytest.raises(
        ValueError,
        match=r"'train' and 'val' differ in the keypoints .*: 3 of category 3 \(nose, .*\) and none\. Use",
    ):
        prepare(tmp_path / "out", splits)
    with pytest.raises(ValueError, match="keypoints is 'maybe'; expected one of use, drop"):
        prepare(tmp_path / "out", splits, keypoints="maybe")
