import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.data.records import pack_bitmap, rasterize_polygons, unpack_bitmap
from maskx_jax.ops.mask_targets import average_mask, sample_mask
from tests.ops.collectives import collectives
from tests.reference import mask_targets as reference

SIDE = 112

sample_28 = jax.jit(lambda *arguments: sample_mask(*arguments, 28))

# Polygons in image pixels: convex, star-shaped (concave), thin and slanted, two parts, and far from square.
TRIANGLE = [[10.3, 20.1, 90.7, 35.2, 40.9, 99.6]]
POLYGONS = {
    "rectangle": [[12.5, 7.25, 80.0, 7.25, 80.0, 61.5, 12.5, 61.5]],
    "triangle": TRIANGLE,
    "circle": [
        np.stack([70 + 33 * np.cos(t := np.linspace(0, 2 * np.pi, 60)), 40 + 33 * np.sin(t)], axis=1).ravel().tolist()
    ],
    "star": [
        np.stack(
            [
                50 + (r := np.where(np.arange(10) % 2, 22, 45)) * np.cos(t := np.arange(10) * np.pi / 5),
                60 + r * np.sin(t),
            ],
            axis=1,
        )
        .ravel()
        .tolist()
    ],
    "two parts": [[10, 10, 40, 12, 38, 45], [60, 30, 95, 28, 97, 70, 62, 66]],
    "overlapping parts": [[10, 10, 60, 10, 60, 60, 10, 60], [40, 40, 90, 40, 90, 90, 40, 90]],
    "wide": [[5, 50, 600, 48, 640, 60, 300, 75]],
    "small": [[3.2, 4.1, 7.9, 4.4, 6.8, 9.3, 3.5, 8.8]],
}


def random_masks(seed, n):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (n, 2))
    frames = np.concatenate([corner, corner + rng.uniform(0.5, 60, (n, 2))], axis=1).astype(np.float32)
    return rng.random((n, SIDE, SIDE)) < 0.5, frames


def sample(bitmaps, frames, gt_index, rois, sampler=sample_28):
    masks = np.stack([pack_bitmap(bitmap) for bitmap in bitmaps])
    return np.asarray(
        sampler(jnp.asarray(masks), jnp.asarray(frames), jnp.asarray(gt_index, jnp.int32), jnp.asarray(rois))
    )


def polygon_box(polygons):
    points = np.concatenate([np.reshape(p, (-1, 2)) for p in polygons])
    return np.concatenate([points.min(0), points.max(0)])


def random_frames(n):
    rng = np.random.default_rng(4)
    corner = rng.uniform(0, 700, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(20, 600, (n, 2))], axis=1).astype(np.float32)


def test_a_region_that_is_the_frame_reads_the_same_stored_pixels_wherever_it_lies():
    # Its 28 points lie exactly between stored pixels, where rounding would decide: at least two of four are object.
    bitmaps, _ = random_masks(3, 200)
    frames = random_frames(200)
    targets = sample(bitmaps, frames, np.arange(200), frames)
    around = sum(bitmaps[:, i::4, j::4].astype(int) for i in (1, 2) for j in (1, 2))
    np.testing.assert_array_equal(targets, around >= 2)


def test_targets_of_a_region_that_is_the_frame_are_not_shifted():
    # What is mirrored stays mirrored, and a disc is the disc.
    bitmaps, _ = random_masks(6, 20)
    frames = random_frames(20)
    targets = sample(bitmaps, frames, np.arange(20), frames)
    mirrored = sample(bitmaps[:, ::-1, ::-1], frames, np.arange(20), frames)
    np.testing.assert_array_equal(mirrored, targets[:, ::-1, ::-1])
    centres = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    disc = centres[:, None] ** 2 + centres**2 < 0.25
    target = sample(disc[None], frames[:1], [0], frames[:1])[0]
    centres = (np.arange(28) + 0.5) / 28 - 0.5
    assert reference.iou(target, centres[:, None] ** 2 + centres**2 < 0.25) == 1


average_28 = jax.jit(lambda *arguments: average_mask(*arguments, 28))


