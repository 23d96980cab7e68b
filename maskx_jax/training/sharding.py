"""The device mesh, and where arrays live on it: state everywhere, batches split over "data"."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from maskx_jax.structures import PyTree


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh of the devices (by default all of all processes) with the one axis "data"."""
    devices = devices or jax.devices()
    # Automatic axes: jax.make_mesh would otherwise make explicit ones, under which plain indexing of a sharded array
    # is an error.
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec("data"))


def global_batch(mesh: Mesh, batch: PyTree) -> PyTree:
    """Assemble global arrays from the slice of the batch that this process holds.

    Raises:
      ValueError: the global batch cannot be split evenly over the devices.
    """
    sharding = split_batch(mesh)

    def assemble(array: Any) -> jax.Array:
        array = np.asarray(array)
        if array.dtype == np.int64:
            # Image ids, which only the host reads; JAX would warn that it truncates them.
            array = array.astype(np.int32)
        if array.shape[0] * jax.process_count() % mesh.size:
            raise ValueError(
                f"got a global batch of {array.shape[0] * jax.process_count()}; expected a multiple of the "
                f"{mesh.size} devices"
            )
        return jax.make_array_from_process_local_data(sharding, array)

    return jax.tree.map(assemble, batch)


def local_part(arrays: PyTree) -> PyTree:
    """Return as NumPy what this process holds of arrays that are split over the batch: `global_batch` undone."""

    def collect(array: jax.Array) -> np.ndarray:
        # A single shard's slice has no start.
        shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        return np.concatenate(jax.device_get([shard.data for shard in shards]))

    return jax.tree.map(collect, arrays)
