import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.ops.anchors import grid_strides
from maskx_jax.ops.point_matching import match_points
from maskx_jax.ops.points import OFFSETS, boxes_from_distances, centerness, grid_points, side_distances
from tests.reference import points as reference

RANGES = ((0, 64), (64, 128), (128, 256), (256, 512), (512, np.inf))


@pytest.mark.parametrize("offset", OFFSETS)
def test_grid_points_equal_the_reference(offset):
    found = grid_points(3, 5, (16, 8), offset)
    np.testing.assert_array_equal(found, reference.grid_points(3, 5, (16, 8), offset))


def test_an_unknown_offset_is_refused():
    with pytest.raises(ValueError, match="offset 'middle'"):
        grid_points(2, 2, (8, 8), "middle")


def test_torchvisions_points_of_a_canvas_that_p6_and_p7_do_not_divide():
    # 800 rows over maps of 13 and 7 rows, 1344 columns over 22 and 11.
    assert [grid_strides((800, 1344), cells, 64, "torchvision") for cells in ((13, 21), (7, 11))] == [
        (61, 64),
        (114, 122),
    ]


def test_distances_and_boxes_are_inverse():
    rng = np.random.default_rng(0)
    points = jnp.asarray(rng.uniform(0, 100, (20, 2)), jnp.float32)
    boxes = jnp.asarray(np.sort(rng.uniform(0, 100, (20, 2, 2)), axis=1).reshape(20, 4), jnp.float32)
    np.testing.assert_allclose(boxes_from_distances(points, side_distances(points, boxes)), boxes, atol=1e-4)


def test_centerness_equals_the_reference_and_is_finite_outside():
    distances = np.random.default_rng(1).uniform(-5, 20, (100, 4)).astype(np.float32)
    distances[:3] = [[0, 0, 0, 0], [3, 3, 3, 3], [0, 5, 5, 5]]
    found = jax.jit(centerness)(jnp.asarray(distances))
    np.testing.assert_allclose(found, [reference.centerness(*d) for d in distances], rtol=1e-5)
    assert found[1] == 1 and found[2] == 0


def pyramid(height=256, width=192):
    levels = [(stride, grid_points(-(-height // stride), -(-width // stride), (stride, stride), "centre")) for stride in
              (8, 16, 32, 64, 128)]  # fmt: skip
    points = jnp.concatenate([grid for _, grid in levels])
    strides = jnp.concatenate([jnp.full(len(grid), stride, jnp.float32) for stride, grid in levels])
    ranges = jnp.concatenate(
        [jnp.tile(jnp.array(r, jnp.float32), (len(g), 1)) for r, (_, g) in zip(RANGES, levels, strict=True)]
    )
    return points, strides, ranges


def scene(seed, count=12):
    """Return boxes of all sizes, some on the grid of the points, so that sizes lie on the borders of the levels."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, (180, 240), (count, 2))
    boxes = np.concatenate([corners, corners + rng.choice([6, 30, 64, 100, 250], (count, 2))], axis=1)
    boxes[count // 2 :] = np.round(boxes[count // 2 :] / 4) * 4
    return boxes.astype(np.float32)


matched = functools.partial(jax.jit, static_argnames=("radius", "closed_ranges"))(match_points)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("radius", [0.0, 1.5])
@pytest.mark.parametrize("closed_ranges", [False, True])
def test_points_match_as_in_the_reference(seed, radius, closed_ranges):
    points, strides, ranges = pyramid()
    boxes = scene(seed)
    slots = np.concatenate([boxes, [[10, 10, 60, 60]] * 3]).astype(np.float32)
    objects = jnp.asarray(slots), jnp.arange(len(slots)) < len(boxes)
    found = matched(points, strides, ranges, *objects, radius=radius, closed_ranges=closed_ranges)
    arrays = (np.asarray(x, np.float64).tolist() for x in (points, strides, ranges, boxes))
    expected = reference.match_points(*arrays, radius, closed_ranges)
    assert any(index is not None for index in expected)
    assert [int(i) if f else None for i, f in zip(found.gt_index, found.foreground, strict=True)] == expected


def test_a_size_on_the_border_belongs_to_both_levels_or_to_none():
    # From the point (32, 32) the box reaches 64 pixels to the right.
    arguments = jnp.array([[32.0, 32.0]] * 2), jnp.array([8.0, 16.0]), jnp.array([[0.0, 64.0], [64.0, 128.0]])
    box, valid = jnp.array([[0.0, 0.0, 96.0, 64.0]]), jnp.array([True])
    closed = matched(*arguments, box, valid, radius=0.0, closed_ranges=True)
    open_ = matched(*arguments, box, valid, radius=0.0, closed_ranges=False)
    assert closed.foreground.tolist() == [True, True] and open_.foreground.tolist() == [False, False]


def test_pairs_that_are_not_allowed_do_not_match():
    points, strides, ranges = pyramid()
    boxes = jnp.array([[20.0, 20.0, 80.0, 80.0], [30.0, 30.0, 60.0, 60.0]])
    valid = jnp.array([True, True])
    allowed = jnp.zeros((len(points), 2), bool).at[:, 0].set(True)
    found = match_points(points, strides, ranges, boxes, valid, radius=1.5, closed_ranges=False, allowed=allowed)
    alone = match_points(points, strides, ranges, boxes[:1], valid[:1], radius=1.5, closed_ranges=False)
    np.testing.assert_array_equal(found.foreground, alone.foreground)
    assert not found.gt_index[found.foreground].any()


def test_without_objects_all_points_are_background():
    points, strides, ranges = pyramid()
    found = match_points(
        points, strides, ranges, jnp.zeros((3, 4)), jnp.zeros(3, bool), radius=1.5, closed_ranges=False
    )
    assert not found.foreground.any()
