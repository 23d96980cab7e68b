"""Boxes on the host: NumPy arrays `... 4` of (x1, y1, x2, y2) in pixels. `ops.boxes` has them on the device."""

import numpy as np


def clip(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Clip boxes `... 4` to an image of (height, width); their type stays."""
    height, width = size
    return np.clip(boxes, boxes.dtype.type(0), np.array([width, height, width, height], boxes.dtype))


def area(boxes: np.ndarray) -> np.ndarray:
    """Return float64 `...`: width times height, 0 where one of them is negative."""
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1).astype(np.float64)


def intersection(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return float64 `...`: the area that each pair of boxes `... 4` shares."""
    corners = [np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])]
    return area(np.concatenate(corners, axis=-1))


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return float64 `...`: intersection over union of each pair of boxes `... 4`; 0 for two without area."""
    shared = intersection(first, second)
    union = area(first) + area(second) - shared
    return shared / np.where(union > 0, union, 1)


def tight(bitmap: np.ndarray) -> np.ndarray:
    """Return int64 `4`: the box around the set pixels of a bitmap `h w`; zeros where none is set."""
    rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
    if rows.size == 0:
        return np.zeros(4, np.int64)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
