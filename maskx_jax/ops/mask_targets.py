"""Mask targets of regions, sampled on the device from stored bitmaps."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

# In stored pixels. The points of a region that is the frame itself lie exactly between two stored pixels (112 is an
# even multiple of 28): without this, rounding would choose between them, and differently on every device.
TIE = 1e-3


def sample_mask(
    masks: UInt8[Array, "n s packed"],
    frames: Float[Array, "n 4"],
    gt_index: Int[Array, "r"],
    rois: Float[Array, "r 4"],
    size: int,
) -> Bool[Array, "r size size"]:
    """Return what each region should predict: its own object's bitmap at the centres of a `size` x `size` grid.

    Args:
      masks: packed bits of each object over its frame.
      frames: the box that each stored mask covers.
      gt_index: the object of each region; a region never sees another object's mask.
      rois: the regions. Points outside the object's frame are not object.
      size: side of the predicted mask.
    """
    side = masks.shape[1]
    frame = frames[gt_index]
    cell = (jnp.arange(size) + 0.5) / size

    def stored_position(low: int, high: int) -> tuple[Int[Array, "r size"], Bool[Array, "r size"]]:
        points = rois[:, low, None] + cell * (rois[:, high] - rois[:, low])[:, None]
        extent = jnp.maximum(frame[:, high] - frame[:, low], 1e-6)
        position = jnp.floor((points - frame[:, low, None]) / extent[:, None] * side + TIE)
        return jnp.clip(position, 0, side - 1).astype(jnp.int32), (position >= 0) & (position < side)

    x, x_inside = stored_position(0, 2)
    y, y_inside = stored_position(1, 3)
    byte = masks[gt_index[:, None, None], y[:, :, None], x[:, None, :] // 8]
    bit = (byte >> (7 - x % 8).astype(jnp.uint8)[:, None, :]) & 1
    return (bit == 1) & y_inside[:, :, None] & x_inside[:, None, :]
