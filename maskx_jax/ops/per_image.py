"""Apply a function of one image to a batch, on each device to its own images."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec


def per_image(function: Callable[..., Any], in_axes: Sequence[int | None] | int = 0) -> Callable[..., Any]:
    """Return `jax.vmap(function, in_axes)`, which does not communicate where the batch is split over a mesh.

    XLA splits most of what `jax.vmap` makes of a function of one image, but not a sort of the best few, for which it
    gathers the scores of all devices, nor a loop that ends when nothing changes, for which all devices wait for the
    slowest in every turn. Where a mesh is set (`jax.set_mesh`, `jax.sharding.use_abstract_mesh`) the function
    therefore runs under `jax.shard_map`, the images split over all of its axes. The mesh must divide the batch.

    Args:
      function: of arrays, or trees of arrays, of one image.
      in_axes: 0 for the arguments that have a first axis of images, None for those that all images share.
    """

    def mapped(*arguments: Any) -> Any:
        images = jax.vmap(function, in_axes)
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return images(*arguments)
        axes = [in_axes] * len(arguments) if isinstance(in_axes, int) else in_axes
        split = PartitionSpec(mesh.axis_names)
        specs = tuple(PartitionSpec() if axis is None else split for axis in axes)
        return jax.shard_map(images, in_specs=specs, out_specs=split, check_vma=False)(*arguments)

    return mapped
