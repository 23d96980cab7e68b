"""Anchor boxes of a feature pyramid."""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

CONVENTIONS = ("torchvision", "detectron", "detectron2")


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float], stride: int, convention: str) -> np.ndarray:
    """Return the anchors of the top-left cell, float32 `len(sizes)*len(aspect_ratios) 4`.

    The parents disagree on their order: with `detectron2` those of one size follow each other, else those of one aspect
    ratio. And they disagree by fractions of a pixel:

    - `torchvision`: centred on (0, 0), corners rounded to integers.
    - `detectron2`: centred on (0, 0), not rounded.
    - `detectron` (also Detectron's Mask^X): centred on the middle of the stride's window, which is first given the
      aspect ratio with rounded sides, then scaled. Detectron's inclusive corners become continuous: x2 + 1, y2 + 1.

    Args:
      sizes: square roots of the areas, in pixels.
      aspect_ratios: height over width.
      stride: of the level, in pixels.
      convention: one of `CONVENTIONS`.

    Raises:
      ValueError: the convention is unknown.
    """
    outer, inner = (sizes, aspect_ratios) if convention == "detectron2" else (aspect_ratios, sizes)
    pairs = np.array(list(itertools.product(outer, inner)), np.float64)
    size, ratios = pairs.T if convention == "detectron2" else pairs.T[::-1]
    if convention == "detectron":
        width = np.round(np.sqrt(stride * stride / ratios))
        height = np.round(width * ratios)
        half = 0.5 * np.stack([width, height], axis=-1) * (size / stride)[:, None]
        # (stride - 1) / 2 is the middle of inclusive corners 0..stride-1, the half pixel more is the change of
        # convention: the two together are the middle of the window.
        anchors = np.concatenate([stride / 2 - half, stride / 2 + half], axis=-1)
    elif convention in ("torchvision", "detectron2"):
        half = 0.5 * size[:, None] * np.stack([1 / np.sqrt(ratios), np.sqrt(ratios)], axis=-1)
        anchors = np.concatenate([-half, half], axis=-1)
        if convention == "torchvision":
            anchors = np.round(anchors)
    else:
        raise ValueError(f"got anchor convention {convention!r}; expected one of {CONVENTIONS}")
    return anchors.astype(np.float32)


def grid_strides(canvas: tuple[int, int], cells: tuple[int, int], stride: int, convention: str) -> tuple[int, int]:
    """Return the strides of a level's grid along rows and columns.

    They are the level's stride, save with `torchvision`: there they are the sides of the canvas over those of the map,
    rounded down, which is less on P6 where the canvas is no multiple of 64 (800 pixels over 13 rows make 61).

    Args:
      canvas: height and width in pixels.
      cells: height and width of the map.
      stride: of the level.
      convention: one of `CONVENTIONS`.
    """
    if convention != "torchvision":
        return stride, stride
    return canvas[0] // cells[0], canvas[1] // cells[1]


def grid_anchors(cell: np.ndarray, height: int, width: int, strides: tuple[int, int]) -> Float[Array, "a 4"]:
    """Repeat a cell's anchors over a feature map, row by row: index (row * width + column) * len(cell) + k.

    Args:
      cell: anchors of the top-left cell.
      height: rows of the map.
      width: columns of the map.
      strides: pixels from one row to the next, and from one column to the next.
    """
    y = jnp.arange(height, dtype=jnp.float32) * strides[0]
    x = jnp.arange(width, dtype=jnp.float32) * strides[1]
    shifts = jnp.stack([*jnp.meshgrid(x, y)] * 2, axis=-1)
    return (shifts[:, :, None, :] + cell).reshape(-1, 4)
