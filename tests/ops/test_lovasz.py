import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from maskx_jax.ops.lovasz import lovasz_hinge
from tests.reference import lovasz as reference

COUNT, SIZE = 1000, 24
batched = jax.jit(jax.vmap(lovasz_hinge))


def cases():
    """Return random objects with ties: some logits are whole numbers, some objects are empty or fill all pixels."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (COUNT, SIZE))
    logits[::2] = np.round(logits[::2])
    labels = rng.random((COUNT, SIZE)) < rng.choice([0.0, 0.1, 0.5, 1.0], (COUNT, 1))
    sizes = rng.integers(1, SIZE + 1, COUNT)
    return logits.astype(np.float32), labels, np.arange(SIZE) < sizes[:, None]


def test_equals_the_reference_on_a_thousand_cases_with_ties():
    logits, labels, valid = cases()
    expected = [
        reference.lovasz_hinge(z[v].tolist(), y[v].tolist()) for z, y, v in zip(logits, labels, valid, strict=True)
    ]
    np.testing.assert_allclose(batched(logits, labels, valid), expected, rtol=1e-5, atol=1e-5)


def test_of_hard_masks_it_is_the_jaccard_loss():
    rng = np.random.default_rng(1)
    labels, predicted = rng.random((2, 200, SIZE)) < 0.5
    # An error of 1 at each wrong pixel, of less than 0 at each right one.
    logits = np.where(predicted == labels, 5.0, 0.0) * np.where(labels, 1, -1)
    expected = [reference.jaccard_loss(set(np.flatnonzero(p != y)), y) for p, y in zip(predicted, labels, strict=True)]
    found = batched(logits.astype(np.float32), labels, np.ones_like(labels))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pixels_that_do_not_count_change_nothing(bad):
    logits, labels, _ = (jnp.asarray(x[1]) for x in cases())
    more = jnp.concatenate([logits, jnp.full(7, bad)])
    valid = jnp.arange(len(more)) < SIZE
    value_and_grad = jax.value_and_grad(lovasz_hinge)
    value, gradient = value_and_grad(more, jnp.concatenate([labels, jnp.ones(7, bool)]), valid)
    expected, expected_gradient = value_and_grad(logits, labels, jnp.ones(SIZE, bool))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[:SIZE], expected_gradient, rtol=1e-6)
    assert not gradient[SIZE:].any()


def test_nothing_that_counts_is_zero_with_zero_gradient():
    value, gradient = jax.value_and_grad(lovasz_hinge)(jnp.ones(5), jnp.ones(5, bool), jnp.zeros(5, bool))
    assert value == 0 and not gradient.any()


def test_gradient():
    logits, labels, _ = (jnp.asarray(x[1]) for x in cases())
    check_grads(
        jax.jit(lambda z: lovasz_hinge(z, labels, jnp.ones(SIZE, bool))),
        (logits,),
        order=1,
        modes=["rev"],
        rtol=0.02,
        eps=1e-3,
    )
