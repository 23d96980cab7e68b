"""Images in, detections out."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh

from maskx_jax.distributed.mesh import apply_on, split_batch, whole
from maskx_jax.structures import Detections, PyTree

DetectStep = Callable[[PyTree, jax.Array, jax.Array], Detections]


def make_detect_step(model: nn.Module, mesh: Mesh) -> DetectStep:
    """Return the jitted (variables, images, image_sizes) -> Detections, each image on its own device.

    The variables may lie on the mesh as they like: replicated, or split as a step with "fsdp" left them.
    """

    def detect(variables: PyTree, images: jax.Array, image_sizes: jax.Array) -> Any:
        return apply_on(mesh, model, whole(variables, mesh), images, image_sizes, method="detect")

    split = split_batch(mesh)
    return jax.jit(detect, in_shardings=(None, split, split), out_shardings=split)
