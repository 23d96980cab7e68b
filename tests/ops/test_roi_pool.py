"""RoIPool, RoIWarp and RoIAlign's maximum: against the slow references, and RoIPool against torchvision."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.ops import roi_pool as ops
from maskx_jax.ops.per_image import per_image
from maskx_jax.ops.roi_align import roi_align
from tests.golden import op_inputs
from tests.ops.collectives import collectives
from tests.ops.test_roi_align import ADVERSARIAL, pyramid, random_boxes, to_numpy
from tests.reference import roi_pool as reference

GOLDENS = np.load(pathlib.Path(op_inputs.__file__).with_name("roi_pool.npz"))
# Halves of feature pixels; 31 of them in 7 bins, where float32 rounds a whole number up and the last bin has one more.
HALVES = [[-7.6, -2.4, 9.9, 30.1], [6, 2, 10, 14], [-6, -2, 2, 6], [-20, 4, 100, 12]]
BOXES = np.concatenate([ADVERSARIAL, random_boxes(0, 8), HALVES])
BOXES = BOXES.astype(np.float32)

# Of points, and what the references call them: (warp, largest).
OF_POINTS = {
    "roi_align_max": (ops.roi_align_max, {"warp": False, "largest": True}),
    "roi_warp": (ops.roi_warp, {"warp": True, "largest": False}),
    "roi_warp_max": (ops.roi_warp_max, {"warp": True, "largest": True}),
}


@functools.cache
def pooler(operation, size, ratio=2, convention="torchvision", chunk_size=None):
    """Return the jitted op: (pooled, the gradient of sum(weights * pooled) with respect to features and boxes)."""

    def both(maps, boxes, weights):
        def loss(maps, boxes):
            pooled = operation(maps, boxes, size, ratio, convention, chunk_size)
            return jnp.sum(pooled.astype(jnp.float32) * weights), pooled

        gradient, pooled = jax.grad(loss, argnums=(0, 1), has_aux=True)(maps, boxes)
        return pooled, *gradient

    return jax.jit(both)


def weights_of(boxes, size, channels=3):
    return np.random.default_rng(1).normal(size=(len(boxes), size, size, channels)).astype(np.float32)


@pytest.mark.parametrize("size", op_inputs.ROI_SIZES)
def test_roi_pool_and_its_gradient_equal_torchvision(size):
    maps, boxes = op_inputs.coarse_pyramid(), op_inputs.all_roi_boxes()
    pooled, gradient, _ = pooler(ops.roi_pool, size)(maps, boxes, op_inputs.roi_cotangent(len(boxes), size))
    np.testing.assert_array_equal(pooled, GOLDENS[f"pooled/{size}"])
    for level, actual in gradient.items():
        np.testing.assert_allclose(actual, GOLDENS[f"gradient/{size}/{level}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "convention", "chunk_size"), [(7, "detectron", None), (3, "detectron2", 5)])
def test_roi_pool_equals_the_reference(size, convention, chunk_size):
    features, weights = pyramid(), weights_of(BOXES, size)
    pooled, gradient, of_boxes = pooler(ops.roi_pool, size, 2, convention, chunk_size)(features, BOXES, weights)
    maps = to_numpy(features)
    np.testing.assert_allclose(pooled, reference.roi_pool(maps, BOXES, size, convention), rtol=1e-6)
    expected = reference.roi_pool_gradient(maps, BOXES, weights, convention)
    for level in maps:
        assert np.abs(expected[level]).max() > 0
        np.testing.assert_allclose(gradient[level], expected[level], atol=1e-5)
    np.testing.assert_array_equal(of_boxes, np.zeros_like(BOXES))


@pytest.mark.parametrize("name", OF_POINTS)
@pytest.mark.parametrize(("size", "ratio", "convention"), [(3, 2, "torchvision"), (2, 3, "detectron2")])
def test_points_and_their_gradient_equal_the_reference(name, size, ratio, convention):
    operation, which = OF_POINTS[name]
    features, weights = pyramid(2), weights_of(BOXES, size)
    pooled, gradient, of_boxes = pooler(operation, size, ratio, convention)(features, BOXES, weights)
    maps = to_numpy(features)
    expected = reference.pool_points(maps, BOXES, size, ratio, convention, **which)
    np.testing.assert_allclose(pooled, expected, atol=2e-5)
    expected = reference.pool_points_gradient(maps, BOXES, weights, ratio, convention, **which)
    for level in maps:
        np.testing.assert_allclose(gradient[level], expected[level], atol=2e-4)
    np.testing.assert_array_equal(of_boxes, np.zeros_like(BOXES))


def test_halves_are_rounded_away_from_zero_and_a_box_has_a_pixel_at_least():
    corners = jnp.array([[0.5, 1.5, 2.5, 3.49], [-0.5, -1.5, -0.49, 0.49], [5.0, 5.0, 2.0, 4.0]])
    first, number = ops.whole_pixels(corners)
    assert first.tolist() == [[1, 2], [-1, -2], [5, 5]] and number.tolist() == [[3, 2], [2, 3], [1, 1]]
    # A step of float32 below a half.
    assert ops.whole_pixels(jnp.full((1, 4), np.nextafter(np.float32(0.5), np.float32(0))))[0].tolist() == [[0, 0]]


def test_a_box_moved_by_less_than_half_a_feature_pixel_is_pooled_the_same_but_by_roi_align():
    # What the paper says of quantisation (section 3): here by up to 2 pixels of the image on level 2.
    features, box = pyramid(), np.array([[16.0, 8.0, 44.0, 40.0]], np.float32)
    weights = weights_of(box, 3)
    for operation in (ops.roi_pool, ops.roi_warp, ops.roi_warp_max):
        here, moved = (pooler(operation, 3)(features, box + shift, weights)[0] for shift in (0, 1.75))
        np.testing.assert_array_equal(here, moved)
    here, moved = (pooler(ops.roi_align_max, 3)(features, box + shift, weights)[0] for shift in (0, 1.75))
    assert np.abs(here - moved).max() > 0.1


def test_roi_warp_reads_whole_pixels_where_a_box_has_one_for_each_point():
    # Columns 2 to 7 and rows 1 to 6 are six pixels either way: the points of three bins with a ratio of 2.
    features, box = pyramid(), np.array([[8.0, 4.0, 28.0, 24.0]], np.float32)
    pixels = np.asarray(features[2])[1:7, 2:8].reshape(3, 2, 3, 2, 3)
    weights = weights_of(box, 3)
    for operation, expected in ((ops.roi_warp, pixels.mean((1, 3))), (ops.roi_warp_max, pixels.max((1, 3)))):
        np.testing.assert_allclose(pooler(operation, 3)(features, box, weights)[0][0], expected, rtol=1e-5)
    # There RoIPool has the same bins.
    np.testing.assert_array_equal(pooler(ops.roi_pool, 3)(features, box, weights)[0][0], pixels.max((1, 3)))


def test_largest_of_one_point_is_roi_align_itself():
    features = pyramid()
    weights = weights_of(BOXES, 2)
    for one, other in zip(
        pooler(ops.roi_align_max, 2, 1)(features, BOXES, weights),
        pooler(roi_align, 2, 1)(features, BOXES, weights),
        strict=True,
    ):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_an_adaptive_number_of_points_has_no_largest():
    with pytest.raises(ValueError, match="sampling_ratio 0; expected 1 or more"):
        ops.roi_align_max(pyramid(), jnp.asarray(BOXES), 7, 0)


def test_bfloat16_is_pooled_in_its_type_with_gradients_summed_in_float32():
    features = pyramid(6, dtype=jnp.bfloat16)
    boxes = np.repeat(BOXES[:1], 512, axis=0)
    pooled, gradient, _ = pooler(ops.roi_pool, 1)(features, boxes, np.ones((512, 1, 1, 3), np.float32))
    assert pooled.dtype == gradient[2].dtype == jnp.bfloat16
    expected = reference.roi_pool_gradient(to_numpy(features), BOXES[:1], np.full((1, 1, 1, 3), 512.0))
    np.testing.assert_array_equal(np.asarray(gradient[2], np.float64), expected[2])


def test_a_batch_equals_its_images_and_sends_nothing_between_devices():
    boxes = np.stack([BOXES, BOXES[::-1]] * 4)
    maps = {level: jnp.stack([pyramid(seed)[level] for seed in (0, 1)] * 4) for level in pyramid()}

    def pooled(maps, boxes):
        return per_image(lambda maps, boxes: ops.roi_pool(maps, boxes, 2))(maps, boxes)

    together = jax.jit(pooled)(maps, boxes)
    for i in range(2):
        alone = ops.roi_pool({level: m[i] for level, m in maps.items()}, jnp.asarray(boxes[i]), 2)
        np.testing.assert_array_equal(together[i], alone)

    def gradient(maps, boxes, weights):
        return jax.vjp(lambda maps: pooled(maps, boxes), maps)[1](weights)

    assert not collectives(gradient, maps, jnp.asarray(boxes), jnp.ones((8, len(BOXES), 2, 2, 3)))
