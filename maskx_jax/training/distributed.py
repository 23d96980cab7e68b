"""What the processes of a run say to each other."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# What a device holds of a message at a time, from all processes together.
_BYTES_ON_DEVICE = 1 << 28


def gather_objects(value: Any) -> list[Any]:
    """Return the values of all processes, in their order, on every process. All of them have to call it.

    Args:
      value: what JSON can hold: dicts with string keys, lists, strings, numbers, booleans and None.

    Raises:
      TypeError: it holds something else. The other processes then wait in vain.
    """
    if jax.process_count() == 1:
        return [value]
    message = np.frombuffer(json.dumps(value).encode(), np.uint8)
    # As bytes, because JAX would cut integers of 64 bits in half.
    lengths = _all_gather(np.array([message.size], np.uint64).view(np.uint8)).view(np.uint64)[:, 0].tolist()
    part = _BYTES_ON_DEVICE // jax.process_count()
    parts = []
    for start in range(0, max(lengths), part):
        own = message[start : start + part]
        # Arrays of one shape are gathered: of the longest message's rest, or of a whole part.
        parts.append(_all_gather(np.pad(own, (0, min(part, max(lengths) - start) - own.size))))
    messages = np.concatenate(parts, axis=1)
    return [json.loads(row[:length].tobytes()) for row, length in zip(messages, lengths, strict=True)]


def _all_gather(array: np.ndarray) -> np.ndarray:
    """Return the arrays of all processes, stacked along a new first axis."""
    return np.asarray(multihost_utils.process_allgather(array))
