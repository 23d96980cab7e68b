"""Colours of images: CIE Lab, and the mean colours of the cells of regions."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

# sRGB's primaries in XYZ (IEC 61966-2-1), and the white of D65.
_XYZ_OF_RGB = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_WHITE = (0.95047, 1.0, 1.08883)


def rgb_to_lab(colours: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """Return colours in CIE Lab under D65: L from 0 to 100, a and b about -110 to 110.

    In this space the distance of two colours says how different they look (CIE 15).

    Args:
      colours: sRGB, 0 to 255.
    """
    encoded = colours / 255
    linear = jnp.where(encoded <= 0.04045, encoded / 12.92, ((jnp.maximum(encoded, 0.04045) + 0.055) / 1.055) ** 2.4)
    xyz = jnp.stack([sum(share * linear[..., i] for i, share in enumerate(row)) for row in _XYZ_OF_RGB], axis=-1)
    relative = xyz / jnp.array(_WHITE)
    # CIE's exact constants: below (6 / 29)^3 the cube root becomes its tangent.
    x, y, z = jnp.moveaxis(
        jnp.where(relative > (6 / 29) ** 3, jnp.cbrt(relative), relative * (29 / 6) ** 2 / 3 + 4 / 29), -1, 0
    )
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def sample_colours(
    image: UInt8[Array, "h w 3"], image_size: Float[Array, "2"], boxes: Float[Array, "r 4"], size: int
) -> Float[Array, "r size size 3"]:
    """Return the mean colour of each cell of a `size` x `size` grid over each region, 0 to 255.

    It is the mean of 2 x 2 points of the cell, interpolated bilinearly. What lies outside the image has the colour of
    the image's border, whatever stands in the padding.

    Args:
      image: of the canvas.
      image_size: height and width without the padding.
      boxes: the regions, in pixels.
      size: cells along each side.
    """
    fractions = (jnp.arange(2 * size) + 0.5) / (2 * size)

    def along(axis: int, length: Float[Array, ""]) -> list[tuple[Array, Array]]:
        start, end = boxes[:, axis, None], boxes[:, axis + 2, None]
        # The value of a pixel belongs to its middle.
        position = jnp.clip(start + fractions * (end - start) - 0.5, 0, length - 1)
        low = jnp.floor(position)
        pixels = ((low + step).astype(jnp.int32) for step in (0, 1))
        shares = low + 1 - position, position - low
        # Beyond the last pixel the share is 0: the index is only kept inside the array.
        last = image.shape[1 - axis] - 1
        return [(jnp.minimum(i, last), share) for i, share in zip(pixels, shares, strict=True)]

    columns, rows = along(0, image_size[1]), along(1, image_size[0])
    points = jnp.zeros((len(boxes), 2 * size, 2 * size, 3))
    for y, y_share in rows:
        for x, x_share in columns:
            share = y_share[:, :, None, None] * x_share[:, None, :, None]
            points += share * image[y[:, :, None], x[:, None, :]].astype(jnp.float32)
    return points.reshape(-1, size, 2, size, 2, 3).mean(axis=(2, 4))
