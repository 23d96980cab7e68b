"""Feature Pyramid Network (Lin et al. 2016)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from maskx_jax.limits import Check, number
from maskx_jax.models.layers import conv, xavier_fill

LIMITS: Mapping[str, Check] = {"channels": number(1)}


class FPN(nn.Module):
    """Top-down pathway with lateral connections; no norm, no activation.

    Attributes:
      channels: of every output level.
    """

    channels: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: dict[int, Float[Array, "b _ _ _"]]) -> dict[int, Float[Array, "b _ _ channels"]]:
        """Return P2..P6 from res2..res5; P6 is every second pixel of P5, for the RPN alone."""

        def layer(kernel_size: int, name: str) -> nn.Conv:
            return conv(self.channels, kernel_size, kernel_init=xavier_fill, dtype=self.dtype, name=name)

        pyramid = {}
        above = None
        for level in sorted(features, reverse=True):
            inner = layer(1, f"lateral{level}")(features[level])
            if above is not None:
                inner += above.repeat(2, axis=1).repeat(2, axis=2)
            pyramid[level] = layer(3, f"output{level}")(inner)
            above = inner
        top = max(pyramid)
        pyramid[top + 1] = pyramid[top][:, ::2, ::2]
        return pyramid
