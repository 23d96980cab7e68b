import jax
import jax.numpy as jnp
import numpy as np

from maskx_jax.ops.cpu.used_slots import map_used_slots

# Two images of 32 slots, of which the first 3 and the first 17 are used.
USED = jnp.arange(32) < jnp.array([[3], [17]])


def inputs():
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 32, 5), np.float32), rng.integers(0, 4, (2, 32)), np.ones((5, 4), np.float32)


def losses(weights, x, index):
    """Return the sum over the used slots, and what was returned for each."""
    x, index = jnp.asarray(x), jnp.asarray(index)

    def function(weights, x, index):
        return jnp.exp((x @ weights)[jnp.arange(len(x)), index])

    result = map_used_slots(function, jnp.asarray(weights), x, index, USED)
    return jnp.where(USED, result, 0.0).sum(), result


def test_used_slots_and_gradients_are_those_of_the_function():
    x, index, weights = inputs()
    (_, result), gradients = jax.jit(jax.value_and_grad(losses, argnums=(0, 1), has_aux=True))(weights, x, index)
    chosen = np.take_along_axis(np.exp(x @ weights), index[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(result[USED], chosen[USED], rtol=1e-6)
    of_x = chosen[..., None] * weights.T[index] * USED[..., None]
    np.testing.assert_allclose(gradients[1], of_x, rtol=1e-5)
    of_weights = np.stack([(x * (chosen * USED * (index == k))[..., None]).sum((0, 1)) for k in range(4)], axis=-1)
    np.testing.assert_allclose(gradients[0], of_weights, rtol=1e-5)


def test_what_no_slot_of_a_chunk_uses_is_not_computed():
    x, index, weights = inputs()
    _, result = jax.jit(losses)(weights, x, index)
    # Chunks of 16 slots: one of the first image, both of the second.
    computed = [[True, False], [True, True]]
    assert (np.asarray(result).reshape(2, 2, 16) != 0).all(-1).tolist() == computed
