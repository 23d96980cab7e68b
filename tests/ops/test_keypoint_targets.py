import jax
import jax.numpy as jnp
import numpy as np

from maskx_jax.ops.keypoint_targets import keypoint_cells
from tests.ops.collectives import collectives
from tests.reference.keypoint_targets import keypoint_cell

SIZE = 56
cells_of = jax.jit(lambda *arguments: keypoint_cells(*arguments, SIZE))


def scene(seed=0, objects=3, keypoints=5, regions=8):
    """Return keypoints in a square of 100 pixels, and regions that hold some of them."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 100, (objects, keypoints, 2)).astype(np.float32)
    corner = rng.uniform(0, 40, (regions, 2))
    rois = np.concatenate([corner, corner + rng.uniform(30, 80, (regions, 2))], axis=1).astype(np.float32)
    return points, rng.random((objects, keypoints)) < 0.7, rng.integers(0, objects, regions), rois


def test_equals_the_cell_of_each_keypoint_one_by_one():
    points, labelled, gt_index, rois = scene()
    cells, valid = map(np.asarray, cells_of(points, labelled, gt_index, rois))
    for region, index in enumerate(gt_index):
        for keypoint, (x, y) in enumerate(points[index].astype(float)):
            expected = keypoint_cell(x, y, rois[region], SIZE)
            assert valid[region, keypoint] == (expected is not None and labelled[index, keypoint])
            if valid[region, keypoint]:
                assert divmod(cells[region, keypoint], SIZE) == expected
    assert 0.1 < valid.mean() < 0.9


def test_borders_belong_to_the_region_and_its_last_cell_ends_there():
    # The corners, a border of two cells, and points just beyond each side. 14 pixels are 4 cells a pixel.
    points = np.array([[10, 20], [24, 34], [24, 20], [17, 27], [9.99, 25], [24.01, 25], [15, 19.99], [15, 34.01]])
    cells, valid = cells_of(
        points[None].astype(np.float32), np.ones((1, 8), bool), np.array([0]), np.array([[10, 20, 24, 34]], np.float32)
    )
    assert [divmod(cell, SIZE) for cell in np.asarray(cells)[0, :4]] == [(0, 0), (55, 55), (0, 55), (28, 28)]
    assert np.asarray(valid)[0].tolist() == [True] * 4 + [False] * 4


def test_the_far_border_is_the_last_cell_wherever_rounding_puts_it():
    _, _, _, rois = scene(seed=1, regions=300)
    cells, valid = cells_of(rois[:, None, 2:], np.ones((300, 1), bool), np.arange(300), rois)
    assert valid.all() and (cells == SIZE**2 - 1).all()


def test_more_objects_change_nothing_and_a_region_sees_its_own_alone():
    points, labelled, gt_index, rois = scene()
    expected = cells_of(points, labelled, gt_index, rois)
    more = np.concatenate([points, points + 1]), np.concatenate([labelled, ~labelled])
    jax.tree.map(np.testing.assert_array_equal, cells_of(*more, gt_index, rois), expected)


def test_regions_without_area_have_finite_cells():
    rois = np.array([[5, 5, 5, 5], [9, 9, 3, 3]], np.float32)
    cells, valid = cells_of(np.full((1, 1, 2), 5, np.float32), np.ones((1, 1), bool), np.zeros(2, int), rois)
    assert ((cells >= 0) & (cells < SIZE**2)).all() and valid[:, 0].tolist() == [True, False]


def test_jit_equals_no_jit_and_vmap_equals_loop():
    batch = [jnp.asarray(np.stack([a, a[::-1]])) for a in scene(regions=3)]
    together = jax.jit(jax.vmap(lambda *arguments: keypoint_cells(*arguments, 14)))(*batch)
    for i in range(2):
        one = keypoint_cells(*(a[i] for a in batch), 14)
        jax.tree.map(lambda values, expected, i=i: np.testing.assert_array_equal(values[i], expected), together, one)


def test_a_batch_split_over_devices_sends_nothing():
    batch = jnp.zeros((8, 3, 5, 2)), jnp.ones((8, 3, 5), bool), jnp.zeros((8, 4), jnp.int32), jnp.ones((8, 4, 4))
    assert not collectives(jax.vmap(lambda *arguments: keypoint_cells(*arguments, SIZE)), *batch)
