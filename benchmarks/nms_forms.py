"""Forms of exact greedy NMS, for accelerators: which is fastest is measured, not guessed.

Each keeps the same boxes in the same order.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from maskx_jax.ops import boxes as box_ops
from maskx_jax.ops.nms import nms_of_sorted
from maskx_jax.ops.sampling import top_k

# Boxes `n 4`, scores, labels, valid, IoU threshold and number of outputs to the indices of the kept boxes, best first,
# and which of these are real.
Form = Callable[..., tuple[Array, Array]]


def _form(keep_of_sorted: Callable[[Array, Array, Array, float], Array]) -> Form:
    """Return NMS that leaves to a function as `nms_of_sorted` which of the sorted boxes are kept."""

    def run(
        boxes: Array, scores: Array, labels: Array, valid: Array, iou_threshold: float, max_outputs: int
    ) -> tuple[Array, Array]:
        order = top_k(jnp.where(valid, scores, -jnp.inf), scores.shape[0])
        keep = keep_of_sorted(boxes[order], labels[order], valid[order], iou_threshold)
        first = jnp.argsort(~keep, stable=True)[:max_outputs]
        return order[first], keep[first]

    return run


def _by_matrix(choose: Callable[[Array, Array], Array]) -> Form:
    """Return NMS that leaves to `choose(suppresses, valid)` which of the sorted boxes are kept."""

    def keep_of_sorted(boxes: Array, labels: Array, valid: Array, iou_threshold: float) -> Array:
        position = jnp.arange(len(boxes))
        suppresses = (box_ops.iou(boxes, boxes) > iou_threshold) & (labels[:, None] == labels)
        return choose(suppresses & (position[:, None] < position), valid)

    return _form(keep_of_sorted)


def _greedy(suppresses: Bool[Array, "n n"], valid: Bool[Array, "n"]) -> Bool[Array, "n"]:
    """Visit the boxes one after the other: n turns."""
    return jax.lax.fori_loop(0, valid.size, lambda i, keep: keep & ~(suppresses[i] & keep[i]), valid)


def _fixpoint(suppresses: Bool[Array, "n n"], valid: Bool[Array, "n"]) -> Bool[Array, "n"]:
    """Decide on all boxes at once until nothing changes, as the models do, but on a matrix of booleans."""

    def turn(state: tuple[Array, Array]) -> tuple[Array, Array]:
        keep, _ = state
        return valid & ~(suppresses & keep[:, None]).any(axis=0), keep

    return jax.lax.while_loop(lambda state: (state[0] != state[1]).any(), turn, (valid, ~valid))[0]


# The models' own.
nms = _form(nms_of_sorted)
FORMS: dict[str, Form] = {"": nms, "greedy": _by_matrix(_greedy), "fixpoint": _by_matrix(_fixpoint)}
