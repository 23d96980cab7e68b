import numpy as np
import pytest

from maskx_jax.data.records import PACKED_SHAPE, crop_bitmap, pack_bitmap, rasterize_polygons, unpack_bitmap
from tests.reference import mask_targets as reference

SIDE = 112


def disc(height, width, y, x, radius):
    rows, columns = np.mgrid[:height, :width]
    return (rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 < radius**2


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_unpack_undoes_pack(shape):
    bitmap = np.random.default_rng(0).random((*shape, SIDE, SIDE)) < 0.5
    packed = pack_bitmap(bitmap)
    assert packed.dtype == np.uint8 and packed.shape == (*shape, *PACKED_SHAPE)
    np.testing.assert_array_equal(unpack_bitmap(packed), bitmap)


def test_first_column_is_the_highest_bit():
    bitmap = np.zeros((SIDE, SIDE), bool)
    bitmap[3, 0] = bitmap[5, 9] = True
    packed = pack_bitmap(bitmap)
    assert packed[3, 0] == 128 and packed[5, 1] == 64 and packed.astype(int).sum() == 192


def test_any_nonzero_value_is_object():
    assert pack_bitmap(np.full((SIDE, SIDE), 2, np.uint8)).min() == 255


def test_frame_of_polygons_is_the_tight_box_of_all_parts():
    _, frame = rasterize_polygons([[10.5, 20, 30, 25, 12, 60.25], [-5, 30, 40, 31, 39, 32]])
    assert frame.dtype == np.float32
    np.testing.assert_array_equal(frame, [-5, 20, 40, 60.25])


def test_rectangle_fills_its_frame():
    packed, frame = rasterize_polygons([[3.3, 4.4, 9.9, 4.4, 9.9, 70.7, 3.3, 70.7]])
    assert unpack_bitmap(packed).all()
    np.testing.assert_allclose(frame, [3.3, 4.4, 9.9, 70.7])


@pytest.mark.parametrize("seed", range(6))
def test_bitmap_equals_the_exact_polygon(seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radii = rng.uniform(0.6, 1, (9, 1)) * rng.uniform(5, 300, 2)
    polygon = (100 + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)).ravel().tolist()
    packed, frame = rasterize_polygons([polygon])
    fine = unpack_bitmap(packed).repeat(4, axis=0).repeat(4, axis=1)
    assert reference.iou(fine, reference.rasterize([polygon], frame.astype(float), 4 * SIDE)) > 0.97


def test_parts_are_united_even_where_they_overlap():
    parts = [[0, 0, 60, 0, 60, 60, 0, 60], [40, 40, 112, 40, 112, 112, 40, 112]]
    packed, _ = rasterize_polygons(parts)
    expected = np.zeros((SIDE, SIDE), bool)
    expected[:60, :60] = expected[40:, 40:] = True
    np.testing.assert_array_equal(unpack_bitmap(packed), expected)


def test_bitmap_depends_on_neither_place_nor_scale():
    polygon = np.array([0, 0, 40, 8, 32, 48, 8, 24], np.float64)
    packed, _ = rasterize_polygons([polygon.tolist()])
    for scale, shift in ((0.25, 0), (1, 512), (16, -64)):
        other, frame = rasterize_polygons([(polygon * scale + shift).tolist()])
        np.testing.assert_array_equal(other, packed)
        np.testing.assert_array_equal(frame, np.array([0, 0, 40, 48]) * scale + shift)


@pytest.mark.parametrize("polygon", [[5, 5, 5, 9, 5, 7], [5, 5, 9, 5, 7, 5], [5, 5, 5, 5, 5, 5]])
def test_polygon_without_area_has_a_frame_with_one(polygon):
    packed, frame = rasterize_polygons([polygon])
    assert packed.shape == PACKED_SHAPE
    assert (frame[2:] > frame[:2]).all() and np.isfinite(frame).all()


def test_crop_takes_the_tight_box_of_the_pixels():
    bitmap = np.zeros((40, 60), bool)
    bitmap[7:21, 30] = bitmap[9, 12:31] = True
    packed, frame = crop_bitmap(bitmap)
    np.testing.assert_array_equal(frame, [12, 7, 31, 21])
    assert packed.shape == PACKED_SHAPE and packed.dtype == np.uint8


def test_crop_of_a_bitmap_of_stored_size_keeps_every_pixel():
    bitmap = np.zeros((150, 200), bool)
    inner = np.random.default_rng(1).random((SIDE, SIDE)) < 0.5
    inner[0] = inner[-1] = inner[:, 0] = inner[:, -1] = True
    bitmap[11 : 11 + SIDE, 40 : 40 + SIDE] = inner
    packed, frame = crop_bitmap(bitmap)
    np.testing.assert_array_equal(unpack_bitmap(packed), inner)
    np.testing.assert_array_equal(frame, [40, 11, 40 + SIDE, 11 + SIDE])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 7), (28, 56), (113, 300)])
def test_crop_takes_the_pixel_under_each_sample(height, width):
    bitmap = np.random.default_rng(2).random((height, width)) < 0.5
    bitmap[[0, -1]] = bitmap[:, [0, -1]] = True
    packed, frame = crop_bitmap(bitmap)
    np.testing.assert_array_equal(frame, [0, 0, width, height])
    i, j = np.mgrid[:SIDE, :SIDE]
    # In integers, the pixel under the middle of sample i: floor((i + 1/2) * height / SIDE).
    expected = bitmap[(2 * i + 1) * height // (2 * SIDE), (2 * j + 1) * width // (2 * SIDE)]
    np.testing.assert_array_equal(unpack_bitmap(packed), expected)


@pytest.mark.parametrize("radius", [2, 20, 150])
def test_crop_looks_like_what_it_was(radius):
    bitmap = disc(320, 330, 160.5, 170.5, radius)
    packed, (x1, y1, x2, y2) = crop_bitmap(bitmap)
    row = np.floor((np.arange(320)[:, None] + 0.5 - y1) / (y2 - y1) * SIDE).astype(int)
    column = np.floor((np.arange(330) + 0.5 - x1) / (x2 - x1) * SIDE).astype(int)
    inside = (row >= 0) & (row < SIDE) & (column >= 0) & (column < SIDE)
    back = unpack_bitmap(packed)[row.clip(0, SIDE - 1), column.clip(0, SIDE - 1)]
    assert reference.iou(back & inside, bitmap) > 0.97


def test_crop_of_an_empty_bitmap_is_an_error():
    with pytest.raises(ValueError, match="no pixel"):
        crop_bitmap(np.zeros((5, 5), bool))


def test_crop_and_polygon_agree_on_a_large_object():
    polygon = [20, 20, 300, 60, 280, 310, 40, 240]
    drawn = reference.rasterize([polygon], [0, 0, 320, 320], 320)
    packed, frame = crop_bitmap(drawn)
    from_polygon, polygon_frame = rasterize_polygons([polygon])
    np.testing.assert_allclose(frame, polygon_frame, atol=1.5)
    assert reference.iou(unpack_bitmap(packed), unpack_bitmap(from_polygon)) > 0.97
