import itertools
import json
import math
import os

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask

from maskx_jax.coco.categories import Categories
from maskx_jax.data.coco.annotations import read_instances
from maskx_jax.data.coco.objects import check_objects
from maskx_jax.data.coco.report import NUM_EXAMPLES, REASONS, Report
from maskx_jax.data.records import PACKED_SHAPE, crop_bitmap, rasterize_polygons, unpack_bitmap

SIZE = (40, 60)
CATEGORIES = Categories((2, 5, 90), ("bird", "cat", "dog"))
# But for a corner, without which it would be nothing but its box.
SQUARE = [10, 10, 30, 10, 30, 30, 14, 30, 10, 26]


def annotation(**changes):
    entry = {
        "id": 7,
        "image_id": 1,
        "category_id": 5,
        "iscrowd": 0,
        "bbox": [10, 10, 20, 20],
        "area": 400.0,
        "segmentation": [SQUARE],
    }
    entry |= changes
    return {key: value for key, value in entry.items() if value is not ...}


def content(**changes):
    whole = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "annotations": [annotation()],
        "categories": [{"id": 5, "name": "cat"}, {"id": 2, "name": "bird"}],
    }
    whole |= changes
    return {key: value for key, value in whole.items() if value is not ...}


def check(*annotations, size=SIZE):
    report = Report("val")
    objects, ground_truth = check_objects(annotations, size, CATEGORIES, report)
    return objects, ground_truth, report.counts


@pytest.fixture
def read(tmp_path):
    def read_content(whole, **options):
        path = tmp_path / "instances.json"
        path.write_text(whole if isinstance(whole, str) else json.dumps(whole))
        report = Report("val")
        return read_instances(path, report, **options), report

    return read_content


def disc(size, y, x, radius):
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 < radius**2


def uncompressed(bitmap):
    counts = [len(list(run)) for _, run in itertools.groupby(bitmap.T.ravel().tolist())]
    return {"size": list(bitmap.shape), "counts": [0] * int(bitmap[0, 0]) + counts}


def compressed(bitmap):
    runs = coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    counts = runs["counts"]
    return {"size": list(bitmap.shape), "counts": counts.decode() if isinstance(counts, bytes) else counts}


# The file.


def test_sound_file_passes_without_a_count(read):
    instances, report = read(content(info={"year": 2017}, licenses=[{"id": 1}], extra="left out"))
    assert instances.categories == Categories((2, 5), ("bird", "cat"))
    assert [image["id"] for image in instances.images] == [1]
    assert instances.annotations == {1: [annotation()]}
    assert sorted(instances.header) == ["categories", "info", "licenses"]
    assert report.counts == {}


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        read_instances(tmp_path / "nowhere.json", Report("val"))


@pytest.mark.parametrize("text", ["", "{", '{"images": [}', "images: []"])
def test_invalid_json_is_an_error(read, text):
    with pytest.raises(ValueError, match=r"instances\.json: not JSON: "):
        read(text)


def test_text_that_is_not_unicode_is_an_error(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"images": "\xff\xfe\xfa"}')
    with pytest.raises(ValueError, match=r"a\.json: not JSON"):
        read_instances(tmp_path / "a.json", Report("val"))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": ' + "9" * 5000 + "}"])
def test_json_that_python_does_not_take_is_an_error(read, text):
    with pytest.raises(ValueError, match=r"instances\.json: not (usable )?JSON: "):
        read(text)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_read(tmp_path, make):
    make(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"a\.json: not a regular file; expected JSON"):
        read_instances(tmp_path / "a.json", Report("val"))


