"""Points of a stored mask, and polygons without any raster."""

import math

import numpy as np


def sample_mask(bitmap, frame, roi, size):
    """Interpolate a boolean bitmap that covers `frame` at the centres of a grid over `roi`, point by point."""
    side = len(bitmap)
    target = np.zeros((size, size), bool)
    for i in range(size):
        for j in range(size):
            y = roi[1] + (i + 0.5) / size * (roi[3] - roi[1])
            x = roi[0] + (j + 0.5) / size * (roi[2] - roi[0])
            row = (y - frame[1]) / (frame[3] - frame[1]) * side
            column = (x - frame[0]) / (frame[2] - frame[0]) * side
            if 0 <= row < side and 0 <= column < side:
                value = 0.0
                for pixel_row in (math.floor(row - 0.5), math.floor(row - 0.5) + 1):
                    for pixel_column in (math.floor(column - 0.5), math.floor(column - 0.5) + 1):
                        # Pixels beyond the border repeat those at it.
                        bit = bitmap[min(max(pixel_row, 0), side - 1), min(max(pixel_column, 0), side - 1)]
                        distances = abs(row - 0.5 - pixel_row), abs(column - 0.5 - pixel_column)
                        value += bit * (1 - distances[0]) * (1 - distances[1])
                # The borders of objects lie between points that are object and points that are not: a half is object.
                target[i, j] = value >= 0.5 - 1e-6
    return target


def average_mask(bitmap, frame, roi, size, fine=64):
    """Return which part of each cell of a grid over `roi` is object: the mean of `fine` x `fine` points of the cell."""
    side = len(bitmap)
    points = (np.arange(size * fine) + 0.5) / (size * fine)

    def pixels(low, high):
        positions = (roi[low] + points * (roi[high] - roi[low]) - frame[low]) / (frame[high] - frame[low]) * side
        return np.clip(np.floor(positions).astype(int), 0, side - 1), (positions >= 0) & (positions < side)

    (columns, x_inside), (rows, y_inside) = pixels(0, 2), pixels(1, 3)
    drawn = bitmap[rows[:, None], columns] & y_inside[:, None] & x_inside
    return drawn.reshape(size, fine, size, fine).mean(axis=(1, 3))


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