def test_averages_are_the_covered_part_of_each_cell_inside_across_and_outside_the_frame():
    rng = np.random.default_rng(0)
    bitmaps = rng.random((2, SIDE, SIDE)) < 0.5
    frames = np.array([[10, 20, 66, 76], [0, 0, 28, 56]], np.float32)
    rois = np.array([[10, 20, 66, 76], [17, 27, 45, 55], [-18, -8, 38, 48], [200, 200, 228, 228], [0, 0, 7, 31]])
    rois = rois.astype(np.float32)
    for gt in range(2):
        targets = sample(bitmaps, frames, [gt] * len(rois), rois, average_28)
        # Sums of fine points, up to one of 64 along each side of a cell.
        expected = [reference.average_mask(bitmaps[gt], frames[gt], roi, 28) for roi in rois]
        np.testing.assert_allclose(targets, expected, atol=1 / 16)
        np.testing.assert_allclose(targets.mean(axis=(1, 2)), np.mean(expected, axis=(1, 2)), atol=1e-3)
    exact = sample(bitmaps, frames, [0], rois[:1], average_28)[0]
    np.testing.assert_allclose(exact, bitmaps[0].reshape(28, 4, 28, 4).mean(axis=(1, 3)), atol=1e-4)


def test_equals_the_lookup_point_by_point_inside_across_and_outside_the_frame():
    rng = np.random.default_rng(0)
    bitmaps = rng.random((3, SIDE, SIDE)) < 0.5
    frames = np.array([[10, 20, 66, 76], [0, 0, 28, 56], [30, 10, 142, 24]], np.float32)
    # The shift keeps every point away from the border of two stored pixels, where rounding would decide.
    rois = np.float32(0.3) + np.array(
        [[10, 20, 66, 76], [17, 27, 45, 55], [-18, -8, 38, 48], [200, 200, 228, 228], [0, 0, 112, 28]], np.float32
    )
    for gt in range(3):
        expected = [reference.sample_mask(bitmaps[gt], frames[gt], roi, 28) for roi in rois]
        np.testing.assert_array_equal(sample(bitmaps, frames, [gt] * len(rois), rois), expected)


def test_region_equal_to_the_frame_reads_the_bitmap():
    bitmaps, frames = random_masks(1, 2)
    full = jax.jit(lambda *arguments: sample_mask(*arguments, SIDE))
    np.testing.assert_array_equal(sample(bitmaps, frames, [1, 0], frames[[1, 0]], full), bitmaps[[1, 0]])


def test_region_outside_the_frame_has_no_object():
    frames = np.array([[10, 10, 20, 20]], np.float32)
    rois = np.array([[20, 10, 30, 20], [10, 0, 20, 10], [-50, -50, 10, 10], [500, 500, 600, 600]], np.float32)
    assert not sample(np.ones((1, SIDE, SIDE), bool), frames, [0] * 4, rois).any()


def test_region_across_the_frame_sees_the_object_in_its_part_alone():
    frames = np.array([[10, 10, 20, 20]], np.float32)
    target = sample(np.ones((1, SIDE, SIDE), bool), frames, [0], np.array([[15, 5, 25, 15]], np.float32))[0]
    expected = np.zeros((28, 28), bool)
    expected[14:, :14] = True
    np.testing.assert_array_equal(target, expected)


def test_region_never_sees_the_mask_of_another_object():
    bitmaps, frames = random_masks(2, 3)
    before = sample(bitmaps, frames, [1, 1], frames[[1, 0]])
    bitmaps[[0, 2]] = ~bitmaps[[0, 2]]
    frames[[0, 2]] += 5
    np.testing.assert_array_equal(sample(bitmaps, frames, [1, 1], np.stack([frames[1], frames[0] - 5])), before)


@pytest.mark.parametrize("name", POLYGONS)
def test_target_of_a_polygon_equals_the_exact_polygon_drawn_fine(name):
    polygons = POLYGONS[name]
    packed, frame = rasterize_polygons(polygons)
    box = polygon_box(polygons)
    rng = np.random.default_rng(3)
    size = np.tile(box[2:] - box[:2], 2)
    rois = (box + rng.uniform(-0.15, 0.15, (6, 4)) * size).astype(np.float32)
    rois[0] = box
    full = jax.jit(lambda *arguments: sample_mask(*arguments, 448))
    targets = sample(unpack_bitmap(packed)[None], frame[None], [0] * 6, rois, full)
    for target, roi in zip(targets, rois, strict=True):
        assert reference.iou(target, reference.rasterize(polygons, roi, 448)) > 0.97