def test_endless_json_is_not_read(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(40 * 2**30)
    with pytest.raises(ValueError, match=r"a\.json: the file has 40\.0 GiB; expected at most 8 GiB of JSON"):
        read_instances(tmp_path / "a.json", Report("val"))


def test_many_categories_are_checked_in_no_time(read):
    categories = [{"id": i, "name": str(i)} for i in range(20_000)]
    assert len(read(content(categories=categories))[0].categories) == 20_000


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_mark_is_understood(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes(json.dumps(content(), ensure_ascii=False).encode(encoding))
    assert read_instances(tmp_path / "a.json", Report("val")).annotations == {1: [annotation()]}


def test_list_at_the_top_is_an_error(read):
    with pytest.raises(ValueError, match="got a list at the top"):
        read([annotation()])


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_missing_key_is_named_with_those_there(read, key):
    with pytest.raises(ValueError, match=rf"instances\.json: the key '{key}' is missing; it has \['"):
        read(content(**{key: ...}))


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [None, {"1": {}}, [1, 2]])
def test_key_that_is_no_list_of_objects_is_an_error(read, key, value):
    with pytest.raises(ValueError, match=f"'{key}' must be a list of objects"):
        read(content(**{key: value}))


@pytest.mark.parametrize("key", ["images", "categories"])
def test_no_images_or_categories_is_an_error(read, key):
    with pytest.raises(ValueError, match=rf"instances\.json: '{key}' is empty"):
        read(content(**{key: [], "annotations": []}))


def test_no_annotations_are_fine(read):
    assert read(content(annotations=[]))[0].annotations == {1: []}


# Ids.


@pytest.mark.parametrize("wrong", ["1", 1.0, None, True, 2**63, ...])
@pytest.mark.parametrize("key", ["images", "annotations"])
def test_id_that_is_no_whole_number_is_refused(read, key, wrong):
    whole = content()
    whole[key][0]["id"] = wrong
    if wrong is ...:
        del whole[key][0]["id"]
    shown = None if wrong is ... else wrong
    with pytest.raises(ValueError, match=rf"{key}\[0\] has id {shown!r}; expected a whole number"):
        read(whole)


@pytest.mark.parametrize("key", ["category_id", "image_id"])
@pytest.mark.parametrize("wrong", ["5", 5.0, None, ...])
def test_reference_that_is_no_whole_number_is_refused(read, key, wrong):
    with pytest.raises(ValueError, match=rf"annotation 7 has {key} .*; expected a whole number"):
        read(content(annotations=[annotation(**{key: wrong})]))


@pytest.mark.parametrize("entry", [{"id": "5", "name": "cat"}, {"id": 5, "name": 3}, {"id": 5}, {"name": "cat"}])
def test_category_without_id_or_name_is_refused(read, entry):
    with pytest.raises(ValueError, match=r"categories\[1\] is .*expected a whole number 'id' and a text 'name'"):
        read(content(categories=[{"id": 2, "name": "bird"}, entry]))


@pytest.mark.parametrize("key", ["images", "annotations"])
def test_duplicate_ids_are_listed(read, key):
    whole = content()
    whole[key] = whole[key] * 2
    repeated = whole[key][0]["id"]
    with pytest.raises(ValueError, match=f"ids of {key} must be unique; 1 are repeated: {repeated}$"):
        read(whole)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 2, "name": "cat"}, {"id": 5, "name": "cat"}], r"category names must be unique; repeated: \['cat'\]"),
        ([{"id": 5, "name": "bird"}, {"id": 5, "name": "cat"}], r"category ids must be unique; repeated: \[5\]"),
    ],
)
def test_duplicate_categories_are_listed(read, categories, message):
    with pytest.raises(ValueError, match=rf"instances\.json: {message}"):
        read(content(categories=categories))


def test_unsorted_category_ids_with_gaps_make_labels_in_order_of_id(read):
    categories = [{"id": 90, "name": "dog"}, {"id": 2, "name": "bird"}, {"id": 5, "name": "cat"}]
    instances, report = read(content(categories=categories))
    assert instances.categories == CATEGORIES
    annotations = [annotation(id=i, category_id=i) for i in (5, 90, 2)]
    objects, _ = check_objects(annotations, SIZE, instances.categories, report)
    np.testing.assert_array_equal(objects["labels"], [2, 3, 1])
    np.testing.assert_array_equal(instances.categories.id_of_label()[objects["labels"]], [5, 90, 2])
    np.testing.assert_array_equal(objects["annotation_ids"], [5, 90, 2])


@pytest.mark.parametrize("ids", [(0, 1), (-3, 4)])
def test_zero_and_negative_category_ids_are_fine(read, ids):
    categories = [{"id": ids[1], "name": "cat"}, {"id": ids[0], "name": "bird"}]
    instances, report = read(content(categories=categories, annotations=[annotation(category_id=ids[0])]))
    objects, _ = check_objects(instances.annotations[1], SIZE, instances.categories, report)
    assert objects["labels"].tolist() == [1] and instances.categories.ids == ids


