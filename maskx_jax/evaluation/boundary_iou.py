"""Boundary IoU (Cheng et al., CVPR 2021, section 4): masks compared by the bands of pixels along their boundaries."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from maskx_jax.coco import rle

# Width of the band, as a fraction of the image's diagonal.
_DILATION_RATIO = 0.02


class _Boundary(NamedTuple):
    """The band of one mask.

    Attributes:
      region: bool `rows columns`, of the mask's tight box.
      origin: row and column of the region's first pixel in the image.
      num_pixels: in the band.
    """

    region: np.ndarray
    origin: tuple[int, int]
    num_pixels: int


def ious(detected: Sequence[dict], objects: Sequence[dict], is_crowd: Sequence[int], least: float = 0.0) -> np.ndarray:
    """Return how well masks of an image match: the smaller of mask IoU and Boundary IoU.

    Args:
      detected: `d` compressed encodings.
      objects: `g` compressed encodings.
      is_crowd: `g`; with 1, it is the part of a detected mask that lies in the object's. Boundaries do not matter.
      least: what is smaller need not be exact. No boundary is made of a mask that matches less than this.

    Returns:
      float64 `d g`.
    """
    matched = rle.ious(detected, objects, is_crowd)
    compared = np.argwhere((matched > 0) & (matched >= least) & (np.asarray(is_crowd) == 0)).tolist()
    of_detected = {d: _boundary(detected[d]) for d in {d for d, _ in compared}}
    of_objects = {g: _boundary(objects[g]) for g in {g for _, g in compared}}
    for d, g in compared:
        matched[d, g] = min(matched[d, g], _iou(of_detected[d], of_objects[g]))
    return matched


def _boundary(mask: dict) -> _Boundary:
    """Return the pixels of a mask that lie within the band's width of one outside of it, in rows or in columns.

    Nothing outside of the image belongs to a mask.
    """
    region, origin = rle.decode_region(mask)
    # As the authors' code rounds it: a half goes to the even number.
    width = max(1, round(_DILATION_RATIO * math.hypot(*mask["size"])))
    if min(region.shape) > 2 * width:
        # Columns are what lies together in memory.
        columns = region.T.view(np.uint8)
        kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
        inner = cv2.erode(columns, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        region = (columns - inner).view(bool).T
    return _Boundary(region, origin, int(np.count_nonzero(region)))


def _iou(first: _Boundary, second: _Boundary) -> float:
    """Return the IoU of two bands, whose boxes overlap."""
    top, left = np.maximum(first.origin, second.origin)
    parts = [band.region[top - band.origin[0] :, left - band.origin[1] :] for band in (first, second)]
    rows, columns = np.minimum(parts[0].shape, parts[1].shape)
    shared = np.count_nonzero(parts[0][:rows, :columns] & parts[1][:rows, :columns])
    return shared / (first.num_pixels + second.num_pixels - shared)
