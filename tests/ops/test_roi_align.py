import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from maskx_jax.ops.roi_align import MAX_ADAPTIVE_RATIO, assign_levels, roi_align
from tests.ops.collectives import collectives
from tests.reference import roi_align as reference

# A canvas of 64 x 96 (height x width), with maps of levels 2 to 5.
HEIGHT, WIDTH = 64, 96


def pyramid(seed=0, channels=3, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        level: jnp.asarray(rng.normal(size=(HEIGHT >> level, WIDTH >> level, channels)), dtype)
        for level in (2, 3, 4, 5)
    }


def to_numpy(features):
    return {level: np.asarray(feature, np.float64) for level, feature in features.items()}


# Inside, on, across and outside the border; empty, inside out, a pixel wide; as large as the canvas and larger.
ADVERSARIAL = np.array(
    [
        [10, 10, 40, 30],
        [0, 0, 96, 64],
        [0, 0, 30, 30],
        [66, 34, 96, 64],
        [-20, -10, 30, 20],
        [80, 50, 120, 90],
        [-3, -3, 20, 20],
        [90, 60, 99, 67],
        [-100, -100, -50, -50],
        [200, 10, 240, 30],
        [10, 200, 30, 240],
        [-500, -500, 500, 500],
        [20, 20, 20, 20],
        [20, 20, 20, 50],
        [30, 30, 10, 10],
        [20.3, 20.7, 21.3, 21.7],
        [96, 64, 96, 64],
        [0, 0, 0, 0],
        [-4, -4, -4, -4],
        [0, 0, 112, 112],
        [-8, 0, 216, 224],
    ],
    np.float32,
)


def random_boxes(seed, n):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-40, 100, (n, 2))
    return np.concatenate([corner, corner + np.exp(rng.uniform(0, 6, (n, 2)))], axis=1).astype(np.float32)


BOXES = np.concatenate([ADVERSARIAL, random_boxes(0, 16)])


@functools.cache
def pooler(size, ratio=2, convention="torchvision", chunk_size=16):
    """Return the jitted op."""
    return jax.jit(lambda maps, boxes: roi_align(maps, boxes, size, ratio, convention, chunk_size))


@functools.cache
def pooler_gradient(size, chunk_size=16):
    """Return the jitted gradient of sum(weights * pooled) with respect to features and boxes."""

    def loss(maps, boxes, weights):
        return jnp.sum(roi_align(maps, boxes, size, 2, "torchvision", chunk_size).astype(jnp.float32) * weights)

    return jax.jit(jax.grad(loss, argnums=(0, 1)))


@pytest.mark.parametrize(
    ("size", "ratio", "convention"),
    [
        (7, 2, "torchvision"),
        (7, 2, "detectron2"),
        (7, 2, "detectron"),
        (3, 1, "torchvision"),
        (2, 3, "detectron2"),
        (2, 2, "torchvision"),
    ],
)
def test_equals_the_compiled_rule_inside_across_and_beyond_the_border(size, ratio, convention):
    features = pyramid()
    expected = reference.roi_align(to_numpy(features), BOXES, size, ratio, convention)
    assert np.abs(expected).max(axis=(1, 2, 3)).min() == 0  # some boxes are wholly outside
    actual = pooler(size, ratio, convention)(features, jnp.asarray(BOXES))
    np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize(("size", "convention"), [(7, "detectron2"), (14, "torchvision")])
def test_adaptive_sampling_equals_a_point_for_every_feature_pixel_up_to_its_bound(size, convention):
    features = pyramid()
    # Up to 28 feature pixels a side on the lowest level, and longer ones.
    boxes = np.concatenate([BOXES, [[3, 5, 95, 20], [10, 2, 30, 60], [0.5, 0.5, 90.2, 63.1], [1, 1, 300, 12]]])
    # No point lies on the border of a map and no bin is a whole number long: rounding would decide on which side.
    boxes = (1.003 * boxes).astype(np.float32)
    actual = pooler(size, 0, convention)(features, jnp.asarray(boxes))
    bounded = reference.roi_align(to_numpy(features), boxes, size, 0, convention, MAX_ADAPTIVE_RATIO)
    np.testing.assert_allclose(actual, bounded, atol=2e-5)
    level = np.array(assign_levels(jnp.asarray(boxes), 2, 5))
    within = (boxes[:, 2:] - boxes[:, :2]).max(axis=1) / 2.0**level <= MAX_ADAPTIVE_RATIO * size
    assert within.sum() > 20 and (size == 14 or not within.all())
    exact = reference.roi_align(to_numpy(features), boxes[within], size, 0, convention)
    np.testing.assert_allclose(actual[within], exact, atol=2e-5)


