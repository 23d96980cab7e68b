import concurrent.futures
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from maskx_jax.coco.categories import Categories
from maskx_jax.data import sources
from maskx_jax.data.coco import builder as coco_builder
from maskx_jax.data.coco.builder import prepare
from maskx_jax.data.coco.images import UnreadableImageError
from maskx_jax.data.coco.predicted import FIELD
from maskx_jax.data.coco.source import CocoSource
from maskx_jax.data.records import BrokenRecordError, check_record, rasterize_polygons, unpack_bitmap
from maskx_jax.data.shapes.source import ShapesSource
from maskx_jax.data.sources import open_source
from maskx_jax.data.transforms import decode

CATEGORIES = [{"id": 90, "name": "dog"}, {"id": 2, "name": "bird"}, {"id": 5, "name": "cat", "supercategory": "pet"}]
LABEL_OF_ID = {2: 1, 5: 2, 90: 3}
NUM_IMAGES = 23
NEGATIVE, CROWD_ONLY, ALL_DROPPED, BOX_ONLY = 3, 4, 5, 6


def pixels_of(index):
    """Return the image at a place: sizes and colours tell images apart."""
    return np.full((20 + index, 30 + 2 * (index % 5), 3), [10 * index, 255 - index, 7], np.uint8)


def triangle(x, y):
    return [x, y, x + 10, y, x, y + 8]


def annotation(annotation_id, image_id, **changes):
    x, y = changes.pop("at", (2, 3))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 5,
        "iscrowd": 0,
        "bbox": [x, y, 10, 8],
        "area": 40.0,
        "segmentation": [triangle(x, y)],
    } | changes


def write(folder, whole, name="instances.json"):
    (folder / name).write_text(json.dumps(whole))
    return folder / name


