"""Feature Pyramid Network (Lin et al. 2016)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from maskx_jax.limits import Check, number
from maskx_jax.models.layers import conv, xavier_fill
from maskx_jax.models.pixels import Pixels

TOPS = ("pool", "convs")
LIMITS: Mapping[str, Check] = {"channels": number(1)}


class FPN(nn.Module):
    """Top-down pathway with lateral connections; no norm, no activation.

    Attributes:
      channels: of every output level.
      levels: of the backbone that it takes.
      top: what is above them. "pool": every second pixel of the highest (Mask R-CNN's P6). "convs": two more levels by
        strided convolutions (RetinaNet's and FCOS' P6 and P7).
      dtype: of the computation.
      cpu: whether convolutions are computed as one CPU does best, see `layers.conv`.
    """

    channels: int = 256
    levels: tuple[int, ...] = (2, 3, 4, 5)
    top: str = "pool"
    dtype: Any = jnp.float32
    cpu: bool = False

    @nn.compact
    def __call__(self, features: dict[int, Float[Array, "b _ _ _"]]) -> dict[int, Float[Array, "b _ _ channels"]]:
        """Return the pyramid's levels from the backbone's maps.

        Raises:
          ValueError: `top` is unknown.
        """

        def layer(kernel_size: int, name: str, stride: int = 1) -> nn.Conv:
            options = {"kernel_init": xavier_fill, "dtype": self.dtype, "cpu": self.cpu, "name": name}
            return conv(self.channels, kernel_size, stride, **options)

        pyramid = {}
        above = None
        for level in sorted(self.levels, reverse=True):
            inner = layer(1, f"lateral{level}")(features[level])
            if above is not None:
                inner += above.repeat(2, axis=1).repeat(2, axis=2)
            pyramid[level] = layer(3, f"output{level}")(inner)
            above = inner
        highest = max(pyramid)
        if self.top == "pool":
            pyramid[highest + 1] = pyramid[highest][:, ::2, ::2]
        elif self.top == "convs":
            pyramid[highest + 1] = layer(3, f"output{highest + 1}", stride=2)(pyramid[highest])
            pyramid[highest + 2] = layer(3, f"output{highest + 2}", stride=2)(nn.relu(pyramid[highest + 1]))
        else:
            raise ValueError(f"got top {self.top!r} of the pyramid; expected one of {TOPS}")
        return pyramid


def compute_maps(
    pixels: Pixels, backbone: Any, images: UInt8[Array, "b h w 3"], image_sizes: Float[Array, "b 2"]
) -> dict[int, Float[Array, "b _ _ _"]]:
    """Return what the backbone makes of normalised images, by level.

    Args:
      pixels: as the backbone expects them.
      backbone: images to maps.
      images: RGB, padded at the bottom and the right.
      image_sizes: height and width without the padding.

    Raises:
      ValueError: a side of the canvas is no multiple of the backbone's.
    """
    if images.shape[1] % backbone.multiple or images.shape[2] % backbone.multiple:
        raise ValueError(
            f"got a canvas of {images.shape[1]} x {images.shape[2]}; expected multiples of {backbone.multiple}"
        )
    maps: dict[int, Array] = backbone(pixels(images, image_sizes).astype(backbone.dtype))
    return maps
