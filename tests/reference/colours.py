"""Colours one at a time: CIE Lab from its definition, and cells point by point."""

import math

import numpy as np

# The chromaticities (x, y) of sRGB's red, green and blue, and of the white of D65 as XYZ.
PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
WHITE = (0.95047, 1.0, 1.08883)


def rgb_to_lab(red, green, blue):
    """Return the CIE Lab of one sRGB colour, each channel 0 to 255."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red / 255, green / 255, blue / 255)]
    # The brightness of each primary is such that all three together are white.
    directions = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in PRIMARIES]).T
    xyz = directions @ (np.linalg.solve(directions, WHITE) * linear)

    def response(t):
        return t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29

    x, y, z = (response(value / white) for value, white in zip(xyz, WHITE, strict=True))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def sample_colours(image, image_size, box, size):
    """Return the mean colour of the cells of a grid over a box: the mean of four points each."""
    height, width = image_size

    def point(y, x):
        y, x = min(max(y - 0.5, 0), height - 1), min(max(x - 0.5, 0), width - 1)
        top, left = math.floor(y), math.floor(x)
        value = np.zeros(3)
        for row in (top, top + 1):
            for column in (left, left + 1):
                share = max(1 - abs(y - row), 0) * max(1 - abs(x - column), 0)
                if share > 0:
                    value += share * image[row, column]
        return value

    cells = np.zeros((size, size, 3))
    for i in range(size):
        for j in range(size):
            points = [
                point(box[1] + (i + v) / size * (box[3] - box[1]), box[0] + (j + u) / size * (box[2] - box[0]))
                for v in (0.25, 0.75)
                for u in (0.25, 0.75)
            ]
            cells[i, j] = np.mean(points, axis=0)
    return cells
