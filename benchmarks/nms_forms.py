"""Forms of exact greedy NMS, for accelerators: which is fastest is measured, not guessed.

Each keeps the same boxes in the same order as `maskx_jax.ops.nms.nms`, and takes the same arguments.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from maskx_jax.ops import boxes as box_ops
from maskx_jax.ops.nms import nms
from maskx_jax.ops.sampling import top_k

# As `nms`.
Form = Callable[..., tuple[Array, Array]]


def _form(choose: Callable[[Array, Array], Array]) -> Form:
    """Return NMS that leaves to `choose(suppresses, valid)` which of the sorted boxes are kept."""

    def run(
        boxes: Array, scores: Array, labels: Array, valid: Array, iou_threshold: float, max_outputs: int
    ) -> tuple[Array, Array]:
        order = top_k(jnp.where(valid, scores, -jnp.inf), scores.shape[0])
        boxes, labels, valid = boxes[order], labels[order], valid[order]
        position = jnp.arange(order.size)
        suppresses = (box_ops.iou(boxes, boxes) > iou_threshold) & (labels[:, None] == labels)
        keep = choose(suppresses & (position[:, None] < position), valid)
        first = jnp.argsort(~keep, stable=True)[:max_outputs]
        return order[first], keep[first]

    return run


def _greedy(suppresses: Bool[Array, "n n"], valid: Bool[Array, "n"]) -> Bool[Array, "n"]:
    """Visit the boxes one after the other: n turns."""
    return jax.lax.fori_loop(0, valid.size, lambda i, keep: keep & ~(suppresses[i] & keep[i]), valid)


def _fixpoint(suppresses: Bool[Array, "n n"], valid: Bool[Array, "n"]) -> Bool[Array, "n"]:
    """Decide on all boxes at once until nothing changes, as the models do, but on a matrix of booleans."""

    def turn(state: tuple[Array, Array]) -> tuple[Array, Array]:
        keep, _ = state
        return valid & ~(suppresses & keep[:, None]).any(axis=0), keep

    return jax.lax.while_loop(lambda state: (state[0] != state[1]).any(), turn, (valid, ~valid))[0]


FORMS: dict[str, Form] = {"": nms, "greedy": _form(_greedy), "fixpoint": _form(_fixpoint)}