def make(folder, num_images=3, broken=()):
    """Write images and annotations, one object each; return the arguments of a split."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for index in range(num_images):
        Image.fromarray(pixels_of(index)).save(images / f"{index}.png")
        if index in broken:
            (images / f"{index}.png").write_bytes(b"no image")
    return write(folder, content(num_images)), images


def content(num_images=3):
    sizes = [pixels_of(index).shape for index in range(num_images)]
    return {
        "images": [
            {"id": 100 + index, "file_name": f"{index}.png", "height": size[0], "width": size[1]}
            for index, size in enumerate(sizes)
        ],
        "annotations": [annotation(index, 100 + index) for index in range(num_images)],
        "categories": CATEGORIES,
    }


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def whole():
    """Ids of images neither sorted nor dense, and one image of each special kind."""
    instances = content(NUM_IMAGES)
    instances["info"] = {"description": "made up"}
    for index, image in enumerate(instances["images"]):
        image["id"] = (index * 7919) % 10007 + (2**40 if index == 9 else 0)
    ids = [image["id"] for image in instances["images"]]
    instances["annotations"] = []
    for index in range(NUM_IMAGES):
        first = 1000 - 10 * index
        entries = [
            annotation(first + k, ids[index], category_id=[5, 90, 2][(index + k) % 3], at=(k + 0.5, 2 * k + index / 4))
            for k in range(1 + index % 4)
        ]
        if index == CROWD_ONLY:
            entries = [annotation(first, ids[index], iscrowd=1)]
        elif index == NEGATIVE:
            entries = []
        elif index == ALL_DROPPED:
            entries = [annotation(first, ids[index], bbox=[0, 0, 0, 0])]
        elif index == BOX_ONLY:
            entries = [annotation(first, ids[index], segmentation=[]), annotation(first + 1, ids[index], iscrowd=1)]
        instances["annotations"] += entries
    # The order of annotations does not matter, but that within an image stays.
    instances["annotations"].sort(key=lambda entry: (entry["id"] % 10, entry["id"]))
    return instances


@pytest.fixture(scope="module")
def prepared(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    _, images = make(folder, NUM_IMAGES)
    split = (write(folder, whole), images)
    reports = prepare(folder / "new/output", {"train": split, "val": split}, num_shards=3)
    return folder / "new/output", reports


@pytest.fixture(scope="module")
def source(prepared):
    return CocoSource(prepared[0], "val")


def annotations_of(whole, index):
    image_id = whole["images"][index]["id"]
    return [entry for entry in whole["annotations"] if entry["image_id"] == image_id and entry["bbox"][2] > 0]


# What was prepared, read back.


def test_prepared_directory_holds_what_its_docstring_says(prepared):
    output, reports = prepared
    names = left(output)
    assert left(output.parent) == ["output"]
    for split in ("train", "val"):
        assert {f"index_{split}.npz", f"annotations_{split}.json", f"report_{split}.json"} <= set(names)
        assert len([name for name in names if f"-{split}.array_record" in name]) == 3
        assert json.loads((output / f"report_{split}.json").read_text()) == reports[split].to_json()
    assert json.loads((output / "categories.json").read_text()) == [
        {"id": 2, "name": "bird"},
        {"id": 5, "name": "cat"},
        {"id": 90, "name": "dog"},
    ]


def test_record_i_is_image_i_of_the_json(whole, source):
    assert len(source) == NUM_IMAGES
    assert source.categories == Categories((2, 5, 90), ("bird", "cat", "dog"))
    for index, image in enumerate(whole["images"]):
        record, entries = source[index], annotations_of(whole, index)
        assert record.image_id == image["id"] and record.size == (image["height"], image["width"])
        assert tuple(source.sizes[index]) == record.size and source.image_ids[index] == record.image_id
        np.testing.assert_array_equal(decode(record), pixels_of(index))
        assert len(record.boxes) == len(entries)
        for k, entry in enumerate(entries):
            x, y, width, height = entry["bbox"]
            np.testing.assert_array_equal(record.boxes[k], np.float32([x, y, x + width, y + height]))
            assert record.labels[k] == LABEL_OF_ID[entry["category_id"]]
            assert record.is_crowd[k] == entry["iscrowd"]
            assert record.has_mask[k] == (not entry["iscrowd"] and entry["segmentation"] != [])
            if record.has_mask[k]:
                mask, frame = rasterize_polygons(entry["segmentation"])
                np.testing.assert_array_equal(record.masks[k], mask)
                np.testing.assert_array_equal(record.mask_frames[k], frame)
                assert 0.4 < unpack_bitmap(record.masks[k]).mean() < 0.6
            else:
                assert not record.masks[k].any()


def test_index_tells_labels_and_masks_of_objects_without_crowds(source):
    assert len(source.image_labels) == len(source.image_has_mask) == NUM_IMAGES
    for index in range(NUM_IMAGES):
        record = source[index]
        np.testing.assert_array_equal(source.image_labels[index], record.labels[~record.is_crowd])
        np.testing.assert_array_equal(source.image_has_mask[index], record.has_mask[~record.is_crowd])


@pytest.mark.parametrize("index", [NEGATIVE, ALL_DROPPED])
def test_image_without_annotations_is_kept_as_a_negative(source, index):
    record = source[index]
    assert [len(values) for values in (record.boxes, record.labels, record.masks, record.mask_frames)] == [0] * 4
    assert record.boxes.shape == (0, 4) and record.masks.shape == (0, 112, 14)
    assert record.has_mask.dtype == bool and record.is_crowd.dtype == bool
    np.testing.assert_array_equal(decode(record), pixels_of(index))


def test_image_with_only_a_crowd_is_kept(source):
    record = source[CROWD_ONLY]
    assert record.is_crowd.tolist() == [True] and record.has_mask.tolist() == [False]
    assert len(source.image_labels[CROWD_ONLY]) == 0


def test_report_counts_all_that_is_kept(whole, prepared):
    report = prepared[1]["val"]
    kept = [entry for entry in whole["annotations"] if entry["bbox"][2] > 0]
    assert report.num_images == NUM_IMAGES
    assert report.num_objects == sum(not entry["iscrowd"] for entry in kept)
    assert report.num_masks == report.num_objects - 1
    assert report.num_crowds == 2
    assert report.counts == {
        "image_negative": 1,
        "image_crowd_only": 1,
        "image_all_dropped": 1,
        "box_empty": 1,
        "mask_missing": 1,
    }
    ids = [image["id"] for image in whole["images"]]
    assert report.examples["image_negative"] == [ids[NEGATIVE]]
    assert report.examples["image_crowd_only"] == [ids[CROWD_ONLY]]
    assert report.examples["image_all_dropped"] == [ids[ALL_DROPPED]]


def test_ground_truth_keeps_the_original_segmentations(whole, source):
    ground_truth = source.coco_ground_truth()
    assert ground_truth["categories"] == CATEGORIES and ground_truth["info"] == {"description": "made up"}
    assert ground_truth["images"] == whole["images"]
    expected = {entry["id"]: entry for entry in whole["annotations"] if entry["bbox"][2] > 0}
    assert {entry["id"]: entry for entry in ground_truth["annotations"]} == expected
    assert len(ground_truth["annotations"]) == len(expected)


def test_index_out_of_range_ends_a_loop(source):
    assert [record.image_id for record in source] == [source[index].image_id for index in range(NUM_IMAGES)]
    for index in (-1, NUM_IMAGES):
        with pytest.raises(IndexError, match=f"image {index} of a split of {NUM_IMAGES}"):
            source[index]


def test_several_threads_read_at_a_time(whole, prepared):
    source = CocoSource(prepared[0], "train")
    indices = np.random.default_rng(0).integers(0, NUM_IMAGES, 400).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        records = list(pool.map(source.__getitem__, indices))
    for index, record in zip(indices, records, strict=True):
        assert record.image_id == whole["images"][index]["id"]
        np.testing.assert_array_equal(decode(record), pixels_of(index))


def test_tfds_reads_it_without_the_builder(whole, prepared):
    builder = tfds.builder_from_directory(prepared[0])
    examples = builder.as_data_source("val")
    assert [int(example["image_id"]) for example in examples] == [image["id"] for image in whole["images"]]
    np.testing.assert_array_equal(examples[8]["image"], pixels_of(8))
    assert examples[8]["file_name"] == b"8.png"
    expected = [entry["id"] for entry in annotations_of(whole, 8)]
    assert examples[8]["objects"]["annotation_ids"].tolist() == expected


def hostile(path):
    """Name a module that is no part of TFDS, deep in the features."""
    path.write_text(path.read_text().replace("tensorflow_datasets.core.features.text_feature.Text", "antigravity.Text"))


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without(name):
    def change(path):
        with np.load(path) as arrays:
            np.savez(path, **{key: value for key, value in arrays.items() if key != name})

    return change


def changed(name, change):
    def write(path):
        with np.load(path) as arrays:
            np.savez(path, **{key: change(value) if key == name else value for key, value in arrays.items()})

    return write


def bomb(path):
    """Say of an array that it unpacks to 4 GB."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(data)


