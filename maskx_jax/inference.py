"""Images in, detections out: of one batch, and of every image of a source. No config, no COCO."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from maskx_jax.distributed.mesh import apply_on, global_batch, local_part, split_batch, whole
from maskx_jax.structures import Batch, Detections, PyTree

# What detects in one batch needs neither OpenCV nor files.
if TYPE_CHECKING:
    from maskx_jax.data.records import Source
    from maskx_jax.data.transforms import Transform

DetectStep = Callable[[PyTree, jax.Array, jax.Array], Detections]
# (variables, images, image_sizes, boxes, labels, valid) -> mask probabilities `b n m m`.
MaskStep = Callable[[PyTree, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def make_detect_step(model: nn.Module, mesh: Mesh) -> DetectStep:
    """Return the jitted (variables, images, image_sizes) -> Detections, each image on its own device.

    The variables may lie on the mesh as they like: replicated, or split as a step with "fsdp" left them.
    """

    def detect(variables: PyTree, images: jax.Array, image_sizes: jax.Array) -> Any:
        return apply_on(mesh, model, whole(variables, mesh), images, image_sizes, method="detect")

    split = split_batch(mesh)
    return jax.jit(detect, in_shardings=(None, split, split), out_shardings=split)


def make_mask_step(model: nn.Module, mesh: Mesh) -> MaskStep:
    """Return the jitted function that predicts masks on given boxes, see `models.detector.MaskDetector`.

    The images of a batch are split over the mesh, and so are the boxes; the variables may lie on it as they like.
    """

    def predict_masks(variables: PyTree, *inputs: jax.Array) -> Any:
        return apply_on(mesh, model, whole(variables, mesh), *inputs, method="predict_masks")

    split = split_batch(mesh)
    return jax.jit(predict_masks, in_shardings=(None, *[split] * 5), out_shardings=split)


@dataclasses.dataclass(frozen=True)
class ImageDetections:
    """What was detected in one image of a source, on the host.

    Attributes:
      image_id: the dataset's id.
      size: height and width of the original image.
      scale: canvas pixels per pixel of the original image.
      found: the detections, in pixels of the canvas; their arrays lack the axis of the batch.
    """

    image_id: int
    size: tuple[int, int]
    scale: float
    found: Detections


def detect(
    step: DetectStep,
    variables: PyTree,
    source: "Source",
    transform: "Transform",
    mesh: Mesh,
    *,
    batch_size: int,
    loader: str = "threads",
    num_workers: int | None = None,
    read_ahead: int = 0,
) -> Iterator[list[ImageDetections]]:
    """Yield for each batch what was detected in the images that this process has of it.

    All processes yield as many lists. Together these hold each image of the source once; a batch lies on the processes
    in their order.

    Args:
      step: see `make_detect_step`.
      variables: of the model, on the mesh.
      source: of the images.
      transform: of a training run; used without its randomness.
      mesh: a batch is split over it.
      batch_size: images of a batch, over all devices.
      loader: see `data.pipeline.train_batches`; so are `num_workers` and `read_ahead`.
      num_workers: examples made at the same time; None for one a core.
      read_ahead: records read at the same time, before their turn.

    Raises:
      RuntimeError: a record is broken.
    """
    from maskx_jax.data.pipeline import evaluation_batches

    batches = evaluation_batches(
        source,
        transform,
        batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        loader=loader,
        num_workers=num_workers,
        read_ahead=read_ahead,
    )
    size_of_image = dict(zip(source.image_ids.tolist(), map(tuple, source.sizes.tolist()), strict=True))
    for batch, detections in one_ahead(step, variables, batches, mesh):
        yield [
            ImageDetections(
                image_id := int(batch.image_ids[i]),
                size_of_image[image_id],
                float(batch.scales[i]),
                jax.tree.map(lambda array, i=i: array[i], detections),
            )
            for i in np.flatnonzero(batch.valid)
        ]


def images_of(batch: Batch) -> tuple[Any, ...]:
    """Return what a `DetectStep` takes of a batch."""
    return batch.images, batch.image_sizes


def boxes_of(batch: Batch) -> tuple[Any, ...]:
    """Return what a `MaskStep` takes of a batch: images, and the boxes of its ground truth."""
    objects = batch.ground_truth
    return *images_of(batch), objects.boxes, objects.labels, objects.valid


def one_ahead(
    step: Callable[..., Any],
    variables: PyTree,
    batches: Iterator[Batch],
    mesh: Mesh,
    inputs: Callable[[Batch], tuple[Any, ...]] = images_of,
) -> Iterator[tuple[Batch, Any]]:
    """Yield each batch of this process with what the step makes of it, on the host, while the device does the next one.

    Args:
      step: see `make_detect_step` and `make_mask_step`.
      variables: of the model, on the mesh.
      batches: this process's parts of the global batches.
      mesh: a batch is split over it.
      inputs: what the step takes of a batch.
    """
    waiting: list[tuple[Batch, Any]] = []
    for batch in batches:
        waiting.append((batch, step(variables, *global_batch(mesh, inputs(batch)))))
        if len(waiting) > 1:
            batch, found = waiting.pop(0)
            yield batch, local_part(found)
    for batch, found in waiting:
        yield batch, local_part(found)
