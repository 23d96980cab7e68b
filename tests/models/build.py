"""Tiny models, their parameters made by NumPy, and batches: what the tests of models and training share."""

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from configs import maskx_rcnn
from maskx_jax.data.shapes.source import ShapesSource
from maskx_jax.data.transforms import Transform
from maskx_jax.models.build import build, initialize
from maskx_jax.models.rcnn.detector import RCNN
from maskx_jax.structures import Batch, PyTree

NUM_CLASSES = 6


def set_fields(config: ConfigDict, **model: Any) -> None:
    """Change some fields of `config.model` or of its family's section, given as section__field."""
    for path, value in model.items():
        *parents, field = path.split("__")
        section = config.model if path.split("__")[0] in config.model else config.model[config.model.family]
        for parent in parents:
            section = section[parent]
        section[field] = value


def tiny_config(argument: str = "size=tiny,data=shapes,mlp=light", **model: Any) -> ConfigDict:
    """Return the tiny config with some fields of `model` changed, given as section__field."""
    config = maskx_rcnn.get_config(argument)
    config.data.mask_classes = "all"
    set_fields(config, **model)
    return config


def tiny_model(num_classes: int = NUM_CLASSES, cpu: bool | None = None, **model: Any) -> RCNN:
    return build(tiny_config(**model).model, num_classes, cpu)


@functools.lru_cache(maxsize=4)
def numpy_variables(model: RCNN, scale: float = 1.0) -> PyTree:
    """Make variables from their shapes, each a function of its path: much faster than the real initialisers.

    The same arrays are given to all who ask: they are read-only.
    """
    shapes = jax.eval_shape(lambda: initialize(model, jax.random.key(0)))

    def make(path: str, shape: Any) -> np.ndarray:
        rng = np.random.RandomState(zlib.crc32(path.encode()))
        if path.startswith("frozen") and path.endswith("scale"):
            return np.full(shape.shape, 0.5, np.float32)
        if path.endswith("bias"):
            return rng.uniform(-0.05, 0.05, shape.shape).astype(np.float32)
        if path.endswith("scale"):
            return np.ones(shape.shape, np.float32)
        fan_in = max(int(np.prod(shape.shape[:-1])), 1)
        return (rng.standard_normal(shape.shape) * scale * fan_in**-0.5).astype(np.float32)

    flat = traverse_util.flatten_dict(shapes, sep="/")
    made = {path: np.asarray(make(path, shape)) for path, shape in flat.items()}
    for array in made.values():
        array.flags.writeable = False
    return traverse_util.unflatten_dict(made, sep="/")


def shapes_batch(
    batch_size: int = 2,
    num_slots: int = 8,
    seed: int = 3,
    start: int = 0,
    image_size: int = 128,
    keypoints: bool = False,
) -> Batch:
    """Return the first images of a synthetic set of six categories, as a batch of JAX arrays."""
    source = ShapesSource(start + batch_size, seed, image_size, num_hues=3, num_textures=2, keypoints=keypoints)
    canvas = (image_size, image_size)
    transform = Transform(canvas, (image_size,), image_size, flip_probability=0.0, num_slots=num_slots)
    examples = [
        transform(source[i], canvas, np.random.default_rng(i), skeleton=source.skeleton)[0]
        for i in range(start, start + batch_size)
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *examples)
    return jax.tree.map(jnp.asarray, stacked.replace(image_ids=stacked.image_ids.astype(np.int32)))
