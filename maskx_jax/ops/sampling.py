"""Selections of a fixed size: the best k, and a balanced random sample."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


def top_k(scores: Float[Array, "... n"], k: int) -> Int[Array, "... k"]:
    """Return the indices of the k best scores (all, if there are fewer), best first, ties in order of index.

    Over a batch that is split across devices XLA gathers the scores of all of them for it: see `per_image.per_image`.
    """
    indices: Int[Array, "... k"] = jax.lax.top_k(scores, min(k, scores.shape[-1]))[1]
    return indices


class Sample(NamedTuple):
    """Chosen candidates, foreground first; slots that are not valid hold an arbitrary index."""

    indices: Int[Array, "r"]
    foreground: Bool[Array, "r"]
    valid: Bool[Array, "r"]


def draw(
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
    # Two selections in random order, not one sort of all candidates, which are hundreds of thousands of anchors.
    num_foreground = int(num_samples * foreground_fraction)
    first = top_k(jnp.where(foreground, priority, -1.0), num_foreground)
    others = top_k(jnp.where(background, priority, -1.0), num_samples)
    chosen_foreground = jnp.minimum(foreground.sum(), num_foreground)
    slot = jnp.arange(num_samples)
    is_foreground = slot < chosen_foreground
    valid = is_foreground | (slot - chosen_foreground < background.sum())
    position = jnp.where(is_foreground, slot, len(first) + slot - chosen_foreground)
    indices = jnp.concatenate([first, others])
    return Sample(indices[jnp.minimum(position, len(indices) - 1)], is_foreground, valid)