@pytest.mark.parametrize(("key", "reason"), [("category_id", "unknown_category"), ("image_id", "unknown_image")])
def test_unknown_reference_is_listed_or_dropped_and_counted(read, key, reason):
    annotations = [annotation(), annotation(id=8, **{key: 77}), annotation(id=9, **{key: 66})]
    with pytest.raises(
        ValueError,
        match=rf"2 annotations have an unknown {key}: 66, 77, for example in the annotations 8, 9; known are .*"
        "drop_unknown",
    ):
        read(content(annotations=annotations))
    instances, report = read(content(annotations=annotations), drop_unknown=True)
    assert [entry["id"] for entry in instances.annotations[1]] == [7]
    assert report.counts == {reason: 2} and report.examples == {reason: [8, 9]}


def test_annotation_unknown_in_both_ways_is_dropped_once(read):
    _, report = read(content(annotations=[annotation(category_id=77, image_id=77)]), drop_unknown=True)
    assert report.counts == {"unknown_category": 1}


# Images of the file.


@pytest.mark.parametrize("name", [None, "", 3, ...])
def test_image_without_file_name_is_refused(read, name):
    image = {"id": 1, "height": 40, "width": 60} | ({} if name is ... else {"file_name": name})
    with pytest.raises(ValueError, match=r"image 1 has file_name .*; expected a path in the image folder"):
        read(content(images=[image]))


@pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png"])
def test_name_that_no_file_can_have_is_refused(read, name):
    with pytest.raises(ValueError, match=r"image 1 has file_name .*; expected a path in the image folder"):
        read(content(images=[{"id": 1, "file_name": name}]))


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.png", "sub/../../a.png", ".."])
def test_name_that_leads_out_of_the_folder_is_refused_unless_allowed(read, name):
    whole = content(images=[{"id": 1, "file_name": name}])
    with pytest.raises(ValueError, match=r"image 1 has file_name .*, which leads out of the image folder\..*allow_out"):
        read(whole)
    assert read(whole, allow_outside=True)[0].images[0]["file_name"] == name
    assert read(content(images=[{"id": 1, "file_name": "..a/b..png"}]))[0].images[0]["file_name"] == "..a/b..png"


def test_lvis_url_names_the_file(read):
    image = {"id": 1, "height": 40, "width": 60, "coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg"}
    assert read(content(images=[image]))[0].images[0]["file_name"] == "train2017/000000391895.jpg"


@pytest.mark.parametrize("size", [(40, None), (None, 60), (0, 60), (40, -1), ("40", "60"), (40.0, 60.0), (True, 60)])
def test_unusable_image_size_is_refused(read, size):
    image = {"id": 1, "file_name": "a.png", "height": size[0], "width": size[1]}
    with pytest.raises(ValueError, match=r"image 1 has height .* and width .*; expected whole numbers of pixels"):
        read(content(images=[image]))


def test_image_without_size_is_left_to_the_file(read):
    assert "height" not in read(content(images=[{"id": 1, "file_name": "a.png"}]))[0].images[0]


# iscrowd, area, box format.


@pytest.mark.parametrize("missing", [None, ...])
def test_missing_iscrowd_becomes_0(read, missing):
    instances, report = read(content(annotations=[annotation(iscrowd=missing)]))
    assert instances.annotations[1][0]["iscrowd"] == 0
    assert report.counts == {"iscrowd_filled": 1}


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
@pytest.mark.parametrize("wrong", [2, -1, "0", [], [[1] * 1000]])
def test_other_flag_is_refused(read, wrong, key):
    with pytest.raises(ValueError, match=rf"annotation 7 has {key} .*; expected 0 or 1") as caught:
        read(content(annotations=[annotation(**{key: wrong})]))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("wrong", [None, ..., -1, math.nan, math.inf, "400", True])
def test_unusable_area_is_computed_from_the_mask(wrong):
    triangle = [10, 10, 30, 10, 10, 30]
    objects, ground_truth, counts = check(annotation(area=wrong, segmentation=[triangle]))
    assert counts == {"area_filled": 1}
    assert isinstance(ground_truth[0]["area"], float) and ground_truth[0]["area"] == pytest.approx(200, rel=0.03)
    assert objects["has_mask"].all()


def test_unusable_area_is_that_of_the_clipped_box_where_there_is_no_mask():
    _, ground_truth, counts = check(annotation(area=None, segmentation=[], bbox=[50, 10, 20, 20]))
    assert ground_truth[0]["area"] == 200
    assert counts == {"area_filled": 1, "mask_missing": 1, "box_clipped": 1}


