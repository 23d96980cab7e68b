"""Keypoint targets of regions: the cell of a grid over each region that a keypoint lies in."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def keypoint_cells(
    points: Float[Array, "n k 2"],
    labelled: Bool[Array, "n k"],
    gt_index: Int[Array, "r"],
    rois: Float[Array, "r 4"],
    size: int,
) -> tuple[Int[Array, "r k"], Bool[Array, "r k"]]:
    """Return the cell of each keypoint of each region's own object, and whether there is one.

    A point on the border of two cells is of the later one; one on the right or lower border of the region is of the
    last one (Mask R-CNN, section 3.1 on human pose; the rule is Detectron's).

    Args:
      points: (x, y) of the keypoints of each object.
      labelled: whether their place is known.
      gt_index: the object of each region; a region never sees another object's keypoints.
      rois: the regions.
      size: cells along each side of a region.

    Returns:
      row * `size` + column, from 0; and whether the keypoint is labelled and inside the region, its borders included.
      Where it is not, the cell has no meaning.
    """
    points = points[gt_index]
    low, high = rois[:, None, :2], rois[:, None, 2:]
    inside = ((points >= low) & (points <= high)).all(axis=-1)
    cells = jnp.floor((points - low) * (size / jnp.maximum(high - low, 1e-6)))
    column, row = jnp.moveaxis(jnp.clip(cells, 0, size - 1).astype(jnp.int32), -1, 0)
    return row * size + column, inside & labelled[gt_index]
