"""A detector of one red and one green rectangle: what is predicted of a picture is known to the pixel."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from maskx_jax.coco.categories import Categories
from maskx_jax.data.transforms import Transform
from maskx_jax.prediction.predictor import Predictor
from maskx_jax.structures import Detections

CATEGORIES = Categories((3, 70), ("red", "green"))
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0)}


class Finder(nn.Module):
    """Finds the pixels that are red alone, and those that are green alone; each mask is a full grid."""

    def detect(self, images, image_sizes):
        pixels = images.astype(jnp.float32)
        height, width = pixels.shape[1:3]
        boxes, scores = [], []
        for channel in (0, 1):
            inside = pixels[..., channel] - pixels[..., 1 - channel] > 128
            columns, rows = inside.any(axis=1), inside.any(axis=2)
            first = [columns.argmax(axis=1), rows.argmax(axis=1)]
            last = [width - columns[:, ::-1].argmax(axis=1), height - rows[:, ::-1].argmax(axis=1)]
            boxes.append(jnp.stack([*first, *last], axis=-1).astype(jnp.float32))
            # Red is surer than green.
            scores.append(jnp.where(inside.any(axis=(1, 2)), 0.9 - 0.2 * channel, 0.0))
        scores = jnp.stack(scores, axis=1)
        return Detections(
            boxes=jnp.stack(boxes, axis=1),
            scores=scores,
            labels=jnp.broadcast_to(jnp.arange(1, 3), scores.shape),
            masks=jnp.ones((*scores.shape, 4, 4)),
            valid=scores > 0,
        )


def picture(size, **rectangles):
    """Return a gray picture with rectangles (x1, y1, x2, y2) by the name of their colour."""
    pixels = np.full((*size, 3), 90, np.uint8)
    for name, (x1, y1, x2, y2) in rectangles.items():
        pixels[y1:y2, x1:x2] = COLOURS[name]
    return pixels


def predictor(canvas=(64, 96)):
    return Predictor(Finder(), {}, CATEGORIES, Transform(canvas=canvas, short_sides=(64,), max_long_side=96))
