"""Mask targets of regions, sampled on the device from stored bitmaps."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

# Of a stored bit. Where a region is the frame itself, its points lie exactly between stored pixels (112 is an even
# multiple of 28), two of them object and two not along every border: rounding must not decide.
TOLERANCE = 1e-3


def sample_mask(
    masks: UInt8[Array, "n s packed"],
    frames: Float[Array, "n 4"],
    gt_index: Int[Array, "r"],
    rois: Float[Array, "r 4"],
    size: int,
) -> Bool[Array, "r size size"]:
    """Return what each region should predict: its own object's bitmap at the centres of a `size` x `size` grid.

    A point is object where the stored pixels around it, interpolated bilinearly, are so at least by half.

    Args:
      masks: packed bits of each object over its frame.
      frames: the box that each stored mask covers.
      gt_index: the object of each region; a region never sees another object's mask.
      rois: the regions. Points outside the object's frame are not object.
      size: side of the predicted mask.
    """
    side = masks.shape[1]
    centres = (jnp.arange(size) + 0.5) / size

    def along(axis: int) -> tuple[list[tuple[Int[Array, "r size"], Float[Array, "r size"]]], Bool[Array, "r size"]]:
        position = _stored_positions(frames[gt_index], rois, centres, side, axis)
        low = jnp.floor(position - 0.5)
        share = position - 0.5 - low
        pixels = (jnp.clip(pixel, 0, side - 1).astype(jnp.int32) for pixel in (low, low + 1))
        inside = (position >= -TOLERANCE) & (position < side + TOLERANCE)
        return list(zip(pixels, (1 - share, share), strict=True)), inside

    columns, x_inside = along(0)
    rows, y_inside = along(1)
    value = jnp.zeros((len(rois), size, size))
    for y, y_share in rows:
        for x, x_share in columns:
            byte = masks[gt_index[:, None, None], y[:, :, None], x[:, None, :] // 8]
            bit = (byte >> (7 - x % 8).astype(jnp.uint8)[:, None, :]) & 1
            value += bit * y_share[:, :, None] * x_share[:, None, :]
    return (value >= 0.5 - TOLERANCE) & y_inside[:, :, None] & x_inside[:, None, :]


def average_mask(
    masks: UInt8[Array, "n s packed"],
    frames: Float[Array, "n 4"],
    gt_index: Int[Array, "r"],
    rois: Float[Array, "r 4"],
    size: int | tuple[int, int],
) -> Float[Array, "r rows columns"]:
    """Return the part of each cell of a grid over each region that is object: soft targets, from 0 to 1.

    The arguments are those of `sample_mask`; what lies outside the object's frame is not object. The size is that of a
    square, or rows and columns.
    """
    side = masks.shape[1]
    rows, columns = (size, size) if isinstance(size, int) else size

    def along(axis: int, cells: int) -> Float[Array, "r cells s"]:
        edges = jnp.arange(cells + 1) / cells
        positions = _stored_positions(frames[gt_index], rois, edges, side, axis)
        low, high = positions[:, :-1, None], positions[:, 1:, None]
        pixel = jnp.arange(side, dtype=jnp.float32)
        common = jnp.maximum(jnp.minimum(high, pixel + 1) - jnp.maximum(low, pixel), 0)
        return common / jnp.maximum(high - low, 1e-6)

    bits = jnp.unpackbits(masks[gt_index], axis=-1).astype(jnp.float32)
    return jnp.einsum("ryi,rij,rxj->ryx", along(1, rows), bits, along(0, columns))


def _stored_positions(
    frame: Float[Array, "r 4"], rois: Float[Array, "r 4"], fractions: Float[Array, "f"], side: int, axis: int
) -> Float[Array, "r f"]:
    """Return where fractions of each region lie along an axis of its stored mask, in stored pixels."""
    points = rois[:, axis, None] + fractions * (rois[:, axis + 2] - rois[:, axis])[:, None]
    extent = jnp.maximum(frame[:, axis + 2] - frame[:, axis], 1e-6)
    return (points - frame[:, axis, None]) / extent[:, None] * side
