"""What a split has: classes, objects an image, sizes; and how these lie on the canvas and the anchors of a config."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskx_jax.data.transforms import Transform
from maskx_jax.doctor.objects import Objects
from maskx_jax.doctor.sets import class_counts
from maskx_jax.doctor.structure import Split

# Sides of boxes, as the square root of the area, in pixels; COCO's small, medium and large end at 32 and 96.
SIDES = (0, 4, 8, 16, 32, 64, 96, 128, 256, 512)


def measure(split: Split, objects: Objects) -> dict[str, Any]:
    """Return what there is of each class, in each image and of each size, fit for JSON; crowd regions do not count."""
    plain = objects.take(~objects.is_crowd)
    per_image = np.bincount(plain.image_index, minlength=len(split.images))
    sizes = split.sizes()
    return {
        "num_objects": len(plain),
        "num_crowds": len(objects) - len(plain),
        "num_masks": int(plain.has_mask.sum()),
        "objects_per_image": _spread(per_image),
        "image_heights": _spread(sizes[:, 0]),
        "image_widths": _spread(sizes[:, 1]),
        "box_sides": histogram(_sides(plain)),
        "mask_sides": histogram(np.sqrt(plain.mask_areas[plain.has_mask])),
        "classes": _classes(split, objects),
    }


def histogram(sides: np.ndarray) -> list[dict[str, Any]]:
    """Return how many of some sides, in pixels, lie from each of `SIDES` to the next."""
    ends = [*SIDES[1:], None]
    places = np.searchsorted(SIDES, sides, side="right") - 1
    counts = np.bincount(places.clip(0), minlength=len(SIDES)).tolist()
    return [{"from": low, "to": high, "count": n} for low, high, n in zip(SIDES, ends, counts, strict=True)]


def _sides(objects: Objects) -> np.ndarray:
    return np.sqrt((objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(axis=1))


def _spread(values: np.ndarray) -> dict[str, float]:
    """Return the smallest, the median, ... of values; nothing for none."""
    if not len(values):
        return {}
    places = {"least": 0, "median": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "most": 100}
    return dict(zip(places, np.percentile(values, list(places.values())).round(1).tolist(), strict=True))


def _classes(split: Split, objects: Objects) -> list[dict[str, Any]]:
    length = len(split.categories) + 1
    counts, masks = class_counts(split, objects)
    crowds = np.bincount(objects.labels[objects.is_crowd], minlength=length)
    rectangles = np.bincount(objects.labels[objects.is_rectangle], minlength=length)
    plain = ~objects.is_crowd
    images = images_with(objects, length)
    labels, sides = objects.labels[plain], _sides(objects.take(plain))
    rows = []
    for label, (category_id, name) in enumerate(
        zip(split.categories.ids, split.categories.names, strict=True), start=1
    ):
        own = sides[labels == label]
        rows.append(
            {
                "id": category_id,
                "name": name,
                "objects": int(counts[label]),
                "images": int(images[label]),
                "masks": int(masks[label]),
                "box_only": round(1 - float(masks[label] / counts[label]), 4) if counts[label] else None,
                "rectangles": int(rectangles[label]),
                "crowds": int(crowds[label]),
                "median_side": round(float(np.median(own)), 1) if len(own) else None,
                "small": int((own < 32).sum()),
                "medium": int(((own >= 32) & (own < 96)).sum()),
                "large": int((own >= 96).sum()),
            }
        )
    return rows


def images_with(objects: Objects, length: int) -> np.ndarray:
    """Return int64 `length`: for each label the images with an object of it that is no crowd."""
    plain = ~objects.is_crowd
    pairs = np.unique(objects.image_index[plain] * length + objects.labels[plain])
    return np.bincount(pairs % length, minlength=length)


def on_canvas(split: Split, objects: Objects, transform: Transform) -> tuple[np.ndarray, np.ndarray]:
    """Return how images and boxes lie on the canvas in evaluation, which is without random scales.

    Returns:
      scales: float64 `images`, canvas pixels per pixel of the image; NaN where its size is not known.
      sides: float64 `n 2`, width and height of the objects' boxes in pixels of the canvas.
    """
    fixed = transform.for_evaluation()
    sizes, which = np.unique(split.sizes(), axis=0, return_inverse=True)
    rng = np.random.default_rng(0)
    scales = np.array(
        [
            fixed.draw_view(size, fixed.canvas_of(size[1] < size[0]), rng).scale if min(size) else np.nan
            for size in map(tuple, sizes.tolist())
        ]
    )[which.ravel()]
    sides = (objects.boxes[:, 2:] - objects.boxes[:, :2]) * scales[objects.image_index][:, None]
    return scales, sides


def anchor_overlaps(sides: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Return float64 `n`: the best overlap (IoU) of each box with an anchor on its own centre.

    Args:
      sides: float64 `n 2`, width and height.
      anchors: float64 `a 2`, likewise.
    """
    best = np.zeros(len(sides))
    areas = sides.prod(axis=1)
    for width, height in anchors.tolist():
        shared = np.minimum(sides[:, 0], width) * np.minimum(sides[:, 1], height)
        np.maximum(best, shared / (areas + width * height - shared), out=best)
    return best


def anchor_sides(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> np.ndarray:
    """Return float64 `a 2`: width and height of the anchors of all sizes and ratios (height over width)."""
    roots = np.sqrt(np.array(aspect_ratios, np.float64))
    shapes = np.stack([1 / roots, roots], axis=1)
    return (np.array(sizes, np.float64)[:, None, None] * shapes).reshape(-1, 2)
