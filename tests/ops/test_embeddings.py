import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.ops.embeddings import logits_from_distances, squared_distances


def test_distances_equal_the_sum_over_dimensions():
    rng = np.random.default_rng(0)
    pixels, centres = rng.normal(0, 3, (300, 16)), rng.normal(0, 3, (20, 16))
    # An object at a pixel's own place: large terms cancel.
    centres[0] = pixels[5]
    precisions = np.exp(rng.normal(-1.7, 1, (20, 16)))
    expected = (precisions[:, None] * (pixels[None] - centres[:, None]) ** 2).sum(axis=-1)
    found = jax.jit(squared_distances)(*(jnp.asarray(x, jnp.float32) for x in (pixels, centres, precisions)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert found.min() >= 0


def test_no_array_of_objects_by_pixels_by_dimensions_is_made():
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1000, 16), (50, 16), (50, 16))]
    equations = jax.make_jaxpr(squared_distances)(*shapes).eqns
    assert max(v.aval.size for equation in equations for v in equation.outvars) <= 50 * 1000


def test_logits_are_those_of_the_probability():
    distances = np.array([1e-4, 0.1, np.log(2), 1.0, 5.0, 15.0], np.float32)
    probability = np.exp(-distances.astype(np.float64))
    np.testing.assert_allclose(
        logits_from_distances(jnp.asarray(distances)), np.log(probability / (1 - probability)), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("distance", [0.0, 1e-12, 1e4, np.inf])
def test_logits_and_their_gradients_are_finite(distance):
    value, gradient = jax.value_and_grad(logits_from_distances)(jnp.float32(distance))
    assert jnp.isfinite(value) and jnp.isfinite(gradient)