DAMAGE = [
    ("features.json", hostile, "names the class 'antigravity.Text'; expected one of tensorflow_datasets.core"),
    ("features.json", lambda path: path.write_text('{"type": "os.x", "content": {}}'), "names the class 'os.x'"),
    ("features.json", lambda path: path.write_text('{"a": [{"python_class_name": "os.x"}]}'), "names the class 'os.x'"),
    ("features.json", lambda path: path.write_text('{"type": ["os.x"]}'), "KeyError"),
    ("features.json", lambda path: path.write_text("[" * 100_000), "RecursionError"),
    ("features.json", lambda path: path.write_text("{}"), ""),
    ("features.json", truncated, "JSONDecodeError"),
    ("dataset_info.json", truncated, ""),
    ("dataset_info.json", lambda path: path.write_text("{}"), ""),
    ("categories.json", truncated, "JSONDecodeError"),
    ("categories.json", lambda path: path.write_text("[3]"), "TypeError"),
    ("index_val.npz", truncated, "BadZipFile"),
    ("index_val.npz", lambda path: path.write_bytes(b""), "EOFError"),
    ("index_val.npz", lambda path: path.write_bytes(b"pickle"), ""),
    ("index_val.npz", without("labels"), "KeyError"),
    ("index_val.npz", bomb, "expected at most 2147483648"),
    ("index_val.npz", changed("labels", lambda labels: labels + 5), "labels go from 6 to 8; expected 1 to 3"),
    ("index_val.npz", changed("labels", lambda labels: labels.astype(float)), "labels is float64"),
    ("index_val.npz", changed("has_mask", lambda has_mask: has_mask[1:]), "has_mask is bool"),
    ("index_val.npz", changed("num_objects", lambda numbers: numbers + 1), "num_objects adds up to"),
    ("index_val.npz", changed("sizes", lambda sizes: -sizes), "sizes of 1 or more"),
    ("index_val.npz", changed("image_ids", lambda ids: ids * 0), "ids of their own"),
]


