"""The keypoints of objects drawn as a skeleton: a point each, and lines between those that the dataset joins."""

import colorsys
from collections.abc import Mapping

import cv2
import numpy as np

from maskx_jax.coco.keypoints import Skeleton

# Keypoints of detections with a lower score are not drawn: the model does not know where they are.
LEAST_SCORE = 0.05
# cv2 takes coordinates in 16ths of a pixel.
_SHIFT = 4
_WHITE = (255, 255, 255)


def draw_skeleton(canvas: np.ndarray, entry: Mapping, skeleton: Skeleton, scale: float) -> None:
    """Draw the keypoints of one object into a picture; those that are labelled but hidden as rings, with thin lines.

    Args:
      canvas: `h w 3` uint8 RGB, changed in place.
      entry: a COCO annotation, or a results entry (with a score), of `skeleton`; maybe without keypoints.
      skeleton: of its class.
      scale: pixels of the picture per pixel of the image.
    """
    keypoints = np.array(entry.get("keypoints") or [], np.float64).reshape(-1, 3)
    # COCO's numbers are those of pixels, whose centres lie half a pixel further.
    points = np.rint((keypoints[:, :2] + 0.5) * scale * 2**_SHIFT).astype(int).tolist()
    if "score" in entry:
        seen = shown = keypoints[:, 2] >= LEAST_SCORE
    else:
        shown, seen = keypoints[:, 2] > 0, keypoints[:, 2] > 1
    if not shown.any():
        return
    extent = np.ptp(keypoints[shown, :2], axis=0).max() * scale
    radius = int(np.clip(extent / 40, 2, 6))
    for number, (first, last) in enumerate(skeleton.edges):
        if shown[first] and shown[last]:
            width = max(radius - 1, 2) if seen[first] and seen[last] else 1
            color = _color(number, len(skeleton.edges))
            cv2.line(canvas, points[first], points[last], color, width, cv2.LINE_AA, _SHIFT)
    for number in np.flatnonzero(shown).tolist():
        color = _color(number, len(points))
        full = seen[number]
        # A rim of white keeps a point apart from a line of its color.
        cv2.circle(canvas, points[number], (radius + 1) << _SHIFT, _WHITE, 1 if not full else -1, cv2.LINE_AA, _SHIFT)
        cv2.circle(canvas, points[number], radius << _SHIFT, color, 1 if not full else -1, cv2.LINE_AA, _SHIFT)


def _color(number: int, count: int) -> tuple[int, int, int]:
    """Return one of `count` colors, as far apart in hue as they can be."""
    red, green, blue = colorsys.hsv_to_rgb(number / count, 0.9, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
