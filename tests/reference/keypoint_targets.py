"""Keypoint targets, one keypoint at a time."""

import math


def keypoint_cell(x, y, roi, size):
    """Return (row, column) of the cell of a grid over `roi` that a point lies in, or None where it lies outside."""
    x1, y1, x2, y2 = (float(side) for side in roi)
    if not (x1 <= x <= x2 and y1 <= y <= y2):
        return None
    column = size - 1 if x == x2 else math.floor((x - x1) / (x2 - x1) * size)
    row = size - 1 if y == y2 else math.floor((y - y1) / (y2 - y1) * size)
    return row, column
