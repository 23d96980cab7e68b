"""Keypoints from the maps of a box, one pixel after the other (He et al. 2017, section 5; Keys 1981 for the kernel)."""

import math

import numpy as np


def keys_kernel(distance, a=-0.75):
    """The cubic convolution kernel, Keys 1981, equation 4 with a free constant."""
    distance = abs(distance)
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    if distance < 2:
        return a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    return 0.0


def resize(cells, size):
    """A map at the centres of `size` (width, height) pixels that cover it; beyond its border it goes on as there."""
    width, height = size
    side = len(cells)

    def at(values, position):
        first = math.floor(position) - 1
        taps = range(first, first + 4)
        return sum(keys_kernel(position - tap) * values[min(max(tap, 0), side - 1)] for tap in taps)

    columns = [[at(row, (x + 0.5) * side / width - 0.5) for x in range(width)] for row in np.asarray(cells, float)]
    rows = np.array(columns)
    return np.array([[at(rows[:, x], (y + 0.5) * side / height - 0.5) for x in range(width)] for y in range(height)])


def decode(cells, box):
    """The point (x, y) of one map over its box, its logit, and its probability."""
    x1, y1, x2, y2 = box
    w, h = max(x2 - x1, 1), max(y2 - y1, 1)
    width, height = math.ceil(w), math.ceil(h)
    resized = resize(cells, (width, height))
    row, column = np.unravel_index(resized.argmax(), resized.shape)
    peak = resized[row, column]
    point = x1 + (column + 0.5) * w / width, y1 + (row + 0.5) * h / height
    return *point, peak, 1 / np.exp(np.asarray(cells, float) - peak).sum()
