"""What a frozen backbone, and a frozen pyramid, make of an image, computed once and kept on disk."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from maskx_jax import errors, files
from maskx_jax.distributed.mesh import replicated
from maskx_jax.models.detector import BackboneDetector
from maskx_jax.runs.logs import info
from maskx_jax.structures import Batch, PyTree, TrainState

# The modules that they depend on.
_MODULES = {"maps": ("backbone",), "pyramid": ("backbone", "fpn")}


def open_cache(config: ConfigDict, model: nn.Module, state: TrainState, mesh: Mesh) -> Callable[[Batch], Batch]:
    """Return the function that adds `maps`, or `pyramid` where it is not trained either, to a batch on the host.

    Without `data.cache_features` it adds nothing.

    Args:
      config: of the run.
      model: of the run.
      state: its parameters; those of the backbone must not be trained.
      mesh: of the devices.

    Raises:
      ValueError: a part of the backbone is trained, or the model's backbone is no part of its own.
      OSError: the folder cannot be made or read.
    """
    data = config.data
    if data.cache_features is None:
        return lambda batch: batch
    if not isinstance(model, BackboneDetector):
        raise ValueError(
            f"config.data.cache_features is {data.cache_features!r}; expected None: models of the family "
            f"{config.model.family!r} have no maps of a backbone"
        )
    if trained := jax.tree.leaves(state.trained.get("backbone", {})):
        raise ValueError(
            f"config.data.cache_features is {data.cache_features!r} while {len(trained)} arrays of the backbone are "
            "trained; expected None, or 'backbone/.*' in config.optimizer.untrained"
        )
    has_still_pyramid = "fpn" in state.untrained and "fpn" not in state.trained
    kind = "pyramid" if has_still_pyramid else "maps"
    collections = {"params": state.untrained, "frozen": state.frozen}
    own = {
        collection: {name: tree[name] for name in _MODULES[kind] if name in tree}
        for collection, tree in collections.items()
    }
    # A copy: the step donates the buffers of the state. Every process gets all of it.
    variables = jax.device_get(jax.jit(lambda x: x, out_shardings=replicated(mesh))(own))
    folder = pathlib.Path(data.cache_features).expanduser()
    return FeatureCache(model, variables, kind, folder, int(data.cache_gigabytes * 1e9)).add_to


class FeatureCache:
    """The maps of images, in a folder; a process that stops leaves no half of a file.

    An image is known by its pixels, so that the two directions of a flip are two images, and what makes maps of it by
    its fields and variables, so that several may share a folder. Of several processes each counts what it writes.
    """

    def __init__(self, model: Any, variables: PyTree, kind: str, folder: pathlib.Path, num_bytes: int) -> None:
        """Prepare to read and to write.

        Args:
          model: a `BackboneDetector`.
          variables: of its backbone, and of its pyramid if that is kept.
          kind: "maps" or "pyramid", what is kept: a method of the model and a field of `Batch`.
          folder: made if need be.
          num_bytes: that the maps in the folder may have together; images beyond are computed each time.

        Raises:
          OSError: the folder cannot be made or read.
        """
        # One image at a time: how many of a batch are new changes, and each number would be compiled.
        compute = jax.jit(functools.partial(model.apply, method=kind))
        self._compute = functools.partial(compute, jax.device_put(variables, jax.local_devices()[0]))
        self._kind = kind
        self._folder = folder / _identity(
            [kind, *(repr(getattr(model, name)) for name in ("pixels", *_MODULES[kind]))], variables
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        self._left = num_bytes - _bytes_in(folder)
        self._full = False
        self._shapes: dict[tuple[int, ...], dict[int, jax.ShapeDtypeStruct]] = {}
        made = {"maps": "the backbone makes", "pyramid": "the backbone and the pyramid make"}[kind]
        room = max(self._left, 0) / 1e9
        info(f"what {made} of images is kept in {self._folder}, with room for {room:.1f} GB more")

    def add_to(self, batch: Batch) -> Batch:
        """Return the batch, of NumPy arrays, with what is kept of its images.

        Raises:
          OSError: a file cannot be read.
          ValueError: a file is damaged.
        """
        maps = [self._maps(image, size) for image, size in zip(batch.images, batch.image_sizes, strict=True)]
        return dataclasses.replace(batch, **{self._kind: jax.tree.map(lambda *images: np.stack(images), *maps)})

    def _maps(self, image: np.ndarray, size: np.ndarray) -> dict[int, np.ndarray]:
        """Return the maps of one image, without the axis of the batch."""
        shapes = self._shapes_of(image.shape)
        name = hashlib.blake2b(image.tobytes() + size.tobytes() + str(image.shape).encode(), digest_size=16).hexdigest()
        file = self._folder / name[:2] / name[2:]
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            computed = jax.device_get(self._compute(image[None], size[None]))
            maps = {level: array[0] for level, array in computed.items()}
            self._write(file, b"".join(maps[level].tobytes() for level in sorted(shapes)))
            return maps
        if len(content) != (expected := sum(math.prod(s.shape) * s.dtype.itemsize for s in shapes.values())):
            raise ValueError(f"{file} has {len(content)} bytes; expected {expected}: delete it, and it is made again")
        return _split(content, shapes)

    def _shapes_of(self, shape: tuple[int, ...]) -> dict[int, jax.ShapeDtypeStruct]:
        """Return shape and type of the maps of an image."""
        if shape not in self._shapes:
            inputs = jax.ShapeDtypeStruct((1, *shape), jnp.uint8), jax.ShapeDtypeStruct((1, 2), jnp.float32)
            maps = jax.eval_shape(self._compute, *inputs)
            self._shapes[shape] = {
                level: jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for level, array in maps.items()
            }
        return self._shapes[shape]

    def _write(self, file: pathlib.Path, content: bytes) -> None:
        """Keep what there is room for; what cannot be written stops no run."""
        if self._full:
            return
        reason = "data.cache_gigabytes"
        if len(content) <= self._left:
            try:
                file.parent.mkdir(exist_ok=True)
                files.write_bytes(file, content)
            except OSError as error:
                reason = errors.one_line(error)
            else:
                self._left -= len(content)
                return
        self._full = True
        logging.warning("%s takes no more (%s): other maps are computed each time", self._folder, reason)


def _bytes_in(folder: pathlib.Path) -> int:
    """Return what the maps in a folder take, while others may write there."""
    total = 0
    for path in folder.rglob("*"):
        # What is half written will have its name soon, or was left by a process that was killed and is no map.
        if path.suffix != files.PARTIAL_SUFFIX:
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size if path.is_file() else 0
    return total


def _split(content: bytes, shapes: dict[int, jax.ShapeDtypeStruct]) -> dict[int, np.ndarray]:
    """Return the maps from the bytes of a file: one level after the other."""
    maps, start = {}, 0
    for level, shape in sorted(shapes.items()):
        count = math.prod(shape.shape)
        maps[level] = np.frombuffer(content, shape.dtype, count, start).reshape(shape.shape)
        start += maps[level].nbytes
    return maps


def _identity(parts: list[str], variables: PyTree) -> str:
    """Return a name for what the maps depend on besides the image."""
    digest = hashlib.blake2b("\n".join([*parts, jax.default_backend()]).encode(), digest_size=16)
    for path, array in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()