@pytest.mark.parametrize("case", range(len(DAMAGE)))
def test_a_damaged_or_hostile_dataset_is_refused_by_one_line(prepared, tmp_path, case):
    name, damage, said = DAMAGE[case]
    copied = shutil.copytree(prepared[0], tmp_path / "copy")
    damage(copied / name)
    with pytest.raises(ValueError, match=rf"^{copied}\S* is damaged, prepare the dataset again: ") as caught:
        CocoSource(copied, "val")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert "antigravity" not in sys.modules


def test_missing_records_and_ground_truth_are_named(prepared, tmp_path):
    copied = shutil.copytree(prepared[0], tmp_path / "copy")
    truncated(copied / "annotations_val.json")
    with pytest.raises(ValueError, match=r"annotations_val\.json is damaged, prepare the dataset again"):
        CocoSource(copied, "val").coco_ground_truth()
    shutil.copy(copied / "index_val.npz", copied / "index_test.npz")
    with pytest.raises(ValueError, match="copy is damaged, prepare the dataset again"):
        CocoSource(copied, "test")
    info = json.loads((copied / "dataset_info.json").read_text())
    for split in info["splits"]:
        split["shardLengths"] = ["1"] * 3
    (copied / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=f"3 records in split 'val'; its index has {NUM_IMAGES}"):
        CocoSource(copied, "val")


