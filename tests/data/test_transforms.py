"""Image, boxes, frames and masks move together."""

import dataclasses
import io
import itertools

import cv2
import numpy as np
import PIL.Image
import pytest

from configs import mask_rcnn, maskx_rcnn
from maskx_jax.coco.keypoints import Skeleton
from maskx_jax.data import records, transforms
from maskx_jax.data.transforms import Transform, View
from maskx_jax.structures import Keypoints

COLOURS = ((250, 20, 20), (20, 250, 20), (20, 20, 250))


def scene(height=90, width=140):
    """Return a record with three asymmetric objects of a colour each on black; the last is a crowd in two parts."""
    outlines = [
        [[(10, 12), (60, 20), (30, 60), (28, 35)]],
        [[(70, 30), (120, 40), (110, 80), (95, 50)]],
        [[(65, 5), (80, 8), (70, 22)], [(100, 2), (135, 4), (120, 25)]],
    ]
    image = np.zeros((height, width, 3), np.uint8)
    packed, frames = [], []
    for polygons, colour in zip(outlines, COLOURS, strict=True):
        mask = np.zeros((height, width), np.uint8)
        for polygon in polygons:
            cv2.fillPoly(mask, [np.array(polygon)], 1)
        image[mask.astype(bool)] = colour
        bits, frame = records.crop_bitmap(mask.astype(bool))
        packed.append(bits)
        frames.append(frame)
    return records.Record(
        image=image,
        image_id=7,
        size=(height, width),
        boxes=np.stack(frames),
        labels=np.array([2, 1, 3], np.int32),
        masks=np.stack(packed),
        mask_frames=np.stack(frames),
        has_mask=np.ones(3, bool),
        is_crowd=np.array([False, False, True]),
    )


def rng(seed=0):
    return np.random.default_rng(seed)


def paint(packed, frame, canvas):
    """Draw a stored mask into a canvas, pixel by pixel centre: the slow, plain reading of the convention."""
    bitmap = records.unpack_bitmap(packed)
    x1, y1, x2, y2 = frame.tolist()
    row = np.floor((np.arange(canvas[0]) + 0.5 - y1) / (y2 - y1) * 112).astype(int)
    column = np.floor((np.arange(canvas[1]) + 0.5 - x1) / (x2 - x1) * 112).astype(int)
    inside = ((row >= 0) & (row < 112))[:, None] & ((column >= 0) & (column < 112))
    return bitmap[np.clip(row, 0, 111)[:, None], np.clip(column, 0, 111)] & inside


def assert_moved_together(example, canvas):
    """Compare each mask in its frame, and each box, with the pixels that have the object's colour."""
    height, width = example.image_sizes.astype(int)
    truth = example.ground_truth
    num_compared = 0
    for slot in np.flatnonzero(truth.valid):
        channel = {2: 0, 1: 1, 3: 2}[int(truth.labels[slot])]
        seen = example.images[:, :, channel] > 127
        painted = paint(truth.masks[slot], truth.mask_frames[slot], canvas)
        painted[height:] = painted[:, width:] = False
        if max(seen.sum(), painted.sum()) < 60:
            continue  # Of a few pixels at the border of a crop the IoU says nothing.
        num_compared += 1
        assert (seen & painted).sum() / (seen | painted).sum() > 0.9
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        tight = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        beyond = (tight - truth.boxes[slot]) * [-1, -1, 1, 1]
        tolerance = max(1.5, 0.75 * float(example.scales))
        assert (beyond <= tolerance).all()
        # A clipped box need not be tight, except where the object was not cropped at all.
        if np.abs(truth.mask_frames[slot] - truth.boxes[slot]).max() < 1:
            assert (beyond >= -tolerance).all()
    return num_compared


