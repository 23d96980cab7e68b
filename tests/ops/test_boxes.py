import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from maskx_jax.ops import boxes as box_ops
from tests.reference import boxes as reference

UNIT = (1.0, 1.0, 1.0, 1.0)
RCNN = (10.0, 10.0, 5.0, 5.0)

# Nested, touching at a side and at a corner, equal, disjoint, empty in one or both directions, inside out.
ADVERSARIAL = np.array(
    [
        [0, 0, 10, 10],
        [0, 0, 10, 10],
        [2, 2, 5, 5],
        [10, 0, 20, 10],
        [10, 10, 20, 20],
        [-5, -5, 5, 5],
        [3, 3, 3, 8],
        [4, 4, 4, 4],
        [8, 8, 2, 2],
        [8, 2, 2, 8],
        [1000, 1000, 1001, 1001],
    ],
    np.float32,
)


def random_boxes(seed, n, low=1.0, high=50.0):
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(-20, 80, (n, 2)), rng.uniform(low, high, (n, 2))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


BOXES = np.concatenate([ADVERSARIAL, random_boxes(0, 20)])


@pytest.mark.parametrize("name", ["iou", "covered_fraction"])
def test_overlaps_equal_the_reference(name):
    actual = getattr(box_ops, name)(jnp.asarray(BOXES), jnp.asarray(BOXES[::-1]))
    np.testing.assert_allclose(actual, getattr(reference, name)(BOXES, BOXES[::-1]), rtol=1e-5, atol=1e-6)


def test_area_of_empty_and_inside_out_boxes_is_zero():
    np.testing.assert_allclose(box_ops.area(jnp.asarray(BOXES)), [reference.area(b) for b in BOXES], rtol=1e-6)
    assert box_ops.area(jnp.asarray(ADVERSARIAL[[6, 7, 8, 9]])).tolist() == [0, 0, 0, 0]


def test_intersection_of_two_inside_out_boxes_is_zero():
    inside_out = jnp.array([[8.0, 8.0, 2.0, 2.0]])
    assert box_ops.intersection(inside_out, inside_out).item() == 0
    assert box_ops.iou(inside_out, inside_out).item() == 0


def test_width_has_no_legacy_pixel():
    assert box_ops.area(jnp.array([0.0, 0.0, 3.0, 4.0])).item() == 12


def test_iou_is_symmetric_and_one_for_equal_boxes():
    boxes = jnp.asarray(random_boxes(1, 30))
    overlaps = box_ops.iou(boxes, boxes)
    np.testing.assert_array_equal(overlaps, overlaps.T)
    np.testing.assert_allclose(jnp.diag(overlaps), 1, rtol=1e-5)


def test_clip_equals_the_reference_and_changes_nothing_the_second_time():
    clipped = box_ops.clip(jnp.asarray(BOXES), jnp.array([30.0, 40.0]))
    np.testing.assert_array_equal(clipped, reference.clip(BOXES, 30, 40))
    np.testing.assert_array_equal(box_ops.clip(clipped, jnp.array([30.0, 40.0])), clipped)


@pytest.mark.parametrize("weights", [UNIT, RCNN])
def test_encode_equals_the_reference(weights):
    boxes, anchors = random_boxes(2, 50), random_boxes(3, 50)
    actual = box_ops.encode(jnp.asarray(boxes), jnp.asarray(anchors), weights)
    np.testing.assert_allclose(actual, reference.encode(boxes, anchors, weights), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weights", [UNIT, RCNN])
def test_decode_equals_the_reference(weights):
    anchors = random_boxes(4, 50)
    deltas = np.random.default_rng(5).normal(0, 5, (50, 4)).astype(np.float32)
    actual = box_ops.decode(jnp.asarray(deltas), jnp.asarray(anchors), weights)
    np.testing.assert_allclose(actual, reference.decode(deltas, anchors, weights), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("weights", [UNIT, RCNN])
def test_decode_undoes_encode(weights):
    boxes, anchors = jnp.asarray(random_boxes(6, 200)), jnp.asarray(random_boxes(7, 200))
    decoded = box_ops.decode(box_ops.encode(boxes, anchors, weights), anchors, weights)
    np.testing.assert_allclose(decoded, boxes, atol=1e-3)


@pytest.mark.parametrize("weights", [UNIT, RCNN])
def test_encode_undoes_decode(weights):
    anchors = jnp.asarray(random_boxes(8, 200))
    deltas = jnp.asarray(np.random.default_rng(9).normal(0, 1, (200, 4)), jnp.float32)
    encoded = box_ops.encode(box_ops.decode(deltas, anchors, weights), anchors, weights)
    np.testing.assert_allclose(encoded, deltas, atol=2e-3)


def test_growth_is_bounded_to_1000_over_16_and_finite():
    anchors = jnp.array([[0.0, 0.0, 16.0, 32.0]])
    box = box_ops.decode(jnp.array([[0.0, 0.0, 1e9, 1e9]]), anchors, UNIT)
    np.testing.assert_allclose(box, [[8 - 500, 16 - 1000, 8 + 500, 16 + 1000]], rtol=1e-5)


def test_zero_deltas_return_the_anchor():
    anchors = jnp.asarray(random_boxes(10, 20))
    np.testing.assert_allclose(box_ops.decode(jnp.zeros((20, 4)), anchors, RCNN), anchors, atol=1e-4)


def test_empty_boxes_and_anchors_encode_to_finite_values_and_gradients():
    boxes = jnp.asarray(ADVERSARIAL)
    encode = jax.jit(jax.value_and_grad(lambda b, a: jnp.sum(box_ops.encode(b, a, RCNN) ** 2), argnums=(0, 1)))
    for anchors in (boxes, boxes[::-1], jnp.zeros_like(boxes)):
        for value in jax.tree.leaves(encode(boxes, anchors)):
            assert np.isfinite(value).all()


def test_gradients_of_the_coder():
    boxes, anchors = jnp.asarray(random_boxes(11, 5, low=10.0)), jnp.asarray(random_boxes(12, 5, low=10.0))
    deltas = jnp.asarray(np.random.default_rng(13).normal(0, 0.5, (5, 4)), jnp.float32)
    encode = jax.jit(lambda b: box_ops.encode(b, anchors, UNIT))
    decode = jax.jit(lambda d: box_ops.decode(d, anchors, UNIT))
    check_grads(encode, (boxes,), order=1, modes=["rev"], rtol=0.02, eps=0.1)
    check_grads(decode, (deltas,), order=1, modes=["rev"], rtol=0.02, eps=0.02)


def test_jit_equals_no_jit_and_vmap_equals_loop():
    first = jnp.asarray(np.stack([random_boxes(s, 6) for s in range(3)]))
    second = jnp.asarray(np.stack([random_boxes(s, 6) for s in range(3, 6)]))

    def encode(b, a):
        return box_ops.encode(b, a, RCNN)

    for function in (box_ops.iou, box_ops.covered_fraction, encode):
        loop = [function(a, b) for a, b in zip(first, second, strict=True)]
        np.testing.assert_allclose(jax.jit(jax.vmap(function))(first, second), loop, rtol=1e-5, atol=1e-6)
