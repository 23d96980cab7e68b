"""Fresh variables of a model."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from maskx_jax.structures import PyTree


def initialize(model: nn.Module, key: jax.Array) -> PyTree:
    """Return fresh variables; their shapes do not depend on the size of the images."""
    size = 64
    images, image_sizes = jnp.zeros((1, size, size, 3), jnp.uint8), jnp.full((1, 2), size, jnp.float32)
    return model.init(key, images, image_sizes, method="detect")