VIEWS = {
    "as it is": View(1.0, False, 0, 0, (90, 140)),
    "flip": View(1.0, True, 0, 0, (90, 140)),
    "up": View(2.37, False, 0, 0, (213, 332)),
    "up and flip": View(2.37, True, 0, 0, (213, 332)),
    "down": View(0.71, False, 0, 0, (64, 99)),
    "crop": View(1.9, False, 31, 62, (125, 180)),
    "crop and flip": View(1.9, True, 20, 17, (140, 200)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_pixels_boxes_frames_and_masks_move_together(name):
    view, canvas, record = VIEWS[name], (224, 352), scene()
    truth, counts = transforms.transform_objects(record, view, 5, 1.0)
    image = transforms.transform_image(record.image, view, canvas)
    assert image.shape == (*canvas, 3) and image.dtype == np.uint8
    assert counts == transforms.Counts(0, 0) and truth.valid.tolist() == [True] * 3 + [False] * 2
    assert truth.is_crowd.tolist() == [False, False, True, False, False]
    example = transforms.Batch(
        image, np.array(view.size), np.array(7), np.array(view.scale), np.array(True), ground_truth=truth
    )
    assert assert_moved_together(example, canvas) == 3


def test_jitter_moves_all_together():
    assert sum(map(num_compared_with_jitter, range(40))) > 60


def num_compared_with_jitter(seed):
    transform = Transform(canvas=(160, 160), jitter_scales=(0.5, 2.0), num_slots=4, min_box_side=12)
    example, _ = transform(scene(), (160, 160), rng(seed))
    assert example.images.shape == (160, 160, 3)
    truth = example.ground_truth
    height, width = example.image_sizes
    boxes = truth.boxes[truth.valid]
    assert ((boxes[:, :2] >= 0) & (boxes[:, 2:] <= [width, height])).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 12).all()
    return assert_moved_together(example, (160, 160))


def test_frames_stay_uncropped():
    truth, _ = transforms.transform_objects(scene(), View(1.0, False, 30, 40, (60, 100)), 3, 1.0)
    assert truth.boxes[0].tolist() == [0, 0, 21, 31]
    assert truth.mask_frames[0].tolist() == [-30, -18, 21, 31]
    assert truth.masks[0].tolist() == scene().masks[0].tolist()


def test_flipping_twice_is_the_identity():
    record = scene()
    flip = View(1.0, True, 0, 0, record.size)
    truth, _ = transforms.transform_objects(record, flip, 3, 1.0)
    flipped = dataclasses.replace(
        record,
        image=transforms.transform_image(record.image, flip, record.size),
        boxes=truth.boxes,
        masks=truth.masks,
        mask_frames=truth.mask_frames,
    )
    assert not np.array_equal(flipped.masks, record.masks) and not np.array_equal(flipped.image, record.image)
    back, _ = transforms.transform_objects(flipped, flip, 3, 1.0)
    assert np.array_equal(transforms.transform_image(flipped.image, flip, record.size), record.image)
    assert np.array_equal(back.masks, record.masks)
    assert np.array_equal(back.boxes, record.boxes) and np.array_equal(back.mask_frames, record.mask_frames)


def test_flip_maps_x_to_width_minus_x():
    boxes = np.array([[10.5, 3, 30, 9]], np.float32)
    assert transforms.transform_boxes(boxes, View(1.0, True, 0, 0, (50, 100)), 100).tolist() == [[70, 3, 89.5, 9]]


def test_the_rounded_size_does_not_bend_the_scale():
    # 33 * 1.45 = 47.85 -> 48 rows. A ramp tells where each row of the result was taken from.
    ramp = np.repeat((np.arange(33, dtype=np.uint8) * 7)[:, None, None], 33, axis=1).repeat(3, axis=2)
    for flip in (False, True):
        image = ramp.transpose(1, 0, 2) if flip else ramp
        resized = transforms.transform_image(np.ascontiguousarray(image), View(1.45, flip, 0, 0, (48, 48)), (48, 48))
        values = resized[24, ::-1, 0] if flip else resized[:, 24, 0]
        # Flipped, the canvas is 47.85 wide and mirrored there: x' = 1.45 * (33 - x).
        centres = 33 - (np.arange(48) + 0.5)[::-1] / 1.45 if flip else (np.arange(48) + 0.5) / 1.45
        expected = 7 * np.clip(centres - 0.5, 0, 32)
        assert np.abs(values - expected).max() <= 1


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((480, 640), 800, 800 / 480),
        ((640, 480), 800, 800 / 480),
        ((427, 640), 800, 800 / 427),
        ((300, 640), 800, 1333 / 640),
        # 800 / 600 * 1000 = 1333.33 rounds to the limit, which is not above it.
        ((600, 1000), 800, 800 / 600),
        ((1000, 2000), 640, 640 / 1000),
    ],
)
def test_scale_rule_of_detectron(size, short_side, expected):
    assert transforms.short_side_scale(size, short_side, 1333) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (427, 640), (300, 640), (600, 1000), (500, 500), (999, 1000)])
