"""Where in a region its class is seen: class-activation maps (Zhou et al., CVPR 2016) as OPMask has them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# To the range that is divided by: a map without a highest cell gives 0, not NaN.
_EPSILON = 1e-4


def class_activations(maps: Float[Array, "r s s c"], rows: Float[Array, "r c"]) -> Float[Array, "r s s"]:
    """Return how much each cell of a region speaks for its class, from 0 at the lowest to 1 at the highest, float32.

    Of a classifier that is linear in the mean of a map, the same row applied to a cell is what the cell contributes;
    its lowest and highest values in the region become 0 and 1 (OPMask, Biertimpel et al., ICCV 2021).

    Args:
      maps: of regions, what the mean is taken of.
      rows: of the classifier's weights, of each region's class.
    """
    values = jnp.einsum("rhwc,rc->rhw", maps, rows.astype(maps.dtype), preferred_element_type=jnp.float32)
    lowest, highest = values.min(axis=(1, 2), keepdims=True), values.max(axis=(1, 2), keepdims=True)
    return (values - lowest) / (highest - lowest + _EPSILON)


def add_activations(features: Float[Array, "r t t c"], activations: Float[Array, "r s s"]) -> Float[Array, "r t t c"]:
    """Add the activations of regions, interpolated bilinearly, to every channel of their features.

    Args:
      features: of regions.
      activations: of the same regions. Both grids span a region; beyond the middles of the outer cells activations go
        on as there.
    """
    resized = jax.image.resize(activations, features.shape[:3], "linear")
    return features + resized[..., None].astype(features.dtype)
