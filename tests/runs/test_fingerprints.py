import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.distributed.mesh import make_mesh, replicated, split_batch
from maskx_jax.runs.fingerprints import fingerprints


def slow(array: np.ndarray) -> int:
    """Return the sum as the docstring says it, one element after the other."""
    unsigned = array.astype(np.uint8) if array.dtype == bool else array.view(f"u{array.dtype.itemsize}")
    factors = (2 * 2654435761 * position + 1 for position in range(array.size))
    return sum(int(bits) * factor for bits, factor in zip(unsigned.ravel(), factors, strict=True)) % 2**32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_the_fingerprint_is_the_sum_it_says(dtype):
    array = np.asarray(jnp.asarray(np.random.default_rng(0).normal(0, 50, (3, 4, 5)), dtype))
    assert fingerprints({"a": array}) == {"a": slow(array)}


def test_any_bit_changes_it():
    array = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    expected = fingerprints({"a": array})
    for position in range(array.size):
        for bit in (0, 13, 31):
            changed = array.copy()
            changed.view(np.uint32).ravel()[position] ^= np.uint32(1 << bit)
            assert fingerprints({"a": changed}) != expected
    assert fingerprints({"a": np.ascontiguousarray(array[::-1])}) != expected


def test_it_is_the_same_on_any_number_of_devices():
    array = np.random.default_rng(2).normal(size=(16, 3)).astype(np.float32)
    mesh = make_mesh()
    for sharding in (replicated(mesh), split_batch(mesh)):
        assert fingerprints({"a": jax.device_put(array, sharding)}) == fingerprints({"a": array})
    assert fingerprints({"scalar": jnp.float32(3)}) == {"scalar": slow(np.full(1, 3, np.float32))}


def test_wide_elements_are_refused():
    with pytest.raises(TypeError, match="complex64"):
        fingerprints({"a": np.zeros(2, np.complex64)})