def test_every_size_fits_its_canvas(size):
    for canvas in ((800, 1344), (768, 1024)):
        transform = Transform(canvas=canvas, short_sides=(640, 800))
        own = transform.canvas_of(portrait=size[1] < size[0])
        for seed in range(8):
            view = transform.draw_view(size, own, rng(seed))
            assert view.size[0] <= own[0] and view.size[1] <= own[1] and (view.top, view.left) == (0, 0)
            assert np.abs(np.array(view.size) - view.scale * np.array(size)).max() <= 0.5


def test_choices_are_drawn_evenly():
    transform = Transform(short_sides=(640, 720, 800), flip_probability=0.25)
    views = [transform.draw_view((480, 640), (800, 1344), rng(seed)) for seed in range(600)]
    sides = np.array([view.size[0] for view in views])
    assert all(150 < (sides == side).sum() < 250 for side in (640, 720, 800))
    assert 110 < sum(view.flip for view in views) < 190
    quiet = transform.for_evaluation()
    assert {quiet.draw_view((480, 640), (800, 1344), rng(seed)) for seed in range(20)} == {
        View(800 / 480, False, 0, 0, (800, 1067))
    }


@pytest.mark.parametrize("system", [mask_rcnn, maskx_rcnn])
def test_the_variant_jitter_draws_short_sides_of_640_to_800(system):
    for choice, expected in (("none", {800}), ("short_sides", {640, 672, 704, 736, 768, 800})):
        transform = Transform(**system.get_config(f"jitter={choice}").data.transform)
        views = [transform.draw_view((480, 640), (800, 1344), rng(seed)) for seed in range(60)]
        assert {view.size[0] for view in views} == expected
        assert transform.for_evaluation().draw_view((480, 640), (800, 1344), rng()).size[0] == 800


def test_jitter_covers_its_range_and_every_crop():
    transform = Transform(canvas=(100, 100), jitter_scales=(0.1, 2.0))
    views = [transform.draw_view((50, 100), (100, 100), rng(seed)) for seed in range(400)]
    scales = np.array([view.scale for view in views])
    assert 0.1 <= scales.min() < 0.15 and 1.95 < scales.max() <= 2.0
    largest = [view for view in views if view.scale > 1.8]
    assert {view.size for view in largest} <= {(h, 100) for h in range(90, 101)}
    assert min(view.left for view in largest) < 10 and max(view.left for view in largest) > 80
    assert all(view.left + 100 <= round(100 * view.scale) for view in largest)


@pytest.mark.parametrize("size", [(3, 900), (900, 3), (1, 5000), (1, 1), (2, 100)])
@pytest.mark.parametrize("options", [{}, {"jitter_scales": (0.1, 0.1)}, {"flip_probability": 1.0}])
def test_a_strip_is_never_resized_to_nothing(size, options):
    transform = Transform(canvas=(96, 128), short_sides=(96,), max_long_side=128, num_slots=2, **options)
    canvas = transform.canvas_of(portrait=size[1] < size[0])
    box = np.array([[0, 0, size[1], size[0]]], np.float32)
    one = {"labels": np.array([1]), "masks": np.zeros((1, 112, 14), np.uint8), "has_mask": np.zeros(1, bool)}
    image = np.full((*size, 3), 200, np.uint8)
    record = records.Record(image, 7, size, boxes=box, mask_frames=box, is_crowd=np.zeros(1, bool), **one)
    example, _ = transform(record, canvas, rng())
    height, width = example.image_sizes.astype(int)
    assert 1 <= height <= canvas[0] and 1 <= width <= canvas[1]
    assert (example.images[:height, :width] == 200).all()
    assert (example.images[height:] != 200).all() and (example.images[:, width:] != 200).all()


def test_padding_is_zero_and_at_the_bottom_and_the_right():
    record = dataclasses.replace(scene(), image=np.full((90, 140, 3), 255, np.uint8))
    example, _ = Transform(canvas=(100, 160), short_sides=(90,))(record, (100, 160), rng())
    assert example.image_sizes.tolist() == [90, 140] and float(example.scales) == 1
    assert (example.images[:90, :140] == 255).all()
    assert not example.images[90:].any() and not example.images[:, 140:].any()


