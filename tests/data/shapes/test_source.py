"""The synthetic set: reproducible, correctly annotated, and asking the question it is made for."""

import colorsys
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskx_jax.data import records
from maskx_jax.data.shapes.painting import HUES
from maskx_jax.data.shapes.scene import visible_masks
from maskx_jax.data.shapes.source import ShapesSource

# See coco/rle.py.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def source():
    return ShapesSource(250, 11)


@pytest.fixture(scope="module")
def exported(source):
    """Return the annotations by image id, with `mask` decoded by pycocotools."""
    ground_truth = json.loads(json.dumps(source.coco_ground_truth()))
    by_image = {image["id"]: [] for image in ground_truth["images"]}
    for annotation in ground_truth["annotations"]:
        annotation["mask"] = coco_mask.decode(annotation["segmentation"]).astype(bool)
        by_image[annotation["image_id"]].append(annotation)
    return by_image


def fields(record):
    return {name: np.asarray(value).tolist() for name, value in vars(record).items()}


def box_iou(first, second):
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    shared = np.maximum(high - low, 0).prod()
    return shared / ((first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod() - shared)


def test_an_image_is_a_pure_function_of_seed_and_index(source):
    assert fields(ShapesSource(5, 11)[3]) == fields(source[3])
    assert fields(ShapesSource(5, 12)[3]) != fields(source[3])
    assert fields(source[4])["image"] != fields(source[3])["image"]


def test_records_have_the_documented_form(source):
    for index in range(40):
        record = source[index]
        count = len(record.labels)
        assert record.image.shape == (128, 128, 3) and record.image.dtype == np.uint8
        assert record.image_id == index + 1 and record.size == (128, 128)
        assert record.boxes.shape == (count, 4) and record.boxes.dtype == np.float32
        assert record.masks.shape == (count, 112, 14) and record.masks.dtype == np.uint8
        assert record.labels.dtype == np.int32 and ((record.labels >= 1) & (record.labels <= 60)).all()
        assert (record.boxes[:, :2] >= 0).all() and (record.boxes[:, 2:] <= 128).all()
        assert (record.boxes[:, 2:] > record.boxes[:, :2]).all()
        assert record.has_mask.all() and record.is_crowd.shape == (count,)


def test_categories_are_all_combinations():
    source = ShapesSource(1, 0, num_hues=3, num_textures=2)
    assert source.categories.names == (
        *("red solid", "red horizontal", "green solid", "green horizontal", "blue solid", "blue horizontal"),
    )
    assert source.categories.ids == (1, 2, 3, 4, 5, 6)
    assert len(ShapesSource(1, 0).categories) == 60


def test_export_and_records_agree(source, exported):
    assert list(exported) == source.image_ids.tolist()
    for index in range(len(source)):
        record, annotations = source[index], exported[index + 1]
        assert record.image_id == source.image_ids[index]
        assert record.labels.tolist() == [a["category_id"] for a in annotations]
        assert record.is_crowd.tolist() == [a["iscrowd"] == 1 for a in annotations]
        claimed = np.zeros((128, 128), int)
        for slot, annotation in enumerate(annotations):
            mask = annotation["mask"]
            claimed += mask
            x, y, width, height = annotation["bbox"]
            assert record.boxes[slot].tolist() == [x, y, x + width, y + height]
            assert annotation["area"] == mask.sum()
            packed, frame = records.crop_bitmap(mask)
            assert np.array_equal(packed, record.masks[slot]) and np.array_equal(frame, record.mask_frames[slot])
        assert claimed.max(initial=0) <= 1, "a pixel shows one object"
        assert record.labels[~record.is_crowd].tolist() == source.image_labels[index].tolist()
        assert len(source.image_has_mask[index]) == len(source.image_labels[index])


def test_colours_lie_where_the_masks_are():
    # Solid objects alone: the mean colour under a mask has to be nearest to the hue of its label.
    source = ShapesSource(60, 1, num_textures=1)
    hues = np.array([colorsys.hsv_to_rgb(h / 360, s, v) for h, s, v in list(HUES.values())[:10]]) * 255
    ground_truth = source.coco_ground_truth()
    right = []
    for annotation in ground_truth["annotations"]:
        pixels = source[annotation["image_id"] - 1].image[coco_mask.decode(annotation["segmentation"]).astype(bool)]
        nearest = np.linalg.norm(hues - np.median(pixels, axis=0), axis=1).argmin() + 1
        right.append(nearest == annotation["category_id"])
    assert len(right) > 100 and np.mean(right) > 0.97


def test_textures_can_be_told_apart():
    # Stripes change across them and not along them; of a solid object only the noise remains.
    source = ShapesSource(60, 2, num_hues=1, num_textures=3)
    changes = {"solid": [], "horizontal": [], "vertical": []}
    for annotation in source.coco_ground_truth()["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        image = source[annotation["image_id"] - 1].image.astype(float).mean(axis=2)
        down = np.abs(np.diff(image, axis=0))[mask[1:] & mask[:-1]].mean()
        right = np.abs(np.diff(image, axis=1))[mask[:, 1:] & mask[:, :-1]].mean()
        changes[list(changes)[annotation["category_id"] - 1]].append((down, right))
    down, right = np.array(changes["horizontal"]).T
    assert (down > 1.5 * right).mean() > 0.95
    down, right = np.array(changes["vertical"]).T
    assert (right > 1.5 * down).mean() > 0.95
    down, right = np.array(changes["solid"]).T
    assert (np.maximum(down, right) < 10).mean() > 0.95


def test_most_objects_have_a_partner_in_nearly_the_same_box(source):
    paired, total = 0, 0
    for index in range(len(source)):
        record = source[index]
        kept = np.flatnonzero(~record.is_crowd)
        for slot in kept:
            total += 1
            paired += any(
                0.5 < box_iou(record.boxes[slot], record.boxes[other]) < 0.98
                and record.labels[slot] != record.labels[other]
                for other in kept
                if other != slot
            )
    assert total > 400 and paired / total > 0.45


def test_partners_share_the_pixels_fairly():
    source = ShapesSource(80, 3, max_objects=2, pair_fraction=1.0, crowd_fraction=0.0)
    ious = []
    for index in range(len(source)):
        record = source[index]
        if len(record.labels) != 2:
            continue
        assert record.labels[0] != record.labels[1]
        masks = visible_masks(source._scene(index))
        share = masks[0].sum() / (masks[0].sum() + masks[1].sum())
        assert 0.25 < share < 0.75
        ious.append(box_iou(*record.boxes))
    assert len(ious) > 20 and min(ious) > 0.5 and max(ious) < 0.97
    assert np.median(ious) > 0.6


def test_objects_have_a_useful_size(source):
    record_boxes = np.concatenate([source[i].boxes[~source[i].is_crowd] for i in range(100)])
    sides = (record_boxes[:, 2:] - record_boxes[:, :2]).max(axis=1)
    assert sides.min() >= 10 and 32 < np.median(sides) < 85


def test_crowds_and_empty_images_occur():
    plain = ShapesSource(30, 4, crowd_fraction=0.0, empty_fraction=0.0)
    assert not any(plain[i].is_crowd.any() for i in range(30))
    assert all(len(plain[i].labels) for i in range(30))
    crowds = ShapesSource(20, 4, crowd_fraction=1.0, empty_fraction=0.0)
    for index in range(20):
        record = crowds[index]
        assert record.is_crowd.sum() == 1
        mask = records.unpack_bitmap(record.masks[record.is_crowd.argmax()])
        assert 0.08 < mask.mean() < 0.9, "many parts, and gaps between them"
    assert crowds.coco_ground_truth()["annotations"][0]["iscrowd"] == 1
    empty = ShapesSource(3, 4, empty_fraction=1.0)
    assert [len(empty[i].labels) for i in range(3)] == [0, 0, 0] and empty[0].image.std() > 1
    assert empty.image_labels[0].shape == (0,)


def test_sizes_vary_where_asked():
    source = ShapesSource(40, 5, image_size=(64, 96))
    assert source.sizes.min() >= 64 and source.sizes.max() <= 96
    assert (source.sizes[:, 0] > source.sizes[:, 1]).any() and (source.sizes[:, 0] < source.sizes[:, 1]).any()
    for index in range(10):
        record = source[index]
        assert record.size == tuple(source.sizes[index]) and record.image.shape[:2] == record.size
        assert (record.boxes[:, 2:] <= record.size[::-1]).all()


@pytest.mark.parametrize("index", [-1, 250])
def test_an_index_outside_is_refused(source, index):
    with pytest.raises(IndexError, match="of a set of 250"):
        source[index]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 16}, "image_size is 16"),
        ({"image_size": (128, 64)}, "image_size is"),
        ({"num_hues": 99}, "num_hues is 99; expected a value from 1 to 12"),
        ({"num_textures": 0}, "num_textures is 0"),
        ({"pair_fraction": 1.5}, "pair_fraction is 1.5"),
        ({"num_hues": 1, "num_textures": 1}, "a pair needs two categories"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ShapesSource(1, 0, **options)


def test_identity_tells_sets_apart_and_is_fit_for_json():
    def identity(*arguments, **options):
        return json.dumps(ShapesSource(*arguments, **options).identity)

    assert identity(5, 1) == identity(5, 1)
    others = [identity(6, 1), identity(5, 2), identity(5, 1, num_hues=9), identity(5, 1, max_objects=3)]
    others += [identity(5, 1, image_size=64), identity(5, 1, pair_fraction=0.5), identity(5, 1, crowd_fraction=0.5)]
    assert len({identity(5, 1), identity(5, 1, empty_fraction=0.5), *others}) == 9
    assert json.loads(identity(5, 1, num_hues=2, num_textures=1))["categories"] == ["red solid", "green solid"]
    assert json.loads(identity(5, 1))["num_images"] == 5