CIRCLE = np.stack([20 + 10 * np.cos(np.arange(48) * np.pi / 24), 20 + 10 * np.sin(np.arange(48) * np.pi / 24)], 1)
# Of 12 x 12 in a box of 20 x 20, and of pi * 100.
SMALL = [14, 14, 26, 14, 26, 26, 14, 26]


@pytest.mark.parametrize(
    ("segmentation", "area", "kept"),
    [
        ([], 400, True),
        # An exporter that left the masks out and the areas of the masks in.
        ([], 90.5, True),
        ([], 0, False),
        ([], 2400, False),
        ([CIRCLE.ravel().tolist()], 314, True),
        ([CIRCLE.ravel().tolist()], 300, True),
        ([CIRCLE.ravel().tolist()], 0, False),
        ([CIRCLE.ravel().tolist()], 2400, False),
        (compressed(disc(SIZE, 20, 20, 10)), 316, True),
        (compressed(disc(SIZE, 20, 20, 10)), 2400, False),
        # That of the box, or that of a box one pixel wider.
        ([SMALL], 400, False),
        ([SMALL], 144, True),
        ([SMALL], 169, True),
    ],
)
@pytest.mark.parametrize("crowd", [0, 1])
def test_area_that_fits_neither_mask_nor_box_is_repaired(segmentation, area, kept, crowd):
    _, ground_truth, counts = check(annotation(area=area, segmentation=segmentation, iscrowd=crowd))
    kept = kept or bool(crowd)
    assert counts.get("area_repaired", 0) == (not kept)
    expected = 400 if segmentation == [] else 144 if segmentation == [SMALL] else 314
    assert ground_truth[0]["area"] == (area if kept else pytest.approx(expected, rel=0.02))
    assert isinstance(ground_truth[0]["area"], float)


def test_areas_of_a_large_box_of_the_box_and_of_the_mask_are_told_apart():
    box, polygon = [0, 0, 300, 300], [[0, 0, 300, 0, 0, 300]]
    for area, reason in ((45_000, {}), (90_000, {"area_repaired": 1})):
        _, ground_truth, counts = check(annotation(bbox=box, area=area, segmentation=polygon), size=(300, 300))
        assert counts == reason and ground_truth[0]["area"] == pytest.approx(45_000, rel=0.01)


def test_area_of_what_reaches_outside_counts_all_or_what_is_seen():
    polygon = [[40, 10, 80, 10, 80, 30, 40, 30]]
    for area in (800, 400):
        for segmentation in (polygon, []):
            _, ground_truth, counts = check(annotation(bbox=[40, 10, 40, 20], area=area, segmentation=segmentation))
            assert ground_truth[0]["area"] == area and "area_repaired" not in counts


def boxes_of(*boxes):
    return content(annotations=[annotation(id=i, bbox=box) for i, box in enumerate(boxes)])


def test_xyxy_given_as_xywh_is_refused(read):
    with pytest.raises(
        ValueError, match=r"instances\.json: 'bbox' looks like x1, y1, x2, y2: 2 of 3 boxes would reach outside"
    ):
        read(boxes_of([30, 20, 50, 38], [40, 5, 60, 30], [0, 0, 20, 20]))


def test_boxes_as_fractions_of_the_image_are_refused(read):
    said = r"instances\.json: 'bbox' looks like fractions of the image: 2 of 3 boxes lie in 0\.\.1"
    with pytest.raises(ValueError, match=said):
        read(boxes_of([0.1, 0.2, 0.5, 0.5], [0, 0, 1, 1], [10, 10, 20, 20]))
    # Half of them may be specks in the corner.
    assert len(read(boxes_of([0.1, 0.2, 0.5, 0.5], [10, 10, 20, 20]))[0].annotations[1]) == 2


@pytest.mark.parametrize(
    "boxes",
    [
        # Half of them only.
        [[30, 20, 50, 38], [0, 0, 20, 20]],
        # Outside, but no xyxy either.
        [[30, 20, 20, 38], [40, 30, 30, 20]],
        # One pixel too far, as tools that round do.
        [[30, 9, 31, 32], [20, 20, 41, 21]],
        [None, [30, 20, math.nan, 38], [1, 2, 3, 4, 5]],
    ],
)
def test_other_boxes_are_not_taken_for_xyxy(read, boxes):
    assert len(read(boxes_of(*boxes))[0].annotations[1]) == len(boxes)


