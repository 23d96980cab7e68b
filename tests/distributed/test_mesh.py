import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from maskx_jax.distributed.mesh import make_mesh, state_shardings


def spec(*shape: int, mode: str = "fsdp", min_size: int = 1) -> PartitionSpec:
    return state_shardings(make_mesh(), jax.ShapeDtypeStruct(shape, jnp.float32), mode, min_size).spec


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((16, 8), PartitionSpec("data")),
        ((8, 16), PartitionSpec(None, "data")),
        ((3, 3, 16, 16), PartitionSpec(None, None, None, "data")),
        # The largest dimension that 8 divides, not the largest.
        ((81, 8), PartitionSpec(None, "data")),
        ((81, 5), PartitionSpec()),
        ((), PartitionSpec()),
    ],
)
def test_an_array_is_split_along_its_largest_dimension_that_the_devices_divide(shape, expected):
    assert spec(*shape) == expected


def test_small_arrays_and_a_replicated_state_are_whole_on_every_device():
    assert spec(8, 8, min_size=64) == PartitionSpec(None, "data")
    assert spec(8, 8, min_size=65) == PartitionSpec()
    assert spec(8, 8, mode="replicated") == PartitionSpec()


def test_each_device_holds_its_part():
    state = {"kernel": np.arange(48.0, dtype=np.float32).reshape(3, 16), "bias": np.zeros(3, np.float32)}
    placed = jax.device_put(state, state_shardings(make_mesh(), state, "fsdp", min_size=1))
    assert [shard.data.shape for shard in placed["kernel"].addressable_shards] == [(3, 2)] * 8
    assert [shard.data.shape for shard in placed["bias"].addressable_shards] == [(3,)] * 8
    np.testing.assert_array_equal(placed["kernel"], state["kernel"])


def test_an_unknown_mode_is_named_with_what_exists():
    with pytest.raises(ValueError, match=r"got state_sharding 'zero'; expected one of \('replicated', 'fsdp'\)"):
        spec(8, mode="zero")