def test_points_up_to_one_feature_pixel_outside_take_the_border_and_farther_ones_count_as_zero():
    # One point a box, at known places of a map of ones: x from -1 to the width are in, beyond are out.
    features = {2: jnp.ones((4, 8, 1))}
    points = np.array([[-1.0, 2], [-1.01, 2], [8, 2], [8.01, 2], [3, -1], [3, -1.01], [3, 4], [3, 4.01]])
    boxes = np.concatenate([points - 0.5, points + 0.5], axis=1).astype(np.float32) * 4
    values = pooler(1, 1)(features, jnp.asarray(boxes))[:, 0, 0, 0]
    np.testing.assert_array_equal(values, [1, 0, 1, 0, 1, 0, 1, 0])


def test_an_unknown_convention_is_refused():
    with pytest.raises(ValueError, match=r"'aligned'; expected one of .*detectron2"):
        roi_align(pyramid(), jnp.asarray(BOXES), 7, convention="aligned")


def test_half_a_pixel_of_shift_in_detectron2_alone_and_boxes_end_at_their_last_pixel_in_detectron():
    # A ramp along x, whose value is the column. The box of columns 2 to 4 is sampled at 2.5 and 3.5.
    features = {2: jnp.broadcast_to(jnp.arange(8.0)[None, :, None], (8, 8, 1))}
    box = jnp.array([[8.0, 8.0, 16.0, 16.0]])
    np.testing.assert_allclose(pooler(2, 1)(features, box)[0, 0, :, 0], [2.5, 3.5])
    np.testing.assert_allclose(pooler(2, 1, "detectron2")(features, box)[0, 0, :, 0], [2, 3])
    # In pixels 8 to 15 of the image, that is from 2 to 3.75.
    np.testing.assert_allclose(pooler(2, 1, "detectron")(features, box)[0, 0, :, 0], [2.4375, 3.3125])


def test_small_boxes_are_widened_to_one_feature_pixel_but_not_in_detectron2():
    features = {2: jnp.broadcast_to(jnp.arange(8.0)[None, :, None], (8, 8, 1))}
    box = jnp.array([[8.0, 8.0, 8.0, 8.0]])
    np.testing.assert_allclose(pooler(2, 1)(features, box)[0, 0, :, 0], [2.25, 2.75])
    np.testing.assert_allclose(pooler(2, 1, "detectron2")(features, box)[0, 0, :, 0], [1.5, 1.5])


