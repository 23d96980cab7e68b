"""Pixels as a backbone's weights expect them."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from maskx_jax.limits import Check, numbers, one_of

LIMITS: Mapping[str, Check] = {"mean": numbers(3), "std": numbers(3, 1e-6), "channel_order": one_of("rgb", "bgr")}


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Normalise images.

    Attributes:
      mean, std: of the channels in their order, in 0..255.
      channel_order: "rgb" or "bgr" (Caffe's weights).
    """

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    channel_order: str = "rgb"

    def __call__(self, images: UInt8[Array, "b h w 3"], image_sizes: Float[Array, "b 2"]) -> Float[Array, "b h w 3"]:
        """Return the normalised pixels, float32; the padding is 0, as if it were of the mean colour.

        Args:
          images: RGB, padded at the bottom and the right.
          image_sizes: height and width without the padding.
        """
        pixels = images.astype(jnp.float32)
        if self.channel_order == "bgr":
            pixels = pixels[..., ::-1]
        pixels = (pixels - jnp.array(self.mean)) / jnp.array(self.std)
        inside_rows = jnp.arange(images.shape[1]) < image_sizes[:, :1]
        inside_columns = jnp.arange(images.shape[2]) < image_sizes[:, 1:]
        inside = inside_rows[:, :, None] & inside_columns[:, None, :]
        return jnp.where(inside[..., None], pixels, 0.0)
