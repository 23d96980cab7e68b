"""A number for every array that changes when any bit of it does."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

# Knuth's multiplicative constant; odd, so that no bit of a position is lost.
_MULTIPLIER = np.uint32(2654435761)


def fingerprints(arrays: Mapping[str, Array]) -> dict[str, int]:
    """Return for each array the sum of its elements' bits, each times an odd number of its position, modulo 2^32.

    Integer sums are exact in any order: the same on every number of devices, computed where the arrays lie. One changed
    element always changes the sum.

    Raises:
      TypeError: an array has elements of 8 bytes.
    """
    values = jax.device_get(_fingerprints(dict(arrays)))
    return {name: int(values[name]) for name in arrays}


@jax.jit
def _fingerprints(arrays: dict[str, Array]) -> dict[str, UInt32[Array, ""]]:
    return {name: _fingerprint(array) for name, array in arrays.items()}


def _fingerprint(array: Array) -> UInt32[Array, ""]:
    array = jnp.asarray(array)
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}.get(array.dtype.itemsize)
    if unsigned is None:
        raise TypeError(f"got an array of {array.dtype}; expected elements of at most 4 bytes")
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    # Indices axis by axis: flattening would gather an array that is split over devices.
    position = jnp.zeros(array.shape, jnp.uint32)
    for axis, length in enumerate(array.shape):
        position = position * np.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    return jnp.sum(bits * (position * _MULTIPLIER * np.uint32(2) + np.uint32(1)), dtype=jnp.uint32)
