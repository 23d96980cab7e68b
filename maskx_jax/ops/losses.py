"""The means and regressions that losses are made of; cross-entropies come from optax."""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Mean(NamedTuple):
    """A mean that is not yet divided: the sums and the numbers of a batch's parts add up to those of the batch."""

    total: Float[Array, ""]
    number: Int[Array, ""] | Float[Array, ""]

    def value(self) -> Float[Array, ""]:
        """Divide; exactly 0, with zero gradient, where nothing was counted."""
        return self.total / jnp.where(self.number > 0, self.number, 1)


def total_loss(means: Mapping[str, Mean]) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Return the sum of some means, and each of them."""
    values = {name: mean.value() for name, mean in means.items()}
    return sum(values.values(), jnp.float32(0)), values


def masked_mean(
    values: Float[Array, "*shape"], mask: Bool[Array, "*shape"], weights: Float[Array, "*shape"] | None = None
) -> Mean:
    """Return the mean of the values under the mask.

    Args:
      values: what is averaged.
      mask: which of them count.
      weights: how much each counts; by default all the same. It is divided by their sum, so that a value of
        weight 0 is as one that does not count.
    """
    if weights is None:
        return Mean(jnp.where(mask, values, 0.0).sum(), mask.sum())
    weights = jnp.where(mask, weights, 0.0)
    return Mean((jnp.where(mask, values, 0.0) * weights).sum(), weights.sum())


def smooth_l1(difference: Float[Array, "*shape"], beta: float) -> Float[Array, "*shape"]:
    """Return Fast R-CNN's smooth L1: quadratic below `beta`, then linear with slope 1; with a `beta` of 0, plain L1."""
    size = jnp.abs(difference)
    if beta == 0:
        return size
    return jnp.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta)
