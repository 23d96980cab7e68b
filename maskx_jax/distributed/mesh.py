"""The device mesh, and where arrays live on it: batches split over "data", state everywhere or split over it too."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from maskx_jax.structures import PyTree

STATE_SHARDINGS = ("replicated", "fsdp")


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


def state_shardings(mesh: Mesh, state: PyTree, mode: str, min_size: int = 2**16) -> PyTree:
    """Return the sharding of each array of a state: what `jax.device_put` and `make_train_step` take.

    "fsdp" (fully sharded data parallelism, ZeRO stage 3) splits large arrays over the devices; each device then updates
    its own part, and a step gathers the parameters to compute with them. The rule sees shapes alone, so the momentum
    and the running average of a parameter lie where the parameter lies.

    Args:
      mesh: with the axis "data".
      state: a TrainState, or any tree of arrays or `jax.ShapeDtypeStruct`.
      mode: "replicated" (every device holds everything) or "fsdp": an array is split along its largest dimension that
        the number of devices divides (of equal ones the last, the output channels of a kernel); without such a
        dimension it is replicated.
      min_size: arrays of fewer elements are replicated by "fsdp": for them, communication costs more than memory.

    Raises:
      ValueError: the mode is unknown.
    """
    if mode not in STATE_SHARDINGS:
        raise ValueError(f"got state_sharding {mode!r}; expected one of {STATE_SHARDINGS}")

    def sharding(array: Any) -> NamedSharding:
        divisible = [axis for axis, size in enumerate(array.shape) if size % mesh.size == 0]
        if mode == "replicated" or math.prod(array.shape) < min_size or not divisible:
            return replicated(mesh)
        split = max(divisible, key=lambda axis: (array.shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*[None] * split, "data"))

    return jax.tree.map(sharding, state)


def whole(arrays: PyTree, mesh: Mesh) -> PyTree:
    """Return arrays, inside of a jitted function, as every device needs them to compute with all of them."""
    return jax.lax.with_sharding_constraint(arrays, replicated(mesh))


def apply_on(mesh: Mesh, model: Any, variables: PyTree, *arguments: Any, method: str) -> Any:
    """Apply a method of a linen module to a batch that is split over the mesh, inside of a jitted function."""
    # `ops.per_image` splits what XLA would not.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return model.apply(variables, *arguments, method=method)


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
