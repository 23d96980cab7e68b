"""Selections of a fixed size: the best k, and a balanced random sample."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


def top_k(scores: Float[Array, "... n"], k: int) -> Int[Array, "... k"]:
    """Return the indices of the k best scores, best first, ties in order of index.

    `jax.lax.top_k` would do the same, but over a batch split across devices XLA turns it into an all-gather of the
    scores on some backends; a sort stays where the data is.
    """
    return jnp.argsort(scores, axis=-1, stable=True, descending=True)[..., :k].astype(jnp.int32)


class Sample(NamedTuple):
    """Chosen candidates, foreground first; slots that are not valid hold an arbitrary index."""

    indices: Int[Array, "r"]
    foreground: Bool[Array, "r"]
    valid: Bool[Array, "r"]


def sample(
    key: Key[Array, ""] | Int[Array, "2"],
    foreground: Bool[Array, "a"],
    background: Bool[Array, "a"],
    num_samples: int,
    foreground_fraction: float,
) -> Sample:
    """Draw `num_samples` candidates without replacement, at most `foreground_fraction` of them foreground.

    Background fills what foreground leaves; where there is too little of it the last slots are invalid.
    """
    priority = jax.random.uniform(key, foreground.shape)
    # One sort puts the foreground in random order first, then the background in random order, then the rest.
    group = jnp.where(foreground, 2.0, jnp.where(background, 1.0, 0.0))
    num_foreground = foreground.sum()
    num_background = background.sum()
    chosen_foreground = jnp.minimum(num_foreground, int(num_samples * foreground_fraction))
    order = jnp.lexsort((-priority, -group))
    slot = jnp.arange(num_samples)
    is_foreground = slot < chosen_foreground
    position = jnp.where(is_foreground, slot, num_foreground + slot - chosen_foreground)
    valid = is_foreground | (slot - chosen_foreground < num_background)
    return Sample(order[jnp.minimum(position, order.size - 1)].astype(jnp.int32), is_foreground, valid)
