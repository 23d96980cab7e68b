"""The helper that the tests of sharded batches rely on can itself fail."""

import jax.numpy as jnp
import pytest

from tests.ops.collectives import collectives


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x.sum(0), "all-reduce"),
        (lambda x: x[::-1] + x, "collective-permute"),
        (lambda x: x.reshape(-1)[(x[:, :1] * 7).astype(int)], "all-gather"),
    ],
)
def test_a_computation_across_the_batch_is_caught(function, name):
    found = collectives(function, jnp.ones((8, 4)))
    assert found and (name in found or "all-reduce" in found)


def test_a_computation_within_each_image_sends_nothing():
    assert not collectives(lambda x: jnp.sin(x) + x.sum(1, keepdims=True), jnp.ones((8, 4)))
