"""Assign the points of a feature pyramid to ground truth by place and size (FCOS, section 3.1 and 3.2)."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskx_jax.ops import boxes as box_ops
from maskx_jax.ops.points import side_distances


class PointMatch(NamedTuple):
    """The object of each point; a point that is not foreground is background."""

    gt_index: Int[Array, "p"]
    foreground: Bool[Array, "p"]


def match_points(
    points: Float[Array, "p 2"],
    strides: Float[Array, "p"],
    size_ranges: Float[Array, "p 2"],
    gt_boxes: Float[Array, "n 4"],
    gt_valid: Bool[Array, "n"],
    *,
    radius: float,
    closed_ranges: bool,
    allowed: Bool[Array, "p n"] | None = None,
) -> PointMatch:
    """Match each point to the smallest object that it lies in, near the middle, and whose size its level is for.

    Args:
      points: (x, y) in pixels.
      strides: of each point's level, in pixels.
      size_ranges: smallest and largest size of a point's level; the size is the longest of the four distances from the
        point to the sides of the box.
      gt_boxes: ground-truth boxes.
      gt_valid: which slots hold an object to be found.
      radius: along each axis a point is less than this many strides from the middle of its box (centre sampling); 0
        takes all points inside the box.
      closed_ranges: whether a size on the border of two levels belongs to both (the authors' code), or to neither
        (torchvision).
      allowed: pairs that may be matched; all by default. EmbedMask's sampling inside the mask is such a rule.
    """
    distances = side_distances(points[:, None, :], gt_boxes[None, :, :])
    size = distances.max(axis=-1)
    low, high = size_ranges[:, :1], size_ranges[:, 1:]
    in_range = (size >= low) & (size <= high) if closed_ranges else (size > low) & (size < high)
    matches = gt_valid & in_range & (distances.min(axis=-1) > 0)
    if radius > 0:
        centres = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
        away = jnp.abs(points[:, None, :] - centres[None, :, :]).max(axis=-1)
        matches &= away < radius * strides[:, None]
    if allowed is not None:
        matches &= allowed
    area = jnp.where(matches, box_ops.area(gt_boxes), jnp.inf)
    return PointMatch(area.argmin(axis=1).astype(jnp.int32), matches.any(axis=1))
