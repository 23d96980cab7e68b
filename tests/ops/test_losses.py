import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from maskx_jax.ops import losses
from maskx_jax.ops.losses import smooth_l1
from tests.reference import losses as reference


def masked_mean(values, mask):
    return losses.masked_mean(values, mask).value()


masked_mean_with_gradient = jax.jit(jax.value_and_grad(masked_mean))


@pytest.mark.parametrize("seed", range(3))
def test_masked_mean_equals_the_reference(seed):
    rng = np.random.default_rng(seed)
    values, mask = rng.normal(size=50).astype(np.float32), rng.random(50) < 0.4
    expected = reference.masked_mean(values.tolist(), mask)
    np.testing.assert_allclose(masked_mean(jnp.asarray(values), jnp.asarray(mask)), expected, rtol=1e-5)
    np.testing.assert_allclose(masked_mean_with_gradient(values, mask)[0], expected, rtol=1e-5)


def test_masked_mean_of_many_axes_counts_elements():
    values = jnp.arange(24.0).reshape(2, 3, 4)
    assert masked_mean(values, values % 2 == 0).item() == 11


def test_sums_and_numbers_of_parts_are_those_of_the_whole():
    values, mask = jnp.arange(12.0), jnp.arange(12) % 5 > 0
    parts = [losses.masked_mean(values[part], mask[part]) for part in (slice(0, 3), slice(3, 12))]
    whole = jax.tree.map(jnp.add, *parts)
    assert whole == losses.masked_mean(values, mask) and whole.value() == masked_mean(values, mask)


def test_masked_mean_of_nothing_is_zero_with_zero_gradient():
    value, gradient = masked_mean_with_gradient(jnp.ones((3, 2)), jnp.zeros((3, 2), bool))
    assert value == 0
    np.testing.assert_array_equal(gradient, jnp.zeros((3, 2)))


# Under jit XLA may turn a product with a mask into a selection, which would hide a leak: look without jit as well.
@pytest.mark.parametrize("function", [jax.value_and_grad(masked_mean), masked_mean_with_gradient], ids=["plain", "jit"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nothing_leaks_from_outside_the_mask(bad, function):
    values = jnp.array([1.0, bad, 3.0, bad])
    value, gradient = function(values, jnp.array([True, False, True, False]))
    assert value == 2
    assert gradient.tolist() == [0.5, 0, 0.5, 0]
    value, gradient = function(values, jnp.zeros(4, bool))
    assert value == 0 and gradient.tolist() == [0] * 4


def test_a_weighted_mean_is_divided_by_the_weights_that_count():
    values, mask, weights = jnp.array([1.0, 2.0, 7.0, 5.0]), jnp.array([True, True, True, False]), jnp.arange(4) / 2
    mean = losses.masked_mean(values, mask, weights)
    assert (mean.total, mean.number) == (0 + 1 + 7, 1.5)
    # Equal weights change nothing, and a value of weight 0 is as one that does not count.
    assert losses.masked_mean(values, mask, jnp.full(4, 0.3)).value() == pytest.approx(10 / 3)
    assert mean.value() == losses.masked_mean(values, mask & (weights > 0), weights).value()
    nothing = losses.masked_mean(values, jnp.zeros(4, bool), weights)
    assert nothing.value() == 0 and losses.masked_mean(values, mask, jnp.zeros(4)).value() == 0
    value, gradient = jax.value_and_grad(lambda values: losses.masked_mean(values, mask, weights).value())(
        values.at[3].set(jnp.nan)
    )
    assert value == mean.value() and gradient.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 0])


def test_nan_under_the_mask_is_not_hidden():
    assert jnp.isnan(masked_mean(jnp.array([1.0, jnp.nan]), jnp.array([True, True])))


def test_more_slots_outside_the_mask_change_nothing():
    values, mask = jnp.array([1.0, 2.0, 7.0]), jnp.array([True, False, True])
    padded = masked_mean(jnp.pad(values, (0, 5), constant_values=99.0), jnp.pad(mask, (0, 5)))
    assert padded == masked_mean(values, mask) == 4


@pytest.mark.parametrize("beta", [1.0, 1 / 9, 3.0])
def test_smooth_l1_equals_the_reference(beta):
    x = np.concatenate([np.linspace(-5, 5, 101), [beta, -beta, beta - 1e-4, beta + 1e-4]]).astype(np.float32)
    np.testing.assert_allclose(smooth_l1(jnp.asarray(x), beta), [reference.smooth_l1(v, beta) for v in x], rtol=1e-4)


@pytest.mark.parametrize("beta", [1.0, 1 / 9])
def test_smooth_l1_meets_itself_at_beta_and_has_slope_one_beyond(beta):
    x = jnp.array([0.0, beta * (1 - 1e-5), beta, beta * 2, -beta * 2, 1e6])
    slope = jax.jit(jax.vmap(jax.grad(lambda v: smooth_l1(v, beta))))(x)
    np.testing.assert_allclose(slope, [0, 1, 1, 1, -1, 1], atol=1e-4)
    np.testing.assert_allclose(smooth_l1(x[1:3], beta), beta / 2, rtol=1e-4)


def test_gradients():
    x = jnp.array([-3.0, -0.5, 0.0, 0.3, 2.0])
    check_grads(jax.jit(lambda v: smooth_l1(v, 1.0)), (x,), order=1, modes=["rev"], rtol=0.02, atol=0.01, eps=0.01)
    mask = jnp.array([True, False, True, True, False])
    check_grads(jax.jit(lambda v: masked_mean(v, mask)), (x,), order=1, modes=["rev"], rtol=0.02)


def test_vmap_equals_loop():
    rng = np.random.default_rng(0)
    values, mask = jnp.asarray(rng.normal(size=(4, 9)), jnp.float32), jnp.asarray(rng.random((4, 9)) < 0.5)
    loop = [masked_mean(v, m) for v, m in zip(values, mask, strict=True)]
    np.testing.assert_allclose(jax.vmap(masked_mean)(values, mask), loop, rtol=1e-6)
    np.testing.assert_array_equal(jax.vmap(lambda v: smooth_l1(v, 1.0))(values), smooth_l1(values, 1.0))
