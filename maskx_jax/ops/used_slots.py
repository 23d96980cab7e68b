"""Leave out the empty slots of arrays whose shapes are static."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped

from maskx_jax.ops.platform import on_one_cpu

_CHUNK = 16


def map_used_slots(
    function: Callable[..., Shaped[Array, "n ..."]],
    used: Bool[Array, "b r"],
    *arrays: Shaped[Array, "b r ..."],
) -> Shaped[Array, "b r ..."]:
    """Apply a function of independent slots; what it returns for slots that are not used has no meaning.

    On one CPU device the slots are worked through a few at a time, and where none of these is used the result is zero:
    it costs as much as is used, in the backward pass too, which computes the intermediate results again. An image has
    its used slots best first. Elsewhere the function gets all slots at once: accelerators are fast at many of them and
    slow at deciding.

    Args:
      function: of `arrays` with a single leading dimension.
      used: whether anything is to be made of a slot.
      *arrays: what the slots hold.
    """
    images, slots = used.shape

    def flat(array: Array, *leading: int) -> Array:
        return array.reshape(*leading, *array.shape[2:])

    if not on_one_cpu():
        all_at_once = function(*(flat(array, images * slots) for array in arrays))
        return all_at_once.reshape(images, slots, *all_at_once.shape[1:])

    chunk = max(size for size in range(1, _CHUNK + 1) if slots % size == 0)
    chunks = images * slots // chunk
    rows = tuple(flat(array, chunks, chunk) for array in arrays)
    shape = jax.eval_shape(function, *(row[0] for row in rows))

    @jax.checkpoint
    def of_chunk(any_used: Array, *row: Array) -> Array:
        return jax.lax.cond(any_used, function, lambda *_: jnp.zeros(shape.shape, shape.dtype), *row)

    results = jax.lax.map(lambda chunk: of_chunk(*chunk), (used.reshape(chunks, chunk).any(1), *rows))
    return results.reshape(images, slots, *shape.shape[1:])
