"""Arithmetic of boxes: (x1, y1, x2, y2) in continuous pixels, width x2 - x1 (no legacy "+ 1")."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

# A predicted box grows to at most 1000 / 16 times its anchor's side (Detectron's bound): keeps exp() finite.
MAX_LOG_SCALE = math.log(1000.0 / 16)


def area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Return the areas; a box that is turned inside out has area 0."""
    return jnp.prod(jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0), axis=-1)


def intersection(boxes: Float[Array, "n 4"], others: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Return the area that each pair has in common."""

    def common(low: int, high: int) -> Float[Array, "n m"]:
        start = jnp.maximum(boxes[:, None, low], others[None, :, low])
        end = jnp.minimum(boxes[:, None, high], others[None, :, high])
        return jnp.maximum(end - start, 0.0)

    # Axis by axis: a product over an array's last axis would be a reduction, which XLA fuses with nothing after it.
    return common(0, 2) * common(1, 3)


def iou(boxes: Float[Array, "n 4"], others: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Return intersection over union of each pair; 0 where both boxes are empty."""
    common = intersection(boxes, others)
    union = area(boxes)[:, None] + area(others)[None, :] - common
    return common / jnp.where(union > 0, union, 1.0)


def covered_fraction(boxes: Float[Array, "n 4"], regions: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Return the fraction of each box that lies in each region (COCO's overlap with a crowd); 0 for an empty box."""
    own = area(boxes)[:, None]
    return intersection(boxes, regions) / jnp.where(own > 0, own, 1.0)


def clip(boxes: Float[Array, "*n 4"], size: Float[Array, "2"]) -> Float[Array, "*n 4"]:
    """Clip boxes to an image of the given (height, width)."""
    limit = jnp.stack([size[1], size[0], size[1], size[0]])
    return jnp.clip(boxes, 0.0, limit)


def widen(boxes: Float[Array, "*n 4"], factors: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Move each of the four sides away from the middle of its box, to as many times its distance from it."""
    middle = jnp.tile(0.5 * (boxes[..., :2] + boxes[..., 2:]), 2)
    return middle + factors * (boxes - middle)


def encode(
    boxes: Float[Array, "*n 4"], anchors: Float[Array, "*n 4"], weights: tuple[float, float, float, float]
) -> Float[Array, "*n 4"]:
    """Return the deltas (dx, dy, dw, dh) that turn anchors into boxes (Fast R-CNN, section 3.1), times `weights`.

    Empty boxes and anchors give finite values without meaning, so that a mask over them keeps gradients finite.
    """
    anchor_size = jnp.maximum(anchors[..., 2:] - anchors[..., :2], 1e-3)
    size = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 1e-3)
    shift = (boxes[..., :2] + 0.5 * size - anchors[..., :2] - 0.5 * anchor_size) / anchor_size
    return jnp.concatenate([shift, jnp.log(size / anchor_size)], axis=-1) * jnp.array(weights, boxes.dtype)


def decode(
    deltas: Float[Array, "*n 4"], anchors: Float[Array, "*n 4"], weights: tuple[float, float, float, float]
) -> Float[Array, "*n 4"]:
    """Apply deltas to anchors: the inverse of `encode`, with the growth bounded by `MAX_LOG_SCALE`."""
    deltas = deltas / jnp.array(weights, deltas.dtype)
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + 0.5 * anchor_size + deltas[..., :2] * anchor_size
    size = jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_SCALE)) * anchor_size
    return jnp.concatenate([centre - 0.5 * size, centre + 0.5 * size], axis=-1)