def test_example_has_the_documented_types():
    transform = Transform(canvas=(100, 160), short_sides=(100,), num_slots=4)
    example, _ = transform(scene(), (100, 160), rng())
    truth = example.ground_truth
    assert {name: (getattr(example, name).dtype.name, getattr(example, name).shape) for name in (
        "images", "image_sizes", "image_ids", "scales", "valid"
    )} == {
        "images": ("uint8", (100, 160, 3)),
        "image_sizes": ("float32", (2,)),
        "image_ids": ("int64", ()),
        "scales": ("float32", ()),
        "valid": ("bool", ()),
    }  # fmt: skip
    assert truth.keypoints is None and truth.mask_weight is None
    assert {name: (value.dtype.name, value.shape) for name, value in vars(truth).items() if value is not None} == {
        "boxes": ("float32", (4, 4)),
        "labels": ("int32", (4,)),
        "masks": ("uint8", (4, 112, 14)),
        "mask_frames": ("float32", (4, 4)),
        "has_mask": ("bool", (4,)),
        "is_crowd": ("bool", (4,)),
        "valid": ("bool", (4,)),
    }


SKELETON = Skeleton(("left", "nose", "right"), edges=(), flip=(2, 1, 0))


def with_keypoints(record=None):
    """Return a record with random keypoints on and around its image, some not labelled and of no meaning there."""
    record = record or scene()
    shape = (len(record.labels), len(SKELETON.names))
    # Whole quarters of pixels, of which float32 makes no error.
    points = (rng(3).uniform(-9, np.array(record.size[::-1]) + 9, (*shape, 2)) * 4).round().astype(np.float32) / 4
    labelled = rng(4).random(shape) < 0.7
    points[~labelled] = np.nan
    visible = labelled & (rng(5).random(shape) < 0.6)
    return dataclasses.replace(record, keypoints=Keypoints(points, labelled, visible))


@pytest.mark.parametrize("name", VIEWS)
def test_keypoints_move_as_the_reference_does(name):
    view, record = VIEWS[name], with_keypoints()
    made = transforms.transform_keypoints(record.keypoints, view, 140, SKELETON)
    assert made.points.dtype == np.float32 and made.labelled.dtype == made.visible.dtype == bool
    num_labelled = 0
    for slot, name in itertools.product(range(3), SKELETON.names):
        side = {"left": "right", "right": "left"}.get(name, name) if view.flip else name
        of, to = SKELETON.names.index(side), SKELETON.names.index(name)
        x, y = record.keypoints.points[slot, of].tolist()
        x, y = (140 - x if view.flip else x) * view.scale - view.left, y * view.scale - view.top
        inside = 0 <= x <= view.size[1] and 0 <= y <= view.size[0]
        labelled = bool(record.keypoints.labelled[slot, of]) and inside
        assert made.labelled[slot, to] == labelled
        assert made.visible[slot, to] == (record.keypoints.visible[slot, of] and inside)
        assert made.points[slot, to].tolist() == pytest.approx([x, y] if labelled else [0, 0], abs=1e-4)
        num_labelled += labelled
    assert num_labelled >= 1


def test_keypoints_that_are_flipped_twice_are_as_before():
    view = View(1.0, True, 0, 0, (90, 140))
    as_it_is = transforms.transform_keypoints(with_keypoints().keypoints, VIEWS["as it is"], 140, SKELETON)
    once = transforms.transform_keypoints(as_it_is, view, 140, SKELETON)
    twice = transforms.transform_keypoints(once, view, 140, SKELETON)
    assert not np.array_equal(once.points, as_it_is.points)
    for field, value in vars(as_it_is).items():
        np.testing.assert_array_equal(getattr(twice, field), value)


def test_keypoints_go_into_the_slots_of_their_objects():
    record = with_keypoints(many([100, 900, 400, 2500, 1600], [False, False, False, True, False]))
    as_it_is = View(1.0, False, 0, 0, record.size)
    plain, counts = transforms.transform_objects(dataclasses.replace(record, keypoints=None), as_it_is, 3, 1.0)
    truth, same_counts = transforms.transform_objects(record, as_it_is, 3, 1.0, SKELETON)
    assert truth.labels.tolist() == plain.labels.tolist() == [2, 3, 5] and counts == same_counts
    moved = transforms.transform_keypoints(record.keypoints, as_it_is, record.size[1], SKELETON)
    for name, value in vars(truth.keypoints).items():
        np.testing.assert_array_equal(value, getattr(moved, name)[[1, 2, 4]])
    truth, _ = transforms.transform_objects(record, as_it_is, 7, 1.0, SKELETON)
    assert truth.keypoints.points.shape == (7, 3, 2) and not truth.keypoints.labelled[5:].any()
    assert transforms.transform_objects(record, as_it_is, 7, 1.0)[0].keypoints is None


