"""Keep XLA's CPU compiler from computing cheap operations again wherever their result is used.

It fuses a sum, a factor or a ReLU into every operation that takes the result. The backward pass then asks not for the
one map that was computed, but for all those that it came from: ReLU's gradient for the convolution's output, and
behind a residual sum for those of all blocks before. `jax.lax.optimization_barrier`, and with it `jax.checkpoint`, do
nothing here, as this compiler drops the barriers before it fuses.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def computed_once(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the same values, as something that no later operation is fused with.

    A scatter is not fused on a CPU, and writes in place. This one compares two values with minus infinity.
    """
    places = jnp.zeros((2, x.ndim), jnp.int32).at[1, -1].set(x.shape[-1] - 1)
    nothing = jnp.full(2, -jnp.inf, x.dtype)
    return x.at[tuple(places.T)].max(nothing, mode="promise_in_bounds")


def unknown_zero(x: Float[Array, "..."]) -> Float[Array, ""]:
    """Return 0 once x is there, and so that the compiler does not know.

    What is computed with it in the backward pass is not taken for what the forward pass has computed, and so is not
    kept since then.
    """
    first = x[(0,) * x.ndim]
    return computed_once(jnp.stack([first, jnp.zeros_like(first)]))[1]


def late_zeros(x: Float[Array, "..."], shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Return zeros that are made once x is there: others are made where the program begins, for all of its loops."""
    return jnp.broadcast_to(unknown_zero(x).astype(dtype), shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def relu(x: Float[Array, "..."], largest: float = math.inf) -> Float[Array, "..."]:
    """Return x between 0 and the largest value; the backward pass keeps the output alone.

    The next layer needs that anyway.
    """
    return jnp.clip(x, 0, largest)


def _forward(x: Array, largest: float) -> tuple[Array, Array]:
    y = relu(x, largest)
    if y.dtype == jnp.float32:
        # A scatter of bfloat16 would be one of float32, between two copies of the map.
        y = computed_once(y)
    return y, y


def _backward(largest: float, y: Array, gradient: Array) -> tuple[Array]:
    return (jnp.where((y > 0) & (y < largest), gradient, 0),)


relu.defvjp(_forward, _backward)
