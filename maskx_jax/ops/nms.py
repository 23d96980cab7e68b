"""Non-maximum suppression: exact, with static shapes, over all classes at once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskx_jax.ops import boxes as box_ops
from maskx_jax.ops.sampling import top_k


def nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, "n"],
    labels: Int[Array, "n"],
    valid: Bool[Array, "n"],
    iou_threshold: float,
    max_outputs: int,
) -> tuple[Int[Array, "k"], Bool[Array, "k"]]:
    """Keep boxes greedily by score, dropping those with IoU > `iou_threshold` to a kept box of the same label.

    The result equals the greedy loop for every threshold. Suppression is one n x n matrix whatever the number of
    classes, so n should be in the low thousands.

    Returns:
      indices: of the kept boxes, best first, `k = min(max_outputs, n)`.
      valid: which of them are real.
    """
    order = top_k(jnp.where(valid, scores, -jnp.inf), scores.shape[0])
    boxes, labels, valid = boxes[order], labels[order], valid[order]
    suppresses = (box_ops.iou(boxes, boxes) > iou_threshold) & (labels[:, None] == labels[None, :])
    later = jnp.arange(order.size)

    def visit(i: Int[Array, ""], keep: Bool[Array, "n"]) -> Bool[Array, "n"]:
        return keep & ~(suppresses[i] & keep[i] & (later > i))

    # A fixed number of turns: a loop that ends when nothing changes would make all devices wait for the slowest
    # image of the batch and agree on the end in every turn.
    keep = jax.lax.fori_loop(0, order.size, visit, valid)
    first = jnp.argsort(~keep, stable=True)[:max_outputs]
    return order[first], keep[first]
