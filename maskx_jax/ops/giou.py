"""Overlap of boxes pair by pair, and the generalised IoU's loss (Rezatofighi et al. 2019, algorithm 1)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from maskx_jax.ops import boxes as box_ops


def paired_iou(boxes: Float[Array, "*n 4"], others: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Return the IoU of each box with the other at its place; 0 where both are empty."""
    common = _common(boxes, others)
    union = box_ops.area(boxes) + box_ops.area(others) - common
    return common / jnp.where(union > 0, union, 1.0)


def giou_loss(
    boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"], *, smoothing: float = 0.0, epsilon: float = 1e-7
) -> Float[Array, "*n"]:
    """Return 1 - GIoU of each box and its target, from 0 to 2.

    Args:
      boxes: with x2 >= x1 and y2 >= y1.
      targets: as `boxes`.
      smoothing: added to the intersection and to the union of the first term (FCOS' code takes 1, in its units).
      epsilon: added to what is divided by.
    """
    common = _common(boxes, targets)
    union = box_ops.area(boxes) + box_ops.area(targets) - common
    hull_start, hull_end = jnp.minimum(boxes[..., :2], targets[..., :2]), jnp.maximum(boxes[..., 2:], targets[..., 2:])
    hull = jnp.prod(hull_end - hull_start, axis=-1)
    iou = (common + smoothing) / (union + smoothing + (epsilon if smoothing == 0 else 0.0))
    return 1 - iou + (hull - union) / (hull + epsilon)


def _common(boxes: Float[Array, "*n 4"], others: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    start, end = jnp.maximum(boxes[..., :2], others[..., :2]), jnp.minimum(boxes[..., 2:], others[..., 2:])
    return jnp.prod(jnp.maximum(end - start, 0.0), axis=-1)