@pytest.mark.parametrize("name", POLYGONS)
def test_target_of_mask_head_size_differs_from_the_exact_polygon_at_its_border_alone(name):
    polygons = POLYGONS[name]
    packed, frame = rasterize_polygons(polygons)
    roi = polygon_box(polygons).astype(np.float32)
    target = sample(unpack_bitmap(packed)[None], frame[None], [0], roi[None])[0]
    # Points whose surroundings, half a stored pixel wide and more, are all object or all background, must agree.
    fine = reference.rasterize(polygons, roi, 28 * 20).reshape(28, 20, 28, 20)[:, 4:16, :, 4:16]
    all_object, no_object = fine.all(axis=(1, 3)), ~fine.any(axis=(1, 3))
    assert target[all_object].all() and not target[no_object].any()
    assert (all_object | no_object).mean() > 0.8


def test_halves_of_a_frame_keep_their_sides():
    # Up, down, left and right, against a swap of the axes or of the order of bits.
    bitmap = np.zeros((SIDE, SIDE), bool)
    bitmap[: SIDE // 2, : SIDE // 4] = True
    target = sample(bitmap[None], np.array([[0, 0, 56, 28]], np.float32), [0], np.array([[0, 0, 56, 28]], np.float32))
    expected = np.zeros((28, 28), bool)
    expected[:14, :7] = True
    np.testing.assert_array_equal(target[0], expected)


def test_empty_frames_and_regions_give_finite_targets():
    bitmaps = np.ones((2, SIDE, SIDE), bool)
    frames = np.array([[0, 0, 0, 0], [5, 5, 15, 15]], np.float32)
    rois = np.array([[0, 0, 0, 0], [0, 0, 10, 10], [10, 10, 10, 10], [12, 12, 8, 8]], np.float32)
    targets = sample(bitmaps, frames, [0, 0, 1, 1], rois)
    assert not targets[1].any()  # no point of it lies in an empty frame
    assert targets[2].all() and targets[3].all()
    assert np.isfinite(sample(bitmaps, frames, [0, 0, 1, 1], rois, average_28)).all()


def test_more_slots_change_nothing():
    bitmaps, frames = random_masks(4, 3)
    rois = np.concatenate([frames + 2, frames - 3]).astype(np.float32)
    index = [0, 1, 2, 0, 1, 2]
    plain = sample(bitmaps, frames, index, rois)
    padded = sample(
        np.concatenate([bitmaps, ~bitmaps[:2]]),
        np.concatenate([frames, np.zeros((2, 4), np.float32)]),
        [*index, 4],
        np.concatenate([rois, np.zeros((1, 4), np.float32)]),
    )
    np.testing.assert_array_equal(padded[:6], plain)


def test_jit_equals_no_jit_and_vmap_equals_loop():
    bitmaps, frames = random_masks(5, 2)
    masks = np.stack([pack_bitmap(b) for b in bitmaps])
    batch = [jnp.asarray(np.stack([a, a[::-1]])) for a in (masks, frames, np.array([0, 1]), frames + 1)]
    together = jax.jit(jax.vmap(lambda *arguments: sample_mask(*arguments, 14)))(*batch)
    loop = [sample_mask(*(a[i] for a in batch), 14) for i in range(2)]
    np.testing.assert_array_equal(together, loop)


def test_a_batch_split_over_devices_sends_nothing():
    batch = (
        jnp.zeros((8, 3, SIDE, SIDE // 8), jnp.uint8),
        jnp.ones((8, 3, 4)),
        jnp.zeros((8, 5), jnp.int32),
        jnp.ones((8, 5, 4)),
    )
    for function in (sample_mask, average_mask):
        assert not collectives(jax.vmap(lambda *arguments, function=function: function(*arguments, 28)), *batch)
