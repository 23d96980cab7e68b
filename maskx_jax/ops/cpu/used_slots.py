"""Leave out the empty slots of arrays whose shapes are static."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskx_jax.ops.cpu.fusion import late_zeros
from maskx_jax.ops.cpu.platform import largest_divisor

_CHUNK = 16

# Of parameters, values and labels of some slots.
Function = Callable[[Any, Float[Array, "n ..."], Int[Array, "n"]], Float[Array, "n ..."]]


def map_used_slots(
    function: Function,
    parameters: Any,
    values: Float[Array, "b r ..."],
    labels: Int[Array, "b r"],
    used: Bool[Array, "b r"],
) -> Float[Array, "b r ..."]:
    """Apply a function of independent slots; what it returns for slots that are not used has no meaning.

    The slots are worked through a few at a time, and where none of these is used the result is zero: it costs as much
    as is used, in the backward pass too, which computes the intermediate results again. The used slots of an image
    should be its first. This is for one CPU device: accelerators are fast at many slots and slow at deciding.

    Args:
      function: of `parameters`, and of `values` and `labels` with a single leading dimension.
      parameters: a tree of floating point arrays.
      values: what the slots hold.
      labels: of the slots.
      used: whether anything is to be made of a slot.
    """
    images, slots = used.shape
    size = largest_divisor(slots, _CHUNK)
    chunk_is_used = used.reshape(-1, size).any(axis=1)
    order, count = jnp.argsort(~chunk_is_used, stable=True), chunk_is_used.sum()
    chunks = values.reshape(-1, size, *values.shape[2:]), labels.reshape(-1, size)
    result = _map_chunks(function, order, count, parameters, *chunks)
    return result.reshape(images, slots, *result.shape[2:])


# Written out because JAX cannot differentiate a loop of a number of turns that is known only when it runs.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _map_chunks(function: Function, order: Array, count: Array, parameters: Any, values: Array, labels: Array) -> Array:
    """Apply the function to the first `count` chunks of an order."""
    shape = jax.eval_shape(function, parameters, values[0], labels[0])

    def add_chunk(turn: Array, results: Array) -> Array:
        index = order[turn]
        return results.at[index].set(function(parameters, values[index], labels[index]))

    return jax.lax.fori_loop(0, count, add_chunk, late_zeros(values, (len(order), *shape.shape), shape.dtype))


def _forward(function: Function, *arguments: Any) -> tuple[Array, Any]:
    return _map_chunks(function, *arguments), arguments


def _backward(function: Function, arguments: Any, gradient: Array) -> Any:
    order, count, parameters, values, labels = arguments

    def add_chunk(turn: Array, gradients: tuple[Any, Array]) -> tuple[Any, Array]:
        index = order[turn]
        chunk_labels = labels[index]
        _, pull_back = jax.vjp(lambda given, chunk: function(given, chunk, chunk_labels), parameters, values[index])
        parameters_gradient, values_gradient = pull_back(gradient[index])
        return jax.tree.map(jnp.add, gradients[0], parameters_gradient), gradients[1].at[index].set(values_gradient)

    zeros = jax.tree.map(lambda each: late_zeros(gradient, each.shape, each.dtype), (parameters, values))
    return None, None, *jax.lax.fori_loop(0, count, add_chunk, zeros), None


_map_chunks.defvjp(_forward, _backward)
