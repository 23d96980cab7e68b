"""Points of a stored mask, and polygons without any raster."""

import math

import numpy as np

# Points between two stored pixels belong to the later one.
TIE = 1e-3


def sample_mask(bitmap, frame, roi, size):
    """Look up a boolean bitmap that covers `frame` at the centres of a grid over `roi`, point by point."""
    side = len(bitmap)
    target = np.zeros((size, size), bool)
    for i in range(size):
        for j in range(size):
            y = roi[1] + (i + 0.5) / size * (roi[3] - roi[1])
            x = roi[0] + (j + 0.5) / size * (roi[2] - roi[0])
            row = math.floor((y - frame[1]) / (frame[3] - frame[1]) * side + TIE)
            column = math.floor((x - frame[0]) / (frame[2] - frame[0]) * side + TIE)
            if 0 <= row < side and 0 <= column < side:
                target[i, j] = bitmap[row, column]
    return target


def in_polygon(x, y, polygon):
    """Return whether points are inside a polygon (flat x1, y1, x2, y2, ...): a ray crosses its border an odd number
    of times."""
    vertices = np.asarray(polygon, np.float64).reshape(-1, 2)
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
    for (x1, y1), (x2, y2) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        if y1 != y2:
            crosses = (y1 > y) != (y2 > y)
            inside ^= crosses & (x < x1 + (y - y1) / (y2 - y1) * (x2 - x1))
    return inside


def rasterize(polygons, box, size):
    """Return which centres of a `size` x `size` grid over `box` lie in any of the polygons."""
    centres = (np.arange(size) + 0.5) / size
    x = box[0] + centres * (box[2] - box[0])
    y = box[1] + centres * (box[3] - box[1])
    return np.any([in_polygon(x[None, :], y[:, None], polygon) for polygon in polygons], axis=0)


def iou(mask, other):
    return (mask & other).sum() / (mask | other).sum()
