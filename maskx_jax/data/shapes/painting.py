"""Colours a scene: each category has a hue and a texture."""

import colorsys
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from maskx_jax.coco import boxes
from maskx_jax.data.shapes.marks import paint_marks
from maskx_jax.data.shapes.scene import SUPERSAMPLING, Scene, draw, single
from maskx_jax.structures import Keypoints

# Hue in degrees, saturation, value.
HUES = {
    "red": (0, 0.85, 0.85),
    "green": (140, 0.85, 0.55),
    "blue": (224, 0.85, 0.9),
    "yellow": (54, 0.85, 0.95),
    "purple": (272, 0.65, 0.7),
    "orange": (27, 0.9, 0.98),
    "cyan": (182, 0.75, 0.85),
    "magenta": (315, 0.8, 0.9),
    "lime": (88, 0.75, 0.85),
    "brown": (22, 0.65, 0.42),
    "pink": (345, 0.35, 0.98),
    "navy": (232, 0.75, 0.4),
}
# Whether a point of texture space (in periods) takes the second shade.
TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "solid": lambda x, y: np.zeros(np.broadcast_shapes(x.shape, y.shape), bool),
    "horizontal": lambda x, y: (y % 1 < 0.5) & (x == x),
    "vertical": lambda x, y: (x % 1 < 0.5) & (y == y),
    "diagonal": lambda x, y: (x + y) * 0.7071 % 1 < 0.5,
    "dotted": lambda x, y: (x % 1 - 0.5) ** 2 + (y % 1 - 0.5) ** 2 < 0.1,
    "checkered": lambda x, y: (x % 1 < 0.5) ^ (y % 1 < 0.5),
    "gridded": lambda x, y: (x % 1 < 0.28) | (y % 1 < 0.28),
}


def paint(
    scene: Scene, looks: Sequence[tuple[str, str]], rng: np.random.Generator, keypoints: Keypoints | None = None
) -> np.ndarray:
    """Colour a scene over a background of its own, mark keypoints, and average down to the size of the image."""
    canvas = _background(scene.owners.shape[0], scene.owners.shape[1], rng)
    side = min(scene.owners.shape)
    for owner, label in enumerate(scene.labels, start=1):
        hue, texture = looks[label - 1]
        colour, shade = _colours(hue, rng)
        mask = scene.owners == owner
        x1, y1, x2, y2 = boxes.tight(mask)
        # About 18 periods a side: still resolved at 128 pixels, and several of them across a bar.
        period = side / 18 * rng.uniform(0.9, 1.15)
        angle, mirror = rng.uniform(-0.1, 0.1), float(rng.choice([-1.0, 1.0]))
        x = (np.arange(x1, x2, dtype=np.float32) / period + rng.random())[None, :]
        y = (np.arange(y1, y2, dtype=np.float32) / period + rng.random())[:, None]
        cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        second = TEXTURES[texture](mirror * (cosine * x + sine * y), cosine * y - sine * x)
        inside = mask[y1:y2, x1:x2]
        canvas[y1:y2, x1:x2][inside] = np.where(second[inside][:, None], shade, colour)
    if keypoints is not None:
        paint_marks(canvas, scene, keypoints)
    height, width = scene.owners.shape[0] // SUPERSAMPLING, scene.owners.shape[1] // SUPERSAMPLING
    image = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    corners = 1 + 0.08 * rng.standard_normal((2, 2)).astype(np.float32)
    light = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(2, 7))
    return np.clip(image * light + noise, 0, 255).astype(np.uint8)


def _colours(hue: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the two shades of an object: the hue, jittered, and a darker one (a lighter one for dark hues)."""
    degrees, saturation, value = HUES[hue]
    colour = 255 * np.array(
        colorsys.hsv_to_rgb(
            (degrees + rng.uniform(-5, 5)) / 360 % 1,
            np.clip(saturation + rng.uniform(-0.06, 0.06), 0, 1),
            np.clip(value + rng.uniform(-0.06, 0.06), 0, 1),
        )
    )
    shade = colour * 0.42 if value > 0.6 else colour + (255 - colour) * 0.5
    return colour.astype(np.uint8), shade.astype(np.uint8)


def _background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw clouds of nearly grey and a few grey outlines that are no objects."""
    cells = np.clip(rng.uniform(70, 185, (5, 5, 1)) + rng.normal(0, 8, (5, 5, 3)), 0, 255).astype(np.uint8)
    canvas = cv2.resize(cells, (width, height), interpolation=cv2.INTER_LINEAR)
    for _ in range(rng.integers(0, 4)):
        centre = rng.uniform(0, 1, 2) * (width, height)
        mask = draw(single(rng), centre, min(height, width) * rng.uniform(0.1, 0.4), (height, width))
        canvas[mask] = np.clip(canvas[mask] + rng.uniform(-30, 30), 0, 255).astype(np.uint8)
    return canvas
