"""The means and regressions that losses are made of; cross-entropies come from optax."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def masked_mean(values: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Return the mean of the values under the mask; exactly 0, with zero gradient, where nothing is under it."""
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def smooth_l1(difference: Float[Array, "*shape"], beta: float) -> Float[Array, "*shape"]:
    """Return Fast R-CNN's smooth L1: quadratic below `beta`, then linear with slope 1; with a `beta` of 0, plain L1."""
    size = jnp.abs(difference)
    if beta == 0:
        return size
    return jnp.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta)