# Boxes.


def test_box_becomes_corners_in_float32():
    objects, ground_truth, counts = check(annotation(bbox=[10.25, 10.5, 19.5, 19.25]))
    assert objects["boxes"].dtype == np.float32
    np.testing.assert_array_equal(objects["boxes"], [[10.25, 10.5, 29.75, 29.75]])
    assert ground_truth[0]["bbox"] == [10.25, 10.5, 19.5, 19.25] and counts == {}


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([10, 10, 0, 20], "box_empty"),
        ([10, 10, 20, 0.0], "box_empty"),
        ([10, 10, -20, 20], "box_empty"),
        # Vanishes in float32.
        ([30, 10, 1e-7, 20], "box_empty"),
        ([60, 10, 20, 20], "box_outside"),
        ([-30, 10, 20, 20], "box_outside"),
        ([10, 40, 5, 5], "box_outside"),
        ([10, -20, 5, 20], "box_outside"),
        ([10, 10, math.nan, 20], "box_invalid"),
        ([math.inf, 10, 20, 20], "box_invalid"),
        ([10, 10, 20, -math.inf], "box_invalid"),
        ([10, 10, 1e300, 20], "box_invalid"),
        ([10, 10, 10**400, 20], "box_invalid"),
        ([10, 10, 20, 20, 1], "box_invalid"),
        ([10, 10, 20], "box_invalid"),
        ([], "box_invalid"),
        ([10, 10, "20", 20], "box_invalid"),
        ([10, 10, None, 20], "box_invalid"),
        ([10, 10, True, 20], "box_invalid"),
        ({"x": 10}, "box_invalid"),
        ("10 10 20 20", "box_invalid"),
    ],
)
def test_bad_box_drops_its_annotation_alone(box, reason):
    objects, ground_truth, counts = check(annotation(id=3, bbox=box), annotation())
    assert counts == {reason: 1}
    assert [entry["id"] for entry in ground_truth] == [7] == objects["annotation_ids"].tolist()
    assert all(len(values) == 1 for values in objects.values())


@pytest.mark.parametrize("missing", [None, ...])
def test_missing_box_is_that_of_the_mask(missing):
    for segmentation in ([SQUARE], compressed(disc(SIZE, 20, 20, 10))):
        objects, ground_truth, counts = check(annotation(bbox=missing, segmentation=segmentation, area=380))
        np.testing.assert_array_equal(objects["boxes"], [[10, 10, 30, 30]])
        assert counts.pop("box_filled") == 1 and not set(counts) - {"rle_compressed", "area_repaired"}
        assert ground_truth[0]["bbox"] == [10, 10, 20, 20]
    objects, ground_truth, counts = check(annotation(bbox=missing, segmentation=[[50, 10, 70, 10, 70, 30]]))
    np.testing.assert_array_equal(objects["boxes"], [[50, 10, 60, 30]])
    assert ground_truth[0]["bbox"] == [50, 10, 20, 20] and counts["box_clipped"] == 1
    objects, ground_truth, counts = check(annotation(bbox=missing, segmentation=[]))
    assert counts == {"box_invalid": 1} and ground_truth == [] and len(objects["boxes"]) == 0


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        ([-5, 10, 35, 20], [0, 10, 30, 30]),
        ([10, -5, 20, 35], [10, 0, 30, 30]),
        ([10, 10, 60, 20], [10, 10, 60, 30]),
        ([10, 10, 20, 50], [10, 10, 30, 40]),
        ([-1e12, -1e12, 2e12, 2e12], [0, 0, 60, 40]),
    ],
)
def test_box_partly_outside_is_clipped(box, clipped):
    objects, ground_truth, counts = check(annotation(bbox=box, segmentation=[]))
    np.testing.assert_array_equal(objects["boxes"], [clipped])
    np.testing.assert_array_equal(objects["mask_frames"], [clipped])
    assert ground_truth[0]["bbox"] == box
    assert counts == {"box_clipped": 1, "mask_missing": 1}


def test_box_on_the_border_is_not_clipped():
    whole = annotation(bbox=[0, 0, 60, 40], area=2400, segmentation=[[0, 0, 60, 0, 60, 40, 0, 40]])
    assert check(whole)[2] == {"mask_rectangle": 1}