def test_damage_of_a_record_is_told_from_a_read_that_fails(prepared, tmp_path):
    copied = shutil.copytree(prepared[0], tmp_path / "copy")
    shards = sorted(copied.glob("*-val.array_record-*"))
    data = bytearray(shards[0].read_bytes())
    # The second half of what is no padding.
    end = len(bytes(data).rstrip(b"\0"))
    data[end // 2 : end] = bytes(value ^ 1 for value in data[end // 2 : end])
    source = CocoSource(copied, "val")
    shards[0].write_bytes(data)
    shards[-1].unlink()
    with pytest.raises(BrokenRecordError, match="its record cannot be decoded: Corrupted"):
        for index in range(NUM_IMAGES // 3):
            source[index]
    with pytest.raises(OSError, match=r"copy: split 'val' cannot be read: open\(\) failed: No such file"):
        source[NUM_IMAGES - 1]
    assert source[NUM_IMAGES // 2].image_id >= 0


def test_a_file_that_comes_back_is_opened_again(prepared, tmp_path):
    copied = shutil.copytree(prepared[0], tmp_path / "copy")
    source, path = CocoSource(copied, "val"), min(copied.glob("*-val.array_record-*"))
    hidden = path.rename(copied / "hidden")
    for _ in range(2):
        with pytest.raises(OSError, match="split 'val' cannot be read"):
            source[1]
    hidden.rename(path)
    assert source[1].size == pixels_of(1).shape[:2]


def test_identity_is_that_of_the_index_and_not_of_the_place(prepared, source, tmp_path):
    identity = source.identity
    assert json.loads(json.dumps(identity)) == identity
    assert identity["categories"] == ["bird", "cat", "dog"] and identity["num_images"] == NUM_IMAGES
    copied = shutil.copytree(prepared[0], tmp_path / "copy")
    assert CocoSource(copied, "val").identity == identity
    with np.load(copied / "index_val.npz") as arrays:
        index = dict(arrays)
    for name, values in index.items():
        changed = values.copy()
        changed.flat[0] = not values.flat[0] if values.dtype == bool else values.flat[0] + 1
        if name != "num_objects":
            np.savez(copied / "index_val.npz", **{**index, name: changed})
            assert CocoSource(copied, "val").identity != identity, name


@pytest.mark.parametrize("split", ["test", "val[:5]", "all"])
def test_unknown_split_lists_those_there(prepared, split):
    with pytest.raises(FileNotFoundError, match=r"output.*no split .*\['train', 'val'\]"):
        CocoSource(prepared[0], split)


def test_directory_without_a_dataset_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}: expected a dataset made by prepare"):
        CocoSource(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match="nowhere: expected a dataset made by prepare"):
        CocoSource(tmp_path / "nowhere", "val")


def test_single_image_is_a_dataset(tmp_path):
    prepare(tmp_path / "out", {"val": make(tmp_path, 1)})
    source = CocoSource(tmp_path / "out", "val")
    assert len(source) == 1 and source.image_labels[0].tolist() == [2]


# Images.


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (lambda path: path.unlink(), "there is no such file"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot be"),
        (lambda path: path.write_text("text"), "cannot be read as an image"),
    ],
)
def test_bad_image_stops_or_is_skipped_and_counted(tmp_path, breaking, message):
    annotations, images = make(tmp_path)
    breaking(images / "1.png")
    before = left(tmp_path)
    with pytest.raises(UnreadableImageError, match=rf"image 101: .*1\.png: {message}.*skip_bad_images"):
        prepare(tmp_path / "out", {"val": (annotations, images)})
    assert left(tmp_path) == before

    report = prepare(tmp_path / "out", {"val": (annotations, images)}, skip_bad_images=True)["val"]
    assert report.num_images == 2 and report.num_objects == 2
    assert report.counts == {"image_skipped": 1, "annotation_image_skipped": 1}
    assert report.examples == {"image_skipped": [101], "annotation_image_skipped": [1]}
    source = CocoSource(tmp_path / "out", "val")
    assert [source[index].image_id for index in range(len(source))] == [100, 102]
    ground_truth = source.coco_ground_truth()
    assert [image["id"] for image in ground_truth["images"]] == [100, 102]
    assert [entry["id"] for entry in ground_truth["annotations"]] == [0, 2]


@pytest.mark.parametrize(("broken", "num_shards"), [((0, 1, 2), None), ((0, 1), 2)])
def test_too_few_readable_images_are_an_error(tmp_path, broken, num_shards):
    split = make(tmp_path, broken=broken)
    before = left(tmp_path)
    number = 3 - len(broken)
    with pytest.raises(ValueError, match=rf"split 'val': {number} of 3 images can be read; expected at least"):
        prepare(tmp_path / "out", {"val": split}, num_shards, skip_bad_images=True)
    assert left(tmp_path) == before


def test_image_of_another_size_is_named_or_skipped_and_counted(tmp_path):
    split = make(tmp_path)
    Image.fromarray(pixels_of(1)[:-1]).save(split[1] / "1.png")
    before = left(tmp_path)
    with pytest.raises(
        UnreadableImageError, match=r"1\.png: the image has height 20 and width 32; the JSON says height 21"
    ):
        prepare(tmp_path / "out", {"val": split})
    assert left(tmp_path) == before
    report = prepare(tmp_path / "out", {"val": split}, skip_bad_images=True)["val"]
    assert report.num_images == 2
    assert report.examples == {"image_other_size": [101], "annotation_image_skipped": [1]}


def test_all_images_of_all_splits_are_checked_before_anything_is_written(tmp_path, monkeypatch):
    train, val = make(tmp_path / "train", 12, broken=[3]), make(tmp_path / "val", 3)
    for index in (*range(1, 3), *range(4, 10)):
        (train[1] / f"{index}.png").unlink()
    (val[1] / "2.png").rename(val[1] / "2.PNG")
    monkeypatch.setattr(coco_builder.shards, "write_shard", None)
    with pytest.raises(UnreadableImageError) as caught:
        prepare(tmp_path / "out", {"train": train, "val": val})
    message = str(caught.value)
    assert "split 'train': 9 of 12 images cannot be used: image 101: " in message
    assert "3.png: cannot be read as an image" in message and message.count("there is no such file") == 5
    assert "and 4 more; split 'val': 1 of 3 images cannot be used: image 102: " in message
    assert message.endswith("'2.PNG': upper and lower case matter. Use skip_bad_images to leave them out")
    assert left(tmp_path) == ["train", "val"]


def test_turned_converted_and_unsized_images_are_read_back_and_counted(tmp_path):
    _, images = make(tmp_path, 4)
    whole = content(4)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = pixels_of(0).copy()
    pixels[:5] = 0
    Image.fromarray(pixels).save(images / "0.png", exif=exif)
    whole["images"][0].update(height=pixels.shape[1], width=pixels.shape[0])
    Image.fromarray(pixels_of(1)).convert("CMYK").save(images / "1.png", "TIFF")
    del whole["images"][2]["height"], whole["images"][2]["width"]
    Image.fromarray(pixels_of(3)).save(images / "3.png", exif=exif)
    report = prepare(tmp_path / "out", {"val": (write(tmp_path, whole), images)})["val"]
    assert report.examples == {
        "image_turned": [100],
        "image_converted": [101],
        "image_size_filled": [102],
        "image_turn_ignored": [103],
    }
    source = CocoSource(tmp_path / "out", "val")
    expected = [np.rot90(pixels, -1), *(pixels_of(index) for index in (1, 2, 3))]
    for index, image in enumerate(expected):
        np.testing.assert_array_equal(decode(source[index]), image)
        assert source[index].size == image.shape[:2] == tuple(source.sizes[index])
    filled = source.coco_ground_truth()["images"][2]
    assert (filled["height"], filled["width"]) == pixels_of(2).shape[:2]


# Annotations and categories; test_coco_checks.py has all the cases.


def test_unknown_ids_stop_or_are_dropped_and_counted(tmp_path):
    _, images = make(tmp_path)
    whole = content()
    whole["annotations"] += [annotation(50, 100, category_id=77), annotation(51, 999)]
    split = (write(tmp_path, whole), images)
    with pytest.raises(ValueError, match=r"instances\.json: 1 annotations have an unknown category_id: 77"):
        prepare(tmp_path / "out", {"val": split})
    report = prepare(tmp_path / "out", {"val": split}, drop_unknown=True)["val"]
    assert report.counts == {"unknown_category": 1, "unknown_image": 1} and report.num_objects == 3
    assert len(CocoSource(tmp_path / "out", "val").coco_ground_truth()["annotations"]) == 3


def test_splits_with_different_categories_are_refused(tmp_path):
    split = make(tmp_path)
    whole = content()
    whole["categories"] = [{"id": 90, "name": "wolf"}, *CATEGORIES[1:]]
    with pytest.raises(ValueError, match=r"splits 'train' and 'val' differ in their .* 'dog' \(id 90\) and 'wolf'"):
        prepare(tmp_path / "out", {"train": split, "val": (write(tmp_path, whole, "val.json"), split[1])})
    # Their order is no difference.
    whole["categories"] = CATEGORIES[::-1]
    prepare(tmp_path / "out", {"train": split, "val": (write(tmp_path, whole, "val.json"), split[1])})


# Arguments and output.


def test_a_url_makes_no_folder_of_that_name(tmp_path, monkeypatch):
    annotations, images = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = left(tmp_path)
    for output, split in (
        ("gs://bucket/data", (annotations, images)),
        (pathlib.Path("gs://bucket/data"), (annotations, images)),
        ("out", ("gs://bucket/a.json", images)),
        ("out", (annotations, "https://host/images")),
    ):
        with pytest.raises(ValueError, match=r"got '(gs|https):/.*'; expected a local path"):
            prepare(output, {"val": split})
    assert left(tmp_path) == before


def test_nothing_is_left_in_the_folder_for_temporary_files(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    prepare(tmp_path / "out", {"val": make(tmp_path)})
    assert left(tmp_path / "temporary") == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_move_that_fails_leaves_the_old_dataset_in_place(tmp_path, overwrite, monkeypatch):
    split = make(tmp_path)
    if overwrite:
        prepare(tmp_path / "out", {"train": split})
    before = left(tmp_path)

    def fail(path, target):
        if target.name == "out" and path.name == "written":
            raise OSError("disk on fire")
        return rename(path, target)

    rename = pathlib.Path.rename
    monkeypatch.setattr(pathlib.Path, "rename", fail)
    with pytest.raises(OSError, match="disk on fire"):
        prepare(tmp_path / "out", {"val": split}, overwrite=overwrite)
    assert left(tmp_path) == before
    assert not overwrite or len(CocoSource(tmp_path / "out", "train")) == 3


def test_missing_inputs_are_named(tmp_path):
    annotations, images = make(tmp_path)
    before = left(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"split 'val': there is no image folder .*nowhere"):
        prepare(tmp_path / "out", {"val": (annotations, tmp_path / "nowhere")})
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        prepare(tmp_path / "out", {"val": (tmp_path / "nowhere.json", images)})
    assert left(tmp_path) == before


@pytest.mark.parametrize("name", ["all", "", "my split", "val[:5]", "1st", "a/b", "välid"])
def test_split_names_that_tfds_does_not_take_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"split name .*: expected letters, digits and _"):
        prepare(tmp_path / "out", {name: make(tmp_path)})


def test_no_split_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no split to prepare"):
        prepare(tmp_path / "out", {})


@pytest.mark.parametrize(
    ("num_shards", "message"), [(0, "num_shards is 0; expected at least 1"), (4, "smallest split has 3 images")]
)
def test_unusable_number_of_shards_is_an_error(tmp_path, num_shards, message):
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "out", {"val": make(tmp_path)}, num_shards)