def test_constant_features_pool_to_the_constant():
    features = {level: jnp.full((HEIGHT >> level, WIDTH >> level, 3), 2.5) for level in (2, 3, 4, 5)}
    boxes = np.clip(random_boxes(1, 37), 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
    boxes[:, :2] = np.minimum(boxes[:, :2], boxes[:, 2:] - 4).clip(0)
    np.testing.assert_allclose(pooler(7)(features, jnp.asarray(boxes)), 2.5, rtol=1e-6)


@pytest.mark.parametrize("side", [1, 55.9, 56, 111.9, 112, 112.1, 223.9, 224, 447.9, 448, 896, 5000])
def test_level_changes_where_equation_1_says(side):
    box = [3, 5, 3 + side, 5 + side]
    assert assign_levels(jnp.array([box], jnp.float32), 2, 5).item() == reference.level_of(box, 2, 5)


def test_level_doubles_from_224_pixels_at_level_4():
    sides = jnp.array([111.0, 112.0, 223.0, 224.0, 447.0, 448.0, 1e5])
    boxes = jnp.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    assert assign_levels(boxes, 2, 5).tolist() == [2, 3, 3, 4, 4, 5, 5]
    assert assign_levels(boxes, 3, 4).tolist() == [3, 3, 3, 4, 4, 4, 4]


def test_level_has_detectrons_tolerance_of_a_millionth():
    boxes = jnp.array([[0.0, 0.0, 223.9999, 223.9999], [0.0, 0.0, 223.9995, 223.9995]])
    assert assign_levels(boxes, 2, 5).tolist() == [4, 3]


def test_level_depends_on_the_area_alone():
    boxes = jnp.array([[0.0, 0.0, 448.0, 112.0], [0.0, 0.0, 56.0, 896.0], [7.0, 9.0, 231.0, 233.0]])
    assert assign_levels(boxes, 2, 5).tolist() == [4, 4, 4]


def test_empty_and_inside_out_boxes_belong_to_the_lowest_level():
    boxes = jnp.array([[5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 900.0], [900.0, 900.0, 0.0, 0.0]])
    assert assign_levels(boxes, 2, 5).tolist() == [2, 2, 2]


@pytest.mark.parametrize(("num_boxes", "chunk_size"), [(37, 1), (37, 5), (37, 37), (37, 1000), (1, 1), (1, 16)])
def test_chunk_size_changes_neither_values_nor_gradients(num_boxes, chunk_size):
    features, boxes = pyramid(1), BOXES[:num_boxes]
    weights = np.random.default_rng(2).normal(size=(num_boxes, 2, 2, 3)).astype(np.float32)
    expected = reference.roi_align(to_numpy(features), boxes, 2)
    actual = pooler(2, chunk_size=chunk_size)(features, jnp.asarray(boxes))
    np.testing.assert_allclose(actual, expected, atol=2e-5)
    expected = reference.roi_align_gradient(to_numpy(features), boxes, weights)
    actual, _ = pooler_gradient(2, chunk_size)(features, jnp.asarray(boxes), weights)
    for level in features:
        np.testing.assert_allclose(actual[level], expected[level], atol=2e-4)


def test_gradient_of_the_features_equals_the_reference_and_none_flows_to_the_boxes():
    features = pyramid(3)
    weights = np.random.default_rng(4).normal(size=(len(BOXES), 7, 7, 3)).astype(np.float32)
    of_features, of_boxes = pooler_gradient(7)(features, jnp.asarray(BOXES), weights)
    expected = reference.roi_align_gradient(to_numpy(features), BOXES, weights)
    for level in features:
        assert np.abs(expected[level]).max() > 0
        np.testing.assert_allclose(of_features[level], expected[level], atol=2e-4)
    np.testing.assert_array_equal(of_boxes, np.zeros_like(BOXES))


def test_gradient_equals_finite_differences():
    boxes = jnp.asarray(BOXES[:11])
    check_grads(lambda maps: pooler(2, chunk_size=4)(maps, boxes), (pyramid(5),), order=1, modes=["rev"], rtol=0.02)


def test_bfloat16_features_are_pooled_in_their_type_with_gradients_summed_in_float32():
    features = pyramid(6, dtype=jnp.bfloat16)
    pooled = pooler(3)(features, jnp.asarray(BOXES))
    assert pooled.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(pooled, np.float64), reference.roi_align(to_numpy(features), BOXES, 3), atol=0.03
    )
    # The same box 512 times: a sum in bfloat16 would stop growing at 256 times its terms.
    boxes = np.repeat(BOXES[:1], 512, axis=0)
    weights = np.ones((512, 1, 1, 3), np.float32)
    gradient, _ = pooler_gradient(1)(features, jnp.asarray(boxes), weights)
    expected = reference.roi_align_gradient(to_numpy(features), boxes, weights)
    for level in features:
        assert gradient[level].dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(gradient[level], np.float64), expected[level], rtol=0.01)


def test_more_boxes_change_neither_the_values_nor_the_gradient_of_the_others():
    features, boxes = pyramid(7), jnp.asarray(BOXES[:20])
    weights = np.random.default_rng(8).normal(size=(37, 2, 2, 3)).astype(np.float32)
    weights[20:] = 0
    plain = pooler(2)(features, boxes)
    for padding in (np.zeros((17, 4), np.float32), BOXES[20:]):
        padded = jnp.concatenate([boxes, jnp.asarray(padding)])
        np.testing.assert_allclose(pooler(2)(features, padded)[:20], plain, atol=1e-6)
        gradient, _ = pooler_gradient(2)(features, padded, weights)
        expected = reference.roi_align_gradient(to_numpy(features), BOXES[:20], weights[:20])
        for level in features:
            np.testing.assert_allclose(gradient[level], expected[level], atol=2e-4)


def test_jit_equals_no_jit_and_vmap_equals_loop():
    maps = [pyramid(seed) for seed in range(2)]
    boxes = jnp.asarray(np.stack([random_boxes(seed, 37) for seed in range(2)]))
    together = jax.jit(jax.vmap(pooler(2)))({k: jnp.stack([m[k] for m in maps]) for k in maps[0]}, boxes)
    for i in range(2):
        np.testing.assert_allclose(together[i], pooler(2)(maps[i], boxes[i]), atol=1e-5)
    np.testing.assert_allclose(together[0], roi_align(maps[0], boxes[0], 2, convention="torchvision"), atol=1e-5)


def test_a_batch_split_over_devices_sends_nothing_forward_or_backward():
    maps = {k: jnp.stack([m] * 8) for k, m in pyramid().items()}
    boxes = jnp.stack([jnp.asarray(BOXES)] * 8)

    def pooled(maps, boxes):
        return jax.vmap(lambda m, b: roi_align(m, b, 2, convention="torchvision"))(maps, boxes)

    def gradient(maps, boxes, weights):
        return jax.vjp(lambda m: pooled(m, boxes), maps)[1](weights)

    assert not collectives(pooled, maps, boxes)
    assert not collectives(gradient, maps, boxes, jnp.ones((8, len(BOXES), 2, 2, 3)))