def many(areas, is_crowd):
    sides = np.sqrt(np.array(areas, np.float32))
    boxes = np.stack([np.zeros_like(sides), np.zeros_like(sides), sides, sides], axis=1)
    count = len(areas)
    return dataclasses.replace(
        scene(),
        boxes=boxes,
        labels=np.arange(1, count + 1, dtype=np.int32),
        masks=np.zeros((count, 112, 14), np.uint8),
        mask_frames=boxes,
        has_mask=np.ones(count, bool),
        is_crowd=np.array(is_crowd),
    )


def test_overflow_drops_crowds_first_and_then_the_smallest():
    record = many([100, 900, 400, 2500, 1600], [False, False, False, True, False])
    as_it_is = View(1.0, False, 0, 0, record.size)
    truth, counts = transforms.transform_objects(record, as_it_is, 3, 1.0)
    assert truth.labels.tolist() == [2, 3, 5] and counts == transforms.Counts(overflow=2, outside=0)
    truth, counts = transforms.transform_objects(record, as_it_is, 5, 1.0)
    assert truth.labels.tolist() == [1, 2, 3, 4, 5] and counts.overflow == 0


def test_objects_below_the_smallest_side_leave_their_slots():
    record = many([100, 900, 0.25], [False] * 3)
    truth, counts = transforms.transform_objects(record, View(1.0, False, 9, 9, (50, 50)), 3, 1.0)
    assert truth.labels.tolist() == [1, 2, 0] and counts == transforms.Counts(overflow=0, outside=1)
    truth, counts = transforms.transform_objects(record, View(1.0, False, 10, 0, (50, 50)), 3, 1.0)
    assert truth.labels.tolist() == [2, 0, 0] and counts.outside == 2


def test_an_image_without_objects_gives_empty_slots():
    truth, counts = transforms.transform_objects(many([], np.zeros(0, bool)), VIEWS["up and flip"], 2, 1.0)
    assert not truth.valid.any() and truth.boxes.shape == (2, 4) and counts == transforms.Counts(0, 0)


def test_masks_of_other_classes_are_gone_with_their_frames():
    record = dataclasses.replace(scene(), boxes=scene().boxes + np.float32(0.5), has_mask=np.array([True, True, False]))
    allowed = np.array([False, True, False, True])
    left = transforms.remove_masks(record, allowed)
    assert left.has_mask.tolist() == [False, True, False]
    assert not left.masks[[0, 2]].any() and np.array_equal(left.masks[1], record.masks[1])
    assert np.array_equal(left.mask_frames[[0, 2]], record.boxes[[0, 2]])
    assert np.array_equal(left.mask_frames[1], record.mask_frames[1])
    assert record.masks[0].any(), "the record itself is untouched"


@pytest.mark.parametrize("image_id", [7, 0, -3])
def test_keypoints_are_taken_away_from_the_same_objects_of_an_image_each_time(image_id):
    record = with_keypoints(many([100.0] * 200, [False] * 200))
    record = dataclasses.replace(record, image_id=image_id)
    before = record.keypoints
    shares, kept = {}, {}
    for fraction in (0.0, 0.25, 0.5, 1.0):
        left = transforms.remove_keypoints(record, fraction)
        again = transforms.remove_keypoints(record, fraction)
        kept[fraction] = (left.keypoints.labelled == before.labelled).all(axis=1) & before.labelled.any(axis=1)
        shares[fraction] = kept[fraction].sum() / before.labelled.any(axis=1).sum()
        for name, value in vars(left.keypoints).items():
            np.testing.assert_array_equal(value, getattr(again.keypoints, name))
            np.testing.assert_array_equal(value[kept[fraction]], getattr(before, name)[kept[fraction]])
        assert not left.keypoints.labelled[~kept[fraction]].any() and not left.keypoints.visible[~kept[fraction]].any()
        assert left.boxes is record.boxes and left.has_mask is record.has_mask
    assert shares[0.0] == 0 and shares[1.0] == 1 and 0.15 < shares[0.25] < 0.35 and 0.4 < shares[0.5] < 0.6
    assert not (kept[0.25] & ~kept[0.5]).any(), "what a smaller fraction keeps, a larger one keeps"
    other = transforms.remove_keypoints(dataclasses.replace(record, image_id=image_id + 1), 0.5)
    assert (other.keypoints.labelled != transforms.remove_keypoints(record, 0.5).keypoints.labelled).any()
    assert transforms.remove_keypoints(scene(), 0.5).keypoints is None


