"""The Lovász hinge: a convex surrogate of one minus the IoU of a mask (Berman et al. 2018, algorithm 1)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def lovasz_hinge(logits: Float[Array, "p"], labels: Bool[Array, "p"], valid: Bool[Array, "p"]) -> Float[Array, ""]:
    """Return the Lovász hinge of one object over its pixels.

    The extension is exact: one sort of the margins 1 - z y, y in {-1, 1}. Its weights, the steps of the Jaccard loss
    along the sorted pixels, depend on the order only and have no gradient. Equal margins may stand in any order: they
    have the same value, and the sum of their weights is the same.

    Args:
      logits: of each pixel.
      labels: whether the pixel is object.
      valid: pixels that count; the others change neither the loss nor its gradient.
    """
    errors = jnp.where(valid, 1 - logits * jnp.where(labels, 1.0, -1.0), -jnp.inf)
    order = jnp.argsort(-jax.lax.stop_gradient(errors), stable=True)
    # Pixels that do not count stand last; as background they would enlarge the union there, which nothing sees.
    errors, is_object = errors[order], (labels & valid)[order]
    found = jnp.cumsum(is_object)
    total = found[-1]
    intersection = total - found
    union = total + jnp.cumsum(~is_object)
    jaccard = 1 - intersection / jnp.maximum(union, 1)
    weights = jnp.diff(jaccard, prepend=0.0)
    return (jnp.where(errors > 0, errors, 0.0) * weights).sum()
