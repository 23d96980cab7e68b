"""Non-maximum suppression: exact, with static shapes, over all classes at once."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from maskx_jax.ops import boxes as box_ops


def nms_of_sorted(
    boxes: Float[Array, "n 4"], labels: Int[Array, "n"], valid: Bool[Array, "n"], iou_threshold: float
) -> Bool[Array, "n"]:
    """Return which boxes greedy NMS keeps: those that no kept, better one of their label overlaps by a larger IoU.

    Boxes come best first.

    The result equals the greedy loop at every threshold: `keep = valid and no kept, better box suppresses it` has one
    solution, that of the loop, and after k rounds of repeating it from any start the first k boxes are right. So n
    rounds always suffice; crowded images take six or seven. Suppression is one n x n matrix of bits whatever the
    number of classes, so n should be in the low thousands.

    An image, or a batch under `jax.vmap`, ends when nothing changes. A batch that is split over devices needs
    `per_image.per_image`: else all devices agree on the end in every round.
    """
    place = jnp.arange(len(boxes))

    # Eight boxes a byte: what a round reads fits the caches. Bit b is a box of the b-th eighth, so that the bits are
    # computed side by side and no matrix of overlaps is ever stored.
    def eighths(values: Array) -> list[Array]:
        return jnp.split(jnp.pad(values, ((0, -len(values) % 8), *[(0, 0)] * (values.ndim - 1))), 8)

    def pack(bits: Iterable[Array]) -> UInt8[Array, "eighth *n"]:
        return functools.reduce(jnp.bitwise_or, (bit.astype(jnp.uint8) << b for b, bit in enumerate(bits)))

    # [i, j]: i suppresses j, if it is kept itself.
    suppresses = pack(
        (box_ops.iou(better, boxes) > iou_threshold) & (label[:, None] == labels) & (better_place[:, None] < place)
        for better, label, better_place in zip(eighths(boxes), eighths(labels), eighths(place), strict=True)
    )

    def repeat(state: tuple[Array, Array]) -> tuple[Array, Array]:
        keep, _ = state
        return valid & ~(suppresses & pack(eighths(keep))[:, None]).any(axis=0), keep

    def changed(state: tuple[Array, Array]) -> Array:
        keep, before = state
        return (keep != before).any()

    keep, _ = jax.lax.while_loop(changed, repeat, repeat((valid, valid)))
    return keep