def test_no_annotations_make_empty_arrays_of_the_right_shapes():
    objects, ground_truth, counts = check()
    assert {name: (values.shape, values.dtype.name) for name, values in objects.items()} == {
        "boxes": ((0, 4), "float32"),
        "labels": ((0,), "int32"),
        "masks": ((0, *PACKED_SHAPE), "uint8"),
        "mask_frames": ((0, 4), "float32"),
        "has_mask": ((0,), "bool"),
        "is_crowd": ((0,), "bool"),
        "annotation_ids": ((0,), "int64"),
    }
    assert ground_truth == [] and counts == {}


# Masks.


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], "mask_missing"),
        (None, "mask_missing"),
        (..., "mask_missing"),
        ("polygon", "mask_malformed"),
        (3, "mask_malformed"),
        ({}, "mask_malformed"),
        ({"counts": "abc"}, "mask_malformed"),
        ({"size": [40, 60]}, "mask_malformed"),
        ({"size": [40, 60], "counts": 2400}, "mask_malformed"),
        ([[]], "polygon_none_left"),
        ([10, 10, 30, 10, 30, 30, 10], "polygon_none_left"),
        ([10, 10, 30, 10, 30, math.nan], "polygon_none_left"),
        # An outline of many thousand pixels in an image of 40 x 60.
        ([[10, 10, 30, 10, 30, 30] + [0, 0, 60, 40] * 200], "polygon_none_left"),
        ([[0, 0, 1e9, 0, 1e9, 30]], "polygon_none_left"),
        # Not one pixel, in any corner of one.
        ([[10.1, 10.1, 10.3, 10.1, 10.3, 10.3, 10.1, 10.3]], "mask_empty"),
        ([[10.6, 10.6, 10.8, 10.6, 10.8, 10.8, 10.6, 10.8]], "mask_empty"),
        ([[10, 10, 30, 10]], "polygon_none_left"),
        ([[10, 10, 30, 10, 30, 30, 10]], "polygon_none_left"),
        ([[10, 10, 30, 10, math.nan, 30]], "polygon_none_left"),
        ([[10, 10, 30, 10, math.inf, 30]], "polygon_none_left"),
        ([[10, 10, 30, 10, 1e300, 30]], "polygon_none_left"),
        ([[10, 10, 30, 10, None, 30]], "polygon_none_left"),
        ([[10, 10, 30, 10, "30", 30]], "polygon_none_left"),
        ([[10, 10, 20, 10, 30, 10]], "mask_empty"),
        ([[10, 10, 10, 10, 10, 10]], "mask_empty"),
        ([[70, 10, 90, 10, 90, 30, 70, 30]], "mask_empty"),
        ([[1e14, 10, 1e14, 30, 1e14, 30]], "mask_empty"),
    ],
)
def test_object_without_usable_mask_is_kept_as_a_box(segmentation, reason):
    objects, ground_truth, counts = check(annotation(segmentation=segmentation))
    assert counts == {reason: 1}
    assert objects["has_mask"].tolist() == [False] and not objects["masks"].any()
    np.testing.assert_array_equal(objects["mask_frames"], objects["boxes"])
    np.testing.assert_array_equal(objects["boxes"], [[10, 10, 30, 30]])
    assert ground_truth == [annotation(segmentation=[])]


def test_flat_polygon_is_one_polygon():
    objects, ground_truth, counts = check(annotation(segmentation=SQUARE))
    expected, frame = rasterize_polygons([SQUARE])
    assert counts == {"polygon_flat": 1} and ground_truth[0]["segmentation"] == [SQUARE]
    np.testing.assert_array_equal(objects["masks"], expected[None])
    np.testing.assert_array_equal(objects["mask_frames"], frame[None])


def test_masks_that_are_just_their_box_are_counted_by_class():
    report = Report("val")
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    bitmap = np.zeros(SIZE, bool)
    bitmap[10:30, 10:30] = True
    entries = [
        annotation(segmentation=square),
        annotation(segmentation=compressed(bitmap), category_id=90),
        annotation(segmentation=[SQUARE]),
        # Of a part of its box, and of a crowd: no rectangle to learn from.
        annotation(segmentation=[SMALL], area=144),
        annotation(segmentation=square, iscrowd=1),
    ]
    check_objects(entries, SIZE, CATEGORIES, report)
    assert report.counts == {"mask_rectangle": 2, "rle_compressed": 1, "mask_box_differ": 1}
    assert report.class_masks == {"cat": [3, 1], "dog": [1, 1]}
    assert "by class: dog 1 of 1, cat 1 of 3\n" in report.table() + "\n"
    assert report.to_json()["classes"]["cat"] == {"masks": 3, "rectangles": 1}


