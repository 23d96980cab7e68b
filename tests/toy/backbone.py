"""A backbone: a convolution over squares of four pixels, and means of its outputs."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from maskx_jax.models.layers import conv


class Patches(nn.Module):
    width: int = 8
    dtype: Any = jnp.float32
    cpu: bool = False

    levels = (2, 3, 4, 5)
    multiple = 32

    @nn.compact
    def __call__(self, images):
        maps = nn.relu(nn.Conv(self.width, (4, 4), (4, 4), "VALID", dtype=self.dtype, name="patches")(images))
        features = {2: nn.relu(conv(self.width, 3, dtype=self.dtype, cpu=self.cpu, name="conv")(maps))}
        for level in self.levels[1:]:
            features[level] = nn.avg_pool(features[level - 1], (2, 2), (2, 2))
        return features
