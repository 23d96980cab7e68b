"""Masks from embeddings: how near a pixel's embedding lies to an object's (EmbedMask, section 3)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# The probability exp(-d) is kept within 1e-9 of 0 and 1, where its logit is finite.
_SMALLEST, _LARGEST = 1e-9, 20.7


def squared_distances(
    pixels: Float[Array, "p d"], centres: Float[Array, "n d"], precisions: Float[Array, "n d"]
) -> Float[Array, "n p"]:
    """Return sum_d precision_nd (pixel_pd - centre_nd)^2 of each object and pixel.

    Expanded into products of matrices, no array of `n p d` is made. Float32 whatever the arguments are: near the centre
    large terms cancel.

    Args:
      pixels: embedding of each pixel.
      centres: embedding of each object.
      precisions: inverse squared margins of each object, positive.
    """
    pixels, centres, precisions = (x.astype(jnp.float32) for x in (pixels, centres, precisions))

    def product(left: Float[Array, "n d"], right: Float[Array, "p d"]) -> Float[Array, "n p"]:
        return jnp.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST)

    constant = (precisions * centres**2).sum(axis=-1, keepdims=True)
    return jnp.maximum(product(precisions, pixels**2) - 2 * product(precisions * centres, pixels) + constant, 0.0)


def logits_from_distances(distances: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return the logit of the probability exp(-distance), -log(exp(distance) - 1), clamped to where it is finite."""
    distances = jnp.clip(distances, _SMALLEST, _LARGEST)
    return -jnp.log(jnp.expm1(distances))
