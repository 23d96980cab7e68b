"""Boundary IoU, by looking at every pixel around each pixel of a mask."""

import numpy as np


def boundary(mask, width):
    """Return the pixels of a mask that are within `width` pixels (rows or columns) of one outside of it."""
    padded = np.pad(mask, width)
    inner = np.ones_like(mask)
    for dy in range(2 * width + 1):
        for dx in range(2 * width + 1):
            inner &= padded[dy : dy + mask.shape[0], dx : dx + mask.shape[1]]
    return mask & ~inner


def iou(first, second):
    """Return the IoU of two masks; 0 of empty ones."""
    return (first & second).sum() / max((first | second).sum(), 1)


def smaller_iou(first, second, width):
    """Return the smaller of the IoU of two masks and that of their boundaries."""
    return min(iou(first, second), iou(boundary(first, width), boundary(second, width)))