@pytest.mark.parametrize("num_crowds", [0, 3])
def test_report_warns_where_there_is_nothing_to_learn_from(num_crowds):
    table = Report("val", num_images=3, num_crowds=num_crowds).table()
    assert "warning  there is no object to learn from" in table
    assert ("all annotations are crowd regions" in table) == (num_crowds > 0)
    assert "warning" not in Report("val", num_images=3, num_objects=1).table()


@pytest.mark.parametrize("bad", [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, math.nan, 6], None, {}])
def test_invalid_polygon_beside_a_valid_one_is_dropped(bad):
    objects, ground_truth, counts = check(annotation(segmentation=[bad, SQUARE]))
    assert counts == {"polygon_dropped": 1}
    assert ground_truth[0]["segmentation"] == [SQUARE]
    assert objects["has_mask"].all() and unpack_bitmap(objects["masks"]).mean() > 0.97


def test_polygons_are_rasterized_over_their_own_box():
    parts = [[10, 10, 18, 10, 10, 18], [20, 20, 30, 20, 30, 30]]
    objects, ground_truth, counts = check(annotation(segmentation=parts, area=82))
    mask, frame = rasterize_polygons(parts)
    np.testing.assert_array_equal(objects["masks"], mask[None])
    np.testing.assert_array_equal(objects["mask_frames"], frame[None])
    assert 0.1 < unpack_bitmap(mask).mean() < 0.4
    assert ground_truth[0]["segmentation"] == parts and counts == {}


def test_mask_reaching_outside_keeps_its_frame():
    objects, _, counts = check(annotation(bbox=[40, 10, 20, 20], segmentation=[[40, 10, 70, 10, 70, 30, 40, 30]]))
    np.testing.assert_array_equal(objects["mask_frames"], [[40, 10, 70, 30]])
    assert counts == {"mask_rectangle": 1}


@pytest.mark.parametrize(
    ("box", "differ"),
    [([10, 10, 20, 20], False), ([10, 10, 20, 39], False), ([10, 10, 20, 10], False), ([20, 20, 20, 20], True)],
)
def test_mask_and_box_that_disagree_are_counted_and_kept(box, differ):
    objects, ground_truth, counts = check(annotation(bbox=box), size=(60, 60))
    assert counts == ({"mask_box_differ": 1} if differ else {})
    assert objects["has_mask"].all() and ground_truth[0]["segmentation"] == [SQUARE]


@pytest.mark.parametrize("encode", [compressed, uncompressed])
def test_run_lengths_become_the_mask_of_their_bitmap(encode):
    bitmap = disc(SIZE, 20, 25, 12)
    runs = encode(bitmap)
    objects, ground_truth, counts = check(annotation(bbox=[13, 8, 24, 24], segmentation=runs))
    mask, frame = crop_bitmap(bitmap)
    np.testing.assert_array_equal(objects["masks"], mask[None])
    np.testing.assert_array_equal(objects["mask_frames"], frame[None])
    assert counts == {"rle_compressed" if encode is compressed else "rle_uncompressed": 1}
    assert ground_truth[0]["segmentation"] == runs


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        (compressed(disc((60, 40), 20, 20, 10)), "rle_other_size"),
        (compressed(disc((41, 60), 20, 20, 10)), "rle_other_size"),
        (uncompressed(disc((60, 40), 20, 20, 10)), "rle_other_size"),
        ({**compressed(disc(SIZE, 20, 20, 10)), "size": None}, "rle_other_size"),
        ({"size": [40, 60], "counts": [100, 200, 2101]}, "rle_corrupt"),
        ({"size": [40, 60], "counts": [100, 200]}, "rle_corrupt"),
        ({"size": [40, 60], "counts": [100, -200, 2500]}, "rle_corrupt"),
        ({"size": [40, 60], "counts": [100.0, 200, 2100]}, "rle_corrupt"),
        ({"size": [40, 60], "counts": [100, "200", 2100]}, "rle_corrupt"),
        ({"size": [40, 60], "counts": []}, "rle_corrupt"),
        ({"size": [40, 60], "counts": ""}, "rle_corrupt"),
        ({"size": [40, 60], "counts": "no \x7f runs"}, "rle_corrupt"),
        ({"size": [40, 60], "counts": compressed(disc(SIZE, 20, 20, 10))["counts"][:-3]}, "rle_corrupt"),
        ({"size": [40, 60], "counts": "o" * 1_000_000}, "rle_corrupt"),
        (compressed(np.zeros(SIZE, bool)), "mask_empty"),
        ({"size": [40, 60], "counts": [2400]}, "mask_empty"),
        ({"size": [40, 60], "counts": [2400, 0]}, "mask_empty"),
    ],
)
def test_bad_run_lengths_leave_a_box(runs, reason):
    objects, ground_truth, counts = check(annotation(segmentation=runs))
    kind = "rle_compressed" if isinstance(runs["counts"], str) else "rle_uncompressed"
    assert counts == {kind: 1, reason: 1}
    assert not objects["has_mask"].any() and not objects["masks"].any()
    assert ground_truth[0]["segmentation"] == []


