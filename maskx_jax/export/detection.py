"""What every exported program computes, and what whoever runs it has to know: pixels in, detections out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from maskx_jax.data.transforms import Transform
from maskx_jax.models.build import build
from maskx_jax.runs.loading import Loaded
from maskx_jax.structures import Detections

# As `jax.export` and TensorFlow call them; "cuda" is NVIDIA's.
PLATFORMS = ("cpu", "cuda", "tpu")
# Beside the exported program.
FACTS_FILE = "model.json"

_KEYPOINT_MAPS = "float32 [batch, n, k, m, m]: logits of the place of each keypoint over m x m cells of each box"

# Of variables, images and image_sizes.
Detect = Callable[[Any, jax.Array, jax.Array], dict[str, jax.Array]]


def make_detect(run: Loaded) -> Detect:
    """Return (variables, images, image_sizes) -> boxes, labels, scores, valid, and masks, keypoint_maps if it has any.

    It is lowered for each platform in the platform's own form, whatever this process runs on: for a CPU as
    `models.build.build` builds a model for one CPU, image by image; for others the whole batch at once.
    """
    on_cpu, elsewhere = (build(run.config.model, len(run.categories), cpu=cpu) for cpu in (True, False))

    def detect(variables: Any, images: jax.Array, image_sizes: jax.Array) -> dict[str, jax.Array]:
        return _named(elsewhere.apply(variables, images, image_sizes, method="detect"))

    def detect_on_cpu(variables: Any, images: jax.Array, image_sizes: jax.Array) -> dict[str, jax.Array]:
        # Its convolutions choose the size of their tiles by the number of images, which need not be known here.
        def one_image(image: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
            batch = [array[None] for array in image]
            return {name: array[0] for name, array in _named(on_cpu.apply(variables, *batch, method="detect")).items()}

        return jax.lax.map(one_image, (images, image_sizes))

    def for_each_platform(variables: Any, images: jax.Array, image_sizes: jax.Array) -> dict[str, jax.Array]:
        chosen: dict[str, jax.Array] = jax.lax.platform_dependent(
            variables, images, image_sizes, cpu=detect_on_cpu, default=detect
        )
        return chosen

    return for_each_platform


def _named(found: Detections) -> dict[str, jax.Array]:
    fields = ("boxes", "labels", "scores", "masks", "keypoint_maps", "valid")
    return {name: getattr(found, name) for name in fields if getattr(found, name) is not None}


def canvases(run: Loaded) -> dict[str, tuple[int, int]]:
    """Return height and width of the canvases by name: "landscape" and "portrait", or "square" for both."""
    transform = Transform(**run.config.data.transform)
    if transform.single_canvas:
        return {"square": transform.canvas}
    return {"landscape": transform.canvas_of(portrait=False), "portrait": transform.canvas_of(portrait=True)}


def inputs(canvas: tuple[int, int], batch_size: int | None) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Return the shapes and types of images and image_sizes.

    Args:
      canvas: height and width.
      batch_size: images of a batch; None for any number.

    Raises:
      ValueError: the batch size is not positive.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"got a batch of {batch_size} images; expected 1 or more, or none for any number")
    batch = export.symbolic_shape("b")[0] if batch_size is None else batch_size
    return jax.ShapeDtypeStruct((batch, *canvas, 3), jnp.uint8), jax.ShapeDtypeStruct((batch, 2), jnp.float32)


def facts(run: Loaded, batch_size: int | None) -> dict[str, Any]:
    """Return what a stranger has to know to run an exported program, as JSON holds it."""
    transform = Transform(**run.config.data.transform).for_evaluation()
    has_masks = "masks" in run.model.produces
    return {
        "categories": run.categories.to_coco(),
        "batch_size": "any" if batch_size is None else batch_size,
        "canvases": {name: list(canvas) for name, canvas in canvases(run).items()},
        "inputs": {
            "images": "uint8 [batch, height, width, 3], RGB from 0 to 255, of a canvas's height and width: the resized "
            "image in the upper left corner, the rest of any value",
            "image_sizes": "float32 [batch, 2], height and width of the resized image",
        },
        "resize": {
            "canvas": "landscape where the image is at least as wide as it is high, else portrait; or square",
            "short_side": transform.short_sides[0],
            "max_long_side": transform.max_long_side,
            "rule": "scale = short_side / shorter side; where round(scale * longer side) > max_long_side, "
            "max_long_side / longer side; never more than fits the canvas. Both sides are multiplied by it and rounded",
            "interpolation": "bilinear (OpenCV's INTER_LINEAR)",
        },
        "outputs": {
            "boxes": "float32 [batch, n, 4]: x1, y1, x2, y2 in pixels of the canvas; divide by scale",
            "labels": "int32 [batch, n]: label k is the k-th of the categories, the first being 1",
            "scores": "float32 [batch, n], from 0 to 1, best first",
            **({"masks": "float32 [batch, n, m, m]: probabilities at m x m points of each box"} if has_masks else {}),
            **({"keypoint_maps": _KEYPOINT_MAPS} if "keypoints" in run.model.produces else {}),
            "valid": "bool [batch, n]: whether the slot holds a detection",
        },
        **({"paste": _paste_facts(run)} if has_masks else {}),
    }


def _paste_facts(run: Loaded) -> dict[str, Any]:
    rules = {
        "continuous": "the middle of pixel x, at x + 0.5, is looked up bilinearly at (x + 0.5 - x1) / (x2 - x1) * m - "
        "0.5 of the mask, with zeros around it, and so for y; it belongs to the object where the value is >= threshold",
        "integer": "pad the mask with a ring of zeros, enlarge the box by (m + 2) / m about its middle, truncate it to "
        "integers, resize the mask bilinearly to x2 - x1 + 1 by y2 - y1 + 1 pixels; the object is where it is > "
        "threshold",
    }
    evaluation = run.config.evaluation
    return {
        "threshold": evaluation.mask_threshold,
        "grid": evaluation.paste_grid,
        "rule": rules[evaluation.paste_grid],
        "box": "in pixels of the original image, before it is clipped to it",
    }
