import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from maskx_jax.ops.class_activation import add_activations, class_activations
from tests.reference import class_activation as reference

rng = np.random.default_rng(0)
MAPS = jnp.asarray(rng.normal(0, 1, (3, 7, 7, 5)), jnp.float32)
ROWS = jnp.asarray(rng.normal(0, 1, (3, 5)), jnp.float32)


def test_activations_equal_the_reference():
    found = jax.jit(class_activations)(MAPS, ROWS)
    for i in range(3):
        expected = reference.class_activations(MAPS[i].tolist(), ROWS[i].tolist())
        np.testing.assert_allclose(found[i], expected, atol=1e-3)
    assert found.min() == 0 and 0.999 < found.max() <= 1


def test_activations_do_not_depend_on_other_regions_nor_on_the_scale_of_the_row():
    found = class_activations(MAPS, ROWS)
    np.testing.assert_allclose(class_activations(MAPS[1:2], ROWS[1:2])[0], found[1], atol=1e-6)
    np.testing.assert_allclose(class_activations(MAPS, 10 * ROWS), found, atol=1e-3)
    half = class_activations(MAPS.astype(jnp.bfloat16), ROWS)
    assert half.dtype == jnp.float32 and jnp.abs(half - found).max() < 0.05


def test_a_region_without_a_highest_cell_has_no_activation_and_finite_gradients():
    flat = jnp.ones_like(MAPS)
    assert (class_activations(flat, ROWS) == 0).all()
    gradient = jax.grad(lambda maps: jnp.square(class_activations(maps, ROWS) - 0.5).sum())(flat)
    assert jnp.isfinite(gradient).all()
    check_grads(jax.jit(class_activations), (MAPS, ROWS), order=1, modes=["rev"], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("size", [7, 14, 16, 32])
def test_they_are_added_to_every_channel_as_the_reference_interpolates(size):
    activations = class_activations(MAPS, ROWS)
    features = jnp.asarray(rng.normal(0, 1, (3, size, size, 4)), jnp.float32)
    added = jax.jit(add_activations)(features, activations) - features
    for i in range(3):
        expected = reference.interpolate(activations[i].tolist(), size)
        for channel in range(4):
            np.testing.assert_allclose(added[i, :, :, channel], expected, atol=1e-5)
    assert add_activations(features.astype(jnp.bfloat16), activations).dtype == jnp.bfloat16