@pytest.mark.parametrize("segmentation", [[SQUARE], compressed(disc(SIZE, 20, 20, 10)), []])
def test_crowd_is_kept_without_mask_but_with_its_segmentation(segmentation):
    objects, ground_truth, _ = check(annotation(iscrowd=1, area=350, segmentation=segmentation))
    assert objects["is_crowd"].tolist() == [True] and objects["has_mask"].tolist() == [False]
    assert not objects["masks"].any()
    np.testing.assert_array_equal(objects["mask_frames"], objects["boxes"])
    assert ground_truth == [annotation(iscrowd=1, area=350, segmentation=segmentation)]


@pytest.mark.parametrize("crowd", [0, 1, None])
def test_what_is_marked_to_be_ignored_is_kept_as_a_crowd_region(read, crowd):
    annotations = [annotation(ignore=1, iscrowd=crowd), annotation(id=8, ignore=0), annotation(id=9, ignore=None)]
    instances, report = read(content(annotations=annotations))
    assert report.counts.get("ignore_as_crowd", 0) == (crowd != 1)
    objects, ground_truth = check_objects(instances.annotations[1], SIZE, CATEGORIES, report)
    assert objects["is_crowd"].tolist() == [True, False, False] == (~objects["has_mask"]).tolist()
    assert [entry["iscrowd"] for entry in ground_truth] == [1, 0, 0]


def test_crowd_flag_that_is_a_truth_value_becomes_a_number():
    _, ground_truth, _ = check(annotation(iscrowd=True))
    assert ground_truth[0]["iscrowd"] == 1 and not isinstance(ground_truth[0]["iscrowd"], bool)


def test_annotations_are_not_changed_in_place():
    entry = annotation(area=None, segmentation=[[1, 2], SQUARE])
    check(entry)
    assert entry == annotation(area=None, segmentation=[[1, 2], SQUARE])


# The report.


def test_report_counts_all_but_keeps_few_examples():
    report = Report("val", num_images=3)
    for example in range(NUM_EXAMPLES + 2):
        report.add("box_empty", example)
    report.add("mask_missing", 42)
    assert report.counts == {"box_empty": NUM_EXAMPLES + 2, "mask_missing": 1}
    assert report.examples == {"box_empty": list(range(NUM_EXAMPLES)), "mask_missing": [42]}
    first, *lines = report.table().splitlines()
    assert "split val: 3 images" in first
    assert lines[0].split()[0] == "7" and lines[0].endswith("[box_empty; ids 0, 1, 2, 3, 4, ...]")
    assert lines[1].split()[0] == "1" and lines[1].endswith("[mask_missing; ids 42]")
    saved = json.loads(json.dumps(report.to_json()))
    assert saved["split"] == "val" and saved["num_images"] == 3
    assert saved["reasons"]["mask_missing"] == {"meaning": REASONS["mask_missing"], "count": 1, "examples": [42]}


def test_report_takes_no_reason_without_a_meaning():
    with pytest.raises(ValueError, match="unknown reason 'because'"):
        Report("val").add("because", 1)


def test_every_error_names_few_ids_of_many(read):
    annotations = [annotation(id=i, category_id=100 + i) for i in range(1000)]
    with pytest.raises(ValueError, match=r"1000 annotations .*: 100, 101, 102, 103, 104 and 995 more, ") as caught:
        read(content(annotations=annotations))
    assert len(str(caught.value)) < 600
