import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.ops.anchors import CONVENTIONS, cell_anchors, grid_anchors, grid_strides
from tests.reference import anchors as reference

RATIOS = (0.5, 1.0, 2.0)


@pytest.mark.parametrize("stride", reference.DETECTRON_FPN)
def test_detectron_pyramid_anchors_are_the_published_table(stride):
    # Inclusive corners, 0..15 for a width of 16, become continuous, 0..16.
    expected = np.add(reference.DETECTRON_FPN[stride], [0, 0, 1, 1])
    np.testing.assert_array_equal(cell_anchors((8.0 * stride,), RATIOS, stride, "detectron"), expected)


@pytest.mark.parametrize("size", reference.DETECTRON_C4)
def test_detectron_c4_anchors_have_the_published_sizes(size):
    anchors = cell_anchors((float(size),), RATIOS, 16, "detectron")
    np.testing.assert_array_equal(anchors[:, 2:] - anchors[:, :2], reference.DETECTRON_C4[size])


@pytest.mark.parametrize("ratios", [RATIOS, (0.25, 1 / 3, 3.0, 4.0)])
@pytest.mark.parametrize("stride", [4, 8, 16, 32, 64])
def test_each_convention_equals_its_parent(ratios, stride):
    size = stride * 5.0
    np.testing.assert_allclose(
        cell_anchors((size,), ratios, stride, "detectron"), reference.detectron_cell_anchors(size, ratios, stride)
    )
    np.testing.assert_array_equal(
        cell_anchors((size,), ratios, stride, "torchvision"), reference.torchvision_cell_anchors(size, ratios)
    )
    np.testing.assert_allclose(
        cell_anchors((size,), ratios, stride, "detectron2"), reference.detectron2_cell_anchors(size, ratios), rtol=1e-6
    )


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_several_sizes_on_a_level_come_in_the_order_of_the_parent(convention):
    sizes = tuple(map(float, reference.DETECTRON_C4))
    each = {(size, ratio): cell_anchors((size,), (ratio,), 16, convention)[0] for size in sizes for ratio in RATIOS}
    # Detectron scales each of the windows, and so does torchvision; detectron2 has a loop over sizes outside.
    if convention == "detectron2":
        order = [(size, ratio) for size in sizes for ratio in RATIOS]
    else:
        order = [(size, ratio) for ratio in RATIOS for size in sizes]
    np.testing.assert_array_equal(cell_anchors(sizes, RATIOS, 16, convention), [each[pair] for pair in order])


def test_torchvision_anchors_are_its_documented_ones():
    expected = [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    np.testing.assert_array_equal(cell_anchors((32.0,), RATIOS, 4, "torchvision"), expected)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_anchors_have_about_the_area_and_the_ratio_asked_for(convention):
    anchors = cell_anchors((512.0,), RATIOS, 64, convention)
    width, height = (anchors[:, 2:] - anchors[:, :2]).T
    np.testing.assert_allclose(np.sqrt(width * height), 512, rtol=0.02)
    np.testing.assert_allclose(height / width, RATIOS, rtol=0.03)
    assert anchors.dtype == np.float32


def test_unknown_convention_is_named_with_those_known():
    with pytest.raises(ValueError, match=r"'caffe'.*torchvision.*detectron"):
        cell_anchors((32.0,), RATIOS, 4, "caffe")


def test_grid_runs_along_rows_then_columns_then_cell():
    cell = cell_anchors((32.0,), RATIOS, 8, "detectron")
    anchors = grid_anchors(cell, 3, 5, (8, 8))
    np.testing.assert_array_equal(anchors, reference.grid_anchors(cell, 3, 5, 8))
    row, column, k = 2, 4, 1
    np.testing.assert_array_equal(anchors[(row * 5 + column) * len(cell) + k], cell[k] + [32, 16, 32, 16])


def test_torchvision_divides_the_canvas_by_the_map_where_the_others_take_the_stride():
    assert grid_strides((800, 1344), (13, 21), 64, "torchvision") == (61, 64)
    for convention in ("detectron", "detectron2"):
        assert grid_strides((800, 1344), (13, 21), 64, convention) == (64, 64)
    cell = cell_anchors((512.0,), RATIOS, 64, "torchvision")
    anchors = grid_anchors(cell, 13, 21, (61, 64)).reshape(13, 21, 3, 4)
    np.testing.assert_array_equal(anchors[12, 20, 0], cell[0] + [1280, 732, 1280, 732])


def test_grid_is_the_same_under_jit():
    cell = cell_anchors((32.0,), RATIOS, 8, "torchvision")
    np.testing.assert_array_equal(jax.jit(lambda: grid_anchors(cell, 4, 3, (8, 8)))(), grid_anchors(cell, 4, 3, (8, 8)))


def test_grid_matches_the_flattening_of_a_head_output():
    # A head's output is height x width x (k values); anchors must line up with its plain reshape.
    cell = cell_anchors((16.0,), RATIOS, 16, "detectron2")
    anchors = grid_anchors(cell, 2, 3, (16, 16)).reshape(2, 3, len(cell), 4)
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2
    np.testing.assert_allclose(centres[:, :, 0, 1], jnp.array([[0.0] * 3, [16.0] * 3]), atol=1e-5)
    np.testing.assert_allclose(centres[:, :, 0, 0], jnp.array([[0.0, 16.0, 32.0]] * 2), atol=1e-5)
