"""Outlines of masks as polygons, which annotation tools let a person edit."""

import cv2
import numpy as np

# How far an outline may leave the border of the mask, in pixels.
TOLERANCE = 0.5


def outlines(mask: np.ndarray, tolerance: float = TOLERANCE) -> list[list[float]]:
    """Return the outlines of the connected parts of a mask as COCO polygons; holes are filled.

    Args:
      mask: bool `h w`.
      tolerance: how far an outline may leave the border of the mask, in pixels; it has fewer points for it.

    Returns:
      Flat lists x1, y1, x2, y2, ... in continuous pixels, each of 3 points or more, rounded to hundredths.
    """
    # OpenCV follows the middles of pixels: at twice the size these lie a quarter of a pixel inside the border.
    doubled = cv2.resize(mask.astype(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    found, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for outline in found:
        points = cv2.approxPolyDP(outline, 2 * tolerance, closed=True)
        if len(points) < 3:
            # A part as thin as the tolerance.
            points = cv2.approxPolyDP(outline, 0, closed=True)
        polygons.append(((points.reshape(-1).astype(np.float64) + 0.5) / 2).round(2).tolist())
    return [polygon for polygon in polygons if len(polygon) >= 6]