def test_existing_output_is_replaced_only_when_asked(tmp_path):
    split = make(tmp_path)
    prepare(tmp_path / "out", {"train": split})
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(FileExistsError, match="out exists"):
        prepare(tmp_path / "out", {"val": split})
    # A run that fails leaves the old dataset alone.
    broken = make(tmp_path / "broken", broken=[2])
    with pytest.raises(UnreadableImageError):
        prepare(tmp_path / "out", {"val": broken}, overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    prepare(tmp_path / "out", {"val": split}, overwrite=True)
    with pytest.raises(FileNotFoundError, match=r"\['val'\]"):
        CocoSource(tmp_path / "out", "train")
    assert left(tmp_path) == ["broken", "images", "instances.json", "out"]


def test_nothing_but_a_prepared_dataset_is_overwritten(tmp_path):
    split = make(tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").write_text("years of work")
    (tmp_path / "file").write_text("more of it")
    for name in ("thesis", "file"):
        with pytest.raises(FileExistsError, match=f"{name} exists and is no prepared dataset"):
            prepare(tmp_path / name, {"val": split}, overwrite=True)
    assert (tmp_path / "thesis/chapter1.tex").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "more of it"


# Opening.


def data_section(**fields):
    return {"source": "prepared", "directory": "", "train_split": "train", "eval_split": "val", **fields}


def test_open_source_opens_prepared_and_synthetic_sets(prepared):
    opened = open_source(data_section(directory=str(prepared[0])), training=False)
    assert isinstance(opened, CocoSource) and len(opened) == NUM_IMAGES
    shapes = data_section(source="shapes", shapes={"num_train": 4, "num_eval": 2})
    sets = [open_source(shapes, training=training) for training in (True, False)]
    assert [type(one) for one in sets] == [ShapesSource] * 2 and [len(one) for one in sets] == [4, 2]
    assert sets[0].seed != sets[1].seed


def test_open_source_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"data\.source 'coco'; expected one of \('prepared', 'shapes'\)"):
        open_source(data_section(source="coco"), training=True)
    with pytest.raises(ValueError, match=r"data\.directory is not set; .*maskx_jax prepare"):
        open_source(data_section(), training=True)
    with pytest.raises(FileNotFoundError, match="expected a dataset made by prepare"):
        open_source(data_section(directory=str(tmp_path)), training=True)


def test_a_new_source_is_one_entry(prepared, monkeypatch):
    def open_first_image(data, training, seed):
        return ShapesSource(1, seed, **data["mine"])

    monkeypatch.setitem(sources.SOURCES, "mine", open_first_image)
    opened = open_source({"source": "mine", "mine": {"image_size": 40}}, training=True, seed=3)
    assert opened.sizes.tolist() == [[40, 40]] and opened.seed == 3


def test_the_other_modules_do_not_import_tensorflow():
    modules = ("records", "roles", "shapes", "schedule", "transforms", "pipeline", "sources")
    code = "import sys, " + ", ".join(f"maskx_jax.data.{name}" for name in modules)
    code += "; print([name for name in ('tensorflow', 'tensorflow_datasets') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Real images.


def test_real_images_are_all_kept(coco_mini, tmp_path):
    split = (coco_mini / "annotations/instances_val2017.json", coco_mini / "images/val2017")
    report = prepare(tmp_path / "out", {"val": split})["val"]
    assert (report.num_images, report.num_objects, report.num_crowds) == (254, 2103, 24)
    source = CocoSource(tmp_path / "out", "val")
    original = json.loads(split[0].read_text())
    assert [int(image["id"]) for image in original["images"]] == [source[i].image_id for i in range(len(source))]
    assert sum(map(len, source.image_labels)) == 2103 and len(source.categories) == 80
    for index in range(0, 254, 50):
        assert decode(source[index]).shape == (*source[index].size, 3)


def test_predicted_masks_are_dropped_unless_asked_for(tmp_path):
    whole = content()
    whole["annotations"][1][FIELD] = {"quality": 0.8}
    annotations, images = write(tmp_path, whole), make(tmp_path / "images_only")[1]

    def prepared(**options):
        report = prepare(tmp_path / "out", {"train": (annotations, images)}, overwrite=True, **options)["train"]
        source = CocoSource(tmp_path / "out", "train")
        kept = source.coco_ground_truth()["annotations"]
        assert [bool(entry["segmentation"]) for entry in kept] == [source[i].has_mask[0] for i in range(3)]
        return report, [bool(source[i].has_mask[0]) for i in range(3)], [FIELD in entry for entry in kept]

    report, has_mask, marked = prepared()
    assert has_mask == [True, False, True] and marked == [False] * 3
    assert report.counts["predicted_dropped"] == 1 and report.num_masks == 2
    report, has_mask, marked = prepared(predicted_masks="use")
    assert has_mask == [True] * 3 and marked == [False, True, False]
    assert report.counts["predicted_used"] == 1 and report.examples["predicted_used"] == [1] and report.num_masks == 3
    with pytest.raises(ValueError, match="predicted_masks is 'yes'; expected one of use, drop"):
        prepared(predicted_masks="yes")


def test_used_predicted_masks_are_weighed_by_their_quality(tmp_path):
    whole = content()
    # The second is said by a tool of one's own, which does not rate it.
    for annotation, prediction in zip(whole["annotations"], ({"quality": 0.8}, {"source": "mine"}), strict=False):
        annotation[FIELD] = prediction
    annotations, images = write(tmp_path, whole), make(tmp_path / "images_only")[1]
    report = prepare(tmp_path / "out", {"train": (annotations, images)}, predicted_masks="use")["train"]
    source = CocoSource(tmp_path / "out", "train")
    assert report.counts["predicted_used"] == 2 and report.counts["predicted_unrated"] == 1
    weights = np.concatenate([source[i].mask_weight for i in range(3)])
    predicted = np.concatenate([source[i].is_predicted for i in range(3)])
    assert weights.dtype == np.float32 and predicted.dtype == bool
    np.testing.assert_allclose(sorted(weights), [0.8, 1, 1], rtol=1e-6)
    assert predicted.sum() == 2 and predicted[weights < 1].all()
    for i in range(3):
        check_record(source[i], len(source.categories))
    # A set without them has no such fields: what is added must be of the same kind.
    prepare(tmp_path / "plain", {"train": (annotations, images)})
    plain = CocoSource(tmp_path / "plain", "train")[0]
    assert plain.mask_weight is None and plain.is_predicted is None
    with pytest.raises(ValueError, match="differ in keypoints, in whether predicted masks are used, or in"):
        prepare(tmp_path / "plain", {"more": (annotations, images)}, predicted_masks="use", add=True)
