"""What came before RoIAlign, and RoIAlign with a maximum: the ablations of Mask R-CNN, table 2c.

All take the arguments of `roi_align.roi_align`, and assign boxes to levels as it does.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from maskx_jax.ops import roi_align as align


class Bins(NamedTuple):
    """Which pixels of its level each bin of RoIPool has: rows from `top` to before `bottom`, columns likewise.

    Attributes:
      start: where the level of each box begins in the list of all levels' pixels.
      width: of that level.
      top, bottom, left, right: of the bins.
    """

    start: Int[Array, "r"]
    width: Int[Array, "r"]
    top: Int[Array, "r bins"]
    bottom: Int[Array, "r bins"]
    left: Int[Array, "r bins"]
    right: Int[Array, "r bins"]


def roi_pool(
    features: dict[int, Float[Array, "_ _ c"]],
    boxes: Float[Array, "r 4"],
    output_size: int,
    sampling_ratio: int = 2,
    convention: str = "detectron2",
    chunk_size: int | None = None,
) -> Float[Array, "r output_size output_size c"]:
    """Return the maximum of the feature pixels of each bin (Fast R-CNN, section 2.1).

    Equals the compiled rule of torchvision, Detectron and Caffe2. The corners of a box are rounded to whole feature
    pixels, of which it has all from the first to the last; so are those of its bins, outwards: neighbours share a row
    or a column where the pixels do not divide evenly. A bin outside the map is 0. The gradient goes to the first of
    equal pixels; none flows to the boxes.

    It costs what the largest box of a chunk does. Under `jax.vmap` all images take as long as the slowest, and a batch
    that is split over devices needs `per_image.per_image`.

    Args:
      features: one map a level; level `k` has stride 2^k.
      boxes: in pixels of the canvas.
      output_size: bins along each side.
      sampling_ratio: has no meaning here: every pixel is read.
      convention: one of `roi_align.CONVENTIONS`; half a pixel of shift, and widening, are not RoIPool's.
      chunk_size: see `roi_align.roi_align`.

    Raises:
      ValueError: the convention is unknown.
    """
    level, corners = align.place_boxes(features, boxes, convention)
    first, number = whole_pixels(corners)
    height, width = align.map_sides(features, level)
    pyramid, start, _ = align.flatten_levels(features, level)
    bins = Bins(
        start,
        width,
        *_bin_edges(first[:, 1], number[:, 1], height, output_size),
        *_bin_edges(first[:, 0], number[:, 0], width, output_size),
    )
    return _largest(pyramid, bins, chunk_size)


def roi_warp(
    features: dict[int, Float[Array, "_ _ c"]],
    boxes: Float[Array, "r 4"],
    output_size: int,
    sampling_ratio: int = 2,
    convention: str = "detectron2",
    chunk_size: int | None = None,
) -> Float[Array, "r output_size output_size c"]:
    """Return the mean of points that are spread evenly over the whole feature pixels of each box, bilinearly.

    That is RoIWarp (Dai et al. 2016, section 3.2, "MNC") as Mask R-CNN compares it: the box is quantised as
    `roi_pool` does it, its bins are not. Where a box has a feature pixel for each point, it is read as it is.

    The arguments are those of `roi_align.roi_align`; the convention says where a box ends.

    Raises:
      ValueError: the convention is unknown.
    """
    level, corners = align.place_boxes(features, boxes, convention)
    first, number = whole_pixels(corners)
    # The value of a pixel belongs to its middle: from half a pixel before the first to half a pixel after the last.
    read = align.place_points(features, level, first - 0.5, number.astype(jnp.float32), output_size, sampling_ratio)
    return align.interpolate(features, read, chunk_size)


def largest_point(operation: Any) -> Any:
    """Return RoIAlign, or RoIWarp, with the largest of a bin's points in place of their mean.

    The result raises ValueError where the sampling ratio is not 1 or more: a number of points that follows the box has
    no static shape.
    """

    def pool(
        features: dict[int, Float[Array, "_ _ c"]],
        boxes: Float[Array, "r 4"],
        output_size: int,
        sampling_ratio: int = 2,
        *arguments: Any,
    ) -> Float[Array, "r output_size output_size c"]:
        if sampling_ratio < 1:
            raise ValueError(f"got sampling_ratio {sampling_ratio}; expected 1 or more for the largest of some points")
        # Each point is a bin of its own.
        points = operation(features, boxes, output_size * sampling_ratio, 1, *arguments)
        shape = (len(boxes), output_size, sampling_ratio, output_size, sampling_ratio, -1)
        return points.reshape(shape).max(axis=(2, 4))

    return pool


roi_align_max = largest_point(align.roi_align)
roi_warp_max = largest_point(roi_warp)


def whole_pixels(corners: Float[Array, "r 4"]) -> tuple[Int[Array, "r 2"], Int[Array, "r 2"]]:
    """Return the first whole feature pixel of each box and how many it has, 1 at least, both as (x, y).

    Halves are rounded away from zero, as in C.
    """
    whole = jnp.trunc(corners)
    rounded = (whole + jnp.where(jnp.abs(corners - whole) >= 0.5, jnp.sign(corners), 0.0)).astype(jnp.int32)
    first, last = rounded[:, :2], rounded[:, 2:]
    return first, jnp.maximum(last - first + 1, 1)


def _bin_edges(
    first: Int[Array, "r"], number: Int[Array, "r"], length: Int[Array, "r"], bins: int
) -> tuple[Int[Array, "r bins"], Int[Array, "r bins"]]:
    """Return along one axis the first pixel of each bin, and the one after its last."""
    # In float32, whose rounding is part of the rule. By a constant XLA would not divide, but multiply by its inverse.
    no_constant = jnp.where(number > 0, jnp.float32(bins), 1.0)
    size = (number.astype(jnp.float32) / no_constant)[:, None]
    edge = np.arange(bins + 1, dtype=np.float32)
    low, high = jnp.floor(edge[:-1] * size), jnp.ceil(edge[1:] * size)
    low, high = (jnp.clip(each.astype(jnp.int32) + first[:, None], 0, length[:, None]) for each in (low, high))
    return low, high


# Written out because JAX cannot differentiate a loop of a number of turns that is known only when it runs.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _largest(source: Float[Array, "positions c"], bins: Bins, chunk_size: int | None) -> Float[Array, "r bins bins c"]:
    """Return the largest of the pixels of each bin, 0 where there is none."""
    return _find_largest(source, bins, chunk_size)[0]


def _find_largest(
    source: Float[Array, "positions c"], bins: Bins, chunk_size: int | None
) -> tuple[Float[Array, "r bins bins c"], Int[Array, "r bins bins c"]]:
    """Return the largest pixels and their places in the source, which are beyond its end where there is none."""

    def chunks(size: int, source: Array, *bins: Array) -> tuple[Array, Array]:
        number = len(bins[0])
        return jax.lax.map(lambda box: _look_through(source, Bins(*box)), bins, batch_size=min(size, number))

    return align.in_chunks(chunks, chunk_size, source, *bins)


def _look_through(source: Any, box: Any) -> tuple[Array, Array]:
    """Look at one pixel of every bin of a box at a time, row by row."""
    num_rows, num_columns = (box.bottom - box.top).max(), (box.right - box.left).max()

    def look(turn: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        row, column = (box.top + turn // num_columns)[:, None], (box.left + turn % num_columns)[None, :]
        inside = (row < box.bottom[:, None]) & (column < box.right[None, :])
        index = jnp.where(inside, box.start + row * box.width + column, 0)
        value = source[index]
        better = inside[..., None] & (value > best[0])
        return jnp.where(better, value, best[0]), jnp.where(better, index[..., None], best[1])

    shape = (len(box.top), len(box.left), source.shape[-1])
    nothing = jnp.full(shape, -jnp.inf, source.dtype), jnp.full(shape, len(source), jnp.int32)
    value, index = jax.lax.fori_loop(0, num_rows * num_columns, look, nothing)
    return jnp.where(index < len(source), value, 0), index


def _forward(source: Any, bins: Bins, chunk_size: int | None) -> tuple[Array, tuple[Array, Array]]:
    value, index = _find_largest(source, bins, chunk_size)
    return value, (source, index)


def _backward(chunk_size: int | None, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, None]:
    source, index = residuals
    zeros = jnp.zeros(source.shape, jnp.float32)
    total = zeros.at[index, jnp.arange(source.shape[-1])].add(gradient.astype(jnp.float32), mode="drop")
    return total.astype(source.dtype), None


_largest.defvjp(_forward, _backward)
