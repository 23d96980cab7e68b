import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from maskx_jax.ops.giou import giou_loss
from tests.reference.giou import giou


def pairs(seed, count=50):
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 50, (2, count, 2))
    return jnp.asarray(np.concatenate([start, start + rng.uniform(1, 60, (2, count, 2))], axis=-1), jnp.float32)


def test_equals_the_reference():
    boxes, targets = pairs(0)
    expected = [1 - giou(a, b) for a, b in zip(boxes.tolist(), targets.tolist(), strict=True)]
    np.testing.assert_allclose(jax.jit(giou_loss)(boxes, targets), expected, rtol=1e-5, atol=1e-6)


def test_smoothing_is_added_to_both_areas():
    box, target = jnp.array([0.0, 0.0, 2.0, 2.0]), jnp.array([1.0, 0.0, 3.0, 2.0])
    # In common 2, together 6, and 6 in the box around both.
    np.testing.assert_allclose(giou_loss(box, target, smoothing=1.0), 1 - 3 / 7, rtol=1e-6)


def test_limits():
    box = jnp.array([0.0, 0.0, 10.0, 10.0])
    far = jnp.array([1e6, 1e6, 1e6 + 10, 1e6 + 10])
    assert abs(giou_loss(box, box)) < 1e-6
    np.testing.assert_allclose(giou_loss(box, far), 2, atol=1e-3)
    empty = jnp.array([3.0, 3.0, 3.0, 3.0])
    gradient = jax.grad(giou_loss)(empty, empty)
    assert jnp.isfinite(giou_loss(empty, empty)) and jnp.isfinite(gradient).all()


def test_gradients():
    boxes, targets = pairs(1, 5)
    check_grads(jax.jit(lambda b: giou_loss(b, targets).sum()), (boxes,), order=1, modes=["rev"], rtol=0.02, eps=0.01)
