"""The points of a feature pyramid, and boxes as distances from a point to their four sides (FCOS, section 3.1)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

OFFSETS = ("centre", "corner")


def grid_points(height: int, width: int, strides: tuple[int, int], offset: str) -> Float[Array, "p 2"]:
    """Return the (x, y) in pixels of each cell of a feature map, row by row.

    Args:
      height: rows of the map.
      width: columns of the map.
      strides: pixels from one row to the next, and from one column to the next; see `anchors.grid_strides`.
      offset: "centre", the middle of a cell's window (FCOS), or "corner", its top left (torchvision).

    Raises:
      ValueError: the offset is unknown.
    """
    if offset not in OFFSETS:
        raise ValueError(f"got point offset {offset!r}; expected one of {OFFSETS}")
    shift = 0.5 if offset == "centre" else 0.0
    y = (jnp.arange(height, dtype=jnp.float32) + shift) * strides[0]
    x = (jnp.arange(width, dtype=jnp.float32) + shift) * strides[1]
    return jnp.stack(jnp.meshgrid(x, y), axis=-1).reshape(-1, 2)


def side_distances(points: Float[Array, "*#n 2"], boxes: Float[Array, "*#n 4"]) -> Float[Array, "... 4"]:
    """Return the distances (left, top, right, bottom) from points to the sides of boxes; negative outside the box."""
    return jnp.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], axis=-1)


def boxes_from_distances(points: Float[Array, "*#n 2"], distances: Float[Array, "*#n 4"]) -> Float[Array, "... 4"]:
    """Return the boxes whose sides lie at (left, top, right, bottom) from points: the inverse of `side_distances`."""
    return jnp.concatenate([points - distances[..., :2], points + distances[..., 2:]], axis=-1)


def centerness(distances: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Return how central a point lies in its box, from 0 on a side to 1 in the middle (FCOS, equation 3).

    Args:
      distances: (left, top, right, bottom). A point that is not inside its box has 0.
    """
    horizontal, vertical = distances[..., 0::2], distances[..., 1::2]
    ratios = [
        jnp.maximum(pair.min(axis=-1), 0.0) / jnp.where(pair.max(axis=-1) > 0, pair.max(axis=-1), 1.0)
        for pair in (horizontal, vertical)
    ]
    return jnp.sqrt(ratios[0] * ratios[1])
