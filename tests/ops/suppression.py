"""Non-maximum suppression of boxes in any order: the package's own, after a sort."""

import jax.numpy as jnp

from maskx_jax.ops.nms import nms_of_sorted
from maskx_jax.ops.sampling import top_k


def nms(boxes, scores, labels, valid, iou_threshold, max_outputs):
    """Return the indices of the kept boxes, best first, and which of them are real."""
    order = top_k(jnp.where(valid, scores, -jnp.inf), scores.shape[0])
    keep = nms_of_sorted(boxes[order], labels[order], valid[order], iou_threshold)
    first = jnp.argsort(~keep, stable=True)[:max_outputs]
    return order[first], keep[first]