def test_weights_of_masks_move_with_their_objects_and_those_of_predicted_masks_are_scaled():
    plain = scene()
    record = dataclasses.replace(
        plain, mask_weight=np.array([1, 0.8, 1], np.float32), is_predicted=np.array([False, True, False])
    )
    weighed = transforms.weigh_masks(record, 0.5)
    np.testing.assert_allclose(weighed.mask_weight, [1, 0.4, 1], rtol=1e-6)
    assert weighed.mask_weight.dtype == np.float32
    np.testing.assert_array_equal(weighed.has_mask, record.has_mask)
    assert record.has_mask[1]
    without = transforms.weigh_masks(record, 0.0)
    np.testing.assert_array_equal(without.has_mask, record.has_mask & [True, False, True])
    assert not without.masks[1].any()
    assert transforms.weigh_masks(plain, 0.5) is plain
    view = View(1.0, True, 0, 0, (90, 140))
    # The second object is the largest, and the only one of 50 pixels and more along both sides.
    for slots, side, expected in ((5, 1, [1, 0.4, 1, 0, 0]), (1, 1, [0.4]), (3, 50, [0.4, 0, 0])):
        truth = transforms.transform_objects(weighed, view, slots, side)[0]
        np.testing.assert_allclose(truth.mask_weight, expected, rtol=1e-6)
        assert truth.mask_weight.dtype == np.float32
        assert transforms.transform_objects(plain, view, slots, side)[0].mask_weight is None


def jpeg(image, orientation=None):
    exif = PIL.Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    stream = io.BytesIO()
    PIL.Image.fromarray(image).save(stream, "JPEG", quality=95, exif=exif)
    return stream.getvalue()


def test_decoding_gives_rgb_and_ignores_exif_orientation():
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, :15] = (200, 30, 60)
    for data in (jpeg(image), jpeg(image, orientation=6)):
        decoded = transforms.decode(dataclasses.replace(scene(), image=data, size=(20, 30)))
        assert decoded.shape == (20, 30, 3) and np.abs(decoded[:, :10].astype(int) - (200, 30, 60)).max() < 6


def test_a_grey_image_gets_three_channels():
    stream = io.BytesIO()
    PIL.Image.fromarray(np.full((4, 6), 77, np.uint8)).save(stream, "PNG")
    decoded = transforms.decode(dataclasses.replace(scene(), image=stream.getvalue(), size=(4, 6)))
    assert decoded.shape == (4, 6, 3) and (decoded == 77).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "image 7: its 0 bytes"),
        (b"no image", "image 7: its 8 bytes"),
        (
            jpeg(np.zeros((20, 30, 3), np.uint8)),
            r"image 7: its array has shape \(20, 30, 3\), its record size \(90, 140\)",
        ),
        (np.zeros((90, 140), np.uint8), r"image 7: its array has shape \(90, 140\)"),
    ],
)
def test_bad_images_are_named(data, message):
    with pytest.raises(records.BrokenRecordError, match=message):
        transforms.decode(dataclasses.replace(scene(), image=data))


@pytest.mark.parametrize("fails", ["an error", "nothing", "another error"])
def test_an_image_that_finds_no_memory_is_not_broken(fails, monkeypatch):
    def decode(*_):
        if fails == "nothing":
            return None
        error = cv2.error("Failed to allocate")
        error.code, error.err = (cv2.Error.STS_NO_MEM if fails == "an error" else cv2.Error.STS_ASSERT), "said"
        raise error

    monkeypatch.setattr(cv2, "imdecode", decode)
    record = dataclasses.replace(scene(), image=b"1", size=(2**21, 2**21))
    with pytest.raises(records.BrokenRecordError if fails == "another error" else MemoryError):
        transforms.decode(record)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"canvas": (1344, 800)}, "canvas is"),
        ({"short_sides": ()}, "short_sides is"),
        ({"flip_probability": 1.5}, "flip_probability is 1.5"),
        ({"jitter_scales": (2.0, 0.1)}, "jitter_scales is"),
        ({"jitter_scales": (0.1,)}, r"jitter_scales is \(0\.1,\); expected \(smallest, largest\)"),
        ({"jitter_scales": (0.1, 1.0, 2.0)}, r"jitter_scales is \(0\.1, 1\.0, 2\.0\); expected \(smallest, largest\)"),
        ({"num_slots": 0}, "num_slots is 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Transform(**options)
