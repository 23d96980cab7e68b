"""What a computation over a batch, split over the eight fake devices, sends between them."""

import re

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

NAMES = "all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute|collective-broadcast"


def collectives(function, *arguments):
    """Return the names of the collectives in the HLO compiled for arguments whose first axis is split."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    # As `training.steps` sets it, for `ops.per_image`.
    with jax.set_mesh(mesh):
        hlo = jax.jit(function).lower(*jax.device_put(arguments, split)).compile().as_text()
    assert "num_partitions=8" in hlo
    return set(re.findall(rf"\b(?:{NAMES})\b", hlo))
