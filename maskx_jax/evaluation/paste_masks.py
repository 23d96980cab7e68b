"""From the small mask of a box to the pixels of the image: bilinear pasting and run-length encoding.

A predicted mask holds probabilities at `m m` points of its box. Interpolating them bilinearly is separable: first the
rows of the mask, then its columns, over the pixels of the box only. (Two matrix products would do the same, but NumPy
hands those to a threaded BLAS, which took up to 40 times as long where other processes kept the cores busy.)
"""

from typing import Literal, get_args

import numpy as np

from maskx_jax.coco import rle

Grid = Literal["continuous", "integer"]


def paste_mask(
    mask: np.ndarray, box: np.ndarray, height: int, width: int, threshold: float = 0.5, grid: Grid = "continuous"
) -> tuple[np.ndarray, tuple[int, int]]:
    """Paste the mask of a box into the image, as a bitmap of the part of the image that it touches.

    Two conventions are in use. They differ by up to a pixel at the border of the object:

    - `"continuous"` (detectron2): the centre of pixel x, at x + 0.5, is looked up at point
      `(x + 0.5 - x1) / (x2 - x1) * m - 0.5` of the mask, which is zero beyond its outermost points; a pixel belongs to
      the object where the probability is `>= threshold`.
    - `"integer"` (Detectron, torchvision): the mask is padded with a ring of zeros, its box enlarged by `(m + 2) / m`
      and truncated to integers, with a width of `x2 - x1 + 1`; a pixel belongs where the probability is `> threshold`.

    Args:
      mask: `m m`, probabilities.
      box: `4`, xyxy in pixels of the image; it may reach over the border.
      height: rows of the image.
      width: columns of the image.
      threshold: above 0.
      grid: the convention.

    Returns:
      The region, bool `rows columns`, and the row and the column of its first pixel in the image. The region is empty
      where the box holds no pixel.

    Raises:
      ValueError: the mask is not square, the box is not finite, or the grid is unknown.
    """
    mask = np.asarray(mask, np.float32)
    box = np.asarray(box, np.float64)
    if mask.ndim != 2 or mask.shape[0] != mask.shape[1]:
        raise ValueError(f"got a mask of shape {mask.shape}; expected (m, m)")
    if box.shape != (4,) or not np.isfinite(box).all():
        raise ValueError(f"got box {box.tolist()}; expected 4 finite numbers (x1, y1, x2, y2)")
    if grid not in get_args(Grid):
        raise ValueError(f"unknown grid {grid!r}; expected 'continuous' or 'integer'")

    # With a ring of zeros both conventions are one interpolation, at different coordinates.
    padded = np.pad(mask, 1)
    coordinates = _integer_coordinates if grid == "integer" else _continuous_coordinates
    left, x = coordinates(box[0], box[2], len(mask), width)
    top, y = coordinates(box[1], box[3], len(mask), height)
    # Transposed, because run lengths go down the columns.
    probabilities = _interpolate(np.ascontiguousarray(_interpolate(padded, y).T), x).T
    inside = probabilities > threshold if grid == "integer" else probabilities >= threshold
    return inside, (top, left)


def paste_and_encode(
    mask: np.ndarray, box: np.ndarray, height: int, width: int, threshold: float = 0.5, grid: Grid = "continuous"
) -> dict:
    """Return the COCO run-length encoding of the full image with one mask pasted; see `paste_mask`."""
    region, origin = paste_mask(mask, box, height, width, threshold, grid)
    return rle.encode(region, origin, (height, width))


def _interpolate(values: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Return `q k`, the rows of `values`, `p k`, linearly interpolated at `q` coordinates in 0..p-1."""
    before = np.minimum(coordinates.astype(np.int64), len(values) - 2)
    fraction = (coordinates - before).astype(np.float32)[:, None]
    result = values[before + 1]
    lower = values[before]
    # In place: new memory for large boxes costs more than the arithmetic.
    result -= lower
    result *= fraction
    result += lower
    return result


def _continuous_coordinates(start: float, stop: float, num_points: int, num_pixels: int) -> tuple[int, np.ndarray]:
    """Return the first pixel that the box touches along one axis, and the pixels' coordinates in the padded mask."""
    if stop <= start:
        return 0, np.zeros(0)
    # The outermost points lie half a cell inside the box and fade to zero over a whole cell.
    half_cell = (stop - start) / num_points / 2
    first = int(np.clip(np.floor(start - half_cell), 0, num_pixels))
    last = int(np.clip(np.ceil(stop + half_cell), first, num_pixels))
    coordinates = (np.arange(first, last) + 0.5 - start) / (stop - start) * num_points + 0.5
    return first, np.clip(coordinates, 0, num_points + 1)


def _integer_coordinates(start: float, stop: float, num_points: int, num_pixels: int) -> tuple[int, np.ndarray]:
    """Return the same where the padded mask is resized to a whole number of pixels."""
    middle, half_length = (start + stop) / 2, (stop - start) / 2 * (num_points + 2) / num_points
    # int() truncates towards zero, as the casts of Detectron and torchvision do.
    low, high = int(middle - half_length), int(middle + half_length)
    length = max(high - low + 1, 1)
    first, last = int(np.clip(low, 0, num_pixels)), int(np.clip(low + length, 0, num_pixels))
    coordinates = (np.arange(first, last) - low + 0.5) * (num_points + 2) / length - 0.5
    return first, np.clip(coordinates, 0, num_points + 1)
