"""RoIAlign over a feature pyramid, by one gather from the flattened levels."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from maskx_jax.ops import boxes as box_ops
from maskx_jax.ops.cpu.fusion import late_zeros

# FPN, equation 1: a box of ImageNet's 224 pixels belongs to level 4.
CANONICAL_SIZE = 224.0
CANONICAL_LEVEL = 4

CONVENTIONS = ("torchvision", "detectron", "detectron2")

# Points along each side of a bin, at most, where their number follows the box: all that a box of 28 feature pixels a
# side has in 7 bins, or of 56 in 14. On levels 2 to 4 a square box has 28 at most.
MAX_ADAPTIVE_RATIO = 4

# Boxes that are gathered at a time, by the platform that a program is compiled for: a CPU's cache holds four.
_CHUNK_SIZES = {"cpu": 4, "default": 16}


def assign_levels(boxes: Float[Array, "r 4"], lowest: int, highest: int) -> Int[Array, "r"]:
    """Return the pyramid level of each box (FPN, equation 1)."""
    side = jnp.sqrt(box_ops.area(boxes))
    level = jnp.floor(CANONICAL_LEVEL + jnp.log2(side / CANONICAL_SIZE + 1e-6))
    return jnp.clip(level, lowest, highest).astype(jnp.int32)


class Taps(NamedTuple):
    """Which pixels of its level each bin reads, along either axis.

    Attributes:
      level: the position of each box's level among those of the features.
      rows, columns: of the pixels.
      row_weights, column_weights: their shares; a pixel's share is the product of both.
    """

    level: Int[Array, "r"]
    rows: Int[Array, "r bins taps"]
    row_weights: Float[Array, "r bins taps"]
    columns: Int[Array, "r bins taps"]
    column_weights: Float[Array, "r bins taps"]


def roi_align(
    features: dict[int, Float[Array, "_ _ c"]],
    boxes: Float[Array, "r 4"],
    output_size: int,
    sampling_ratio: int = 2,
    convention: str = "detectron2",
    chunk_size: int | None = None,
) -> Float[Array, "r output_size output_size c"]:
    """Pool each box from its level into `output_size` x `output_size` bins, bilinearly (Mask R-CNN, section 3).

    Equals the compiled rule of torchvision, Detectron and Caffe2: `sampling_ratio ** 2` points a bin; points more than
    one feature pixel outside the map count as 0, nearer ones are moved to its border. No gradient flows to the boxes.

    With a `sampling_ratio` of 0 it is adaptive, as by default in detectron2: about a point for every feature pixel, the
    extent of the box over the number of bins rounded up, though `MAX_ADAPTIVE_RATIO` at most, so that shapes stay
    static. It costs as much as the largest ratio, four times as much as 2.

    The parents disagree on where in the map a box lies:

    - `torchvision`: at its coordinates over the stride; narrower than a feature pixel it is widened to one.
    - `detectron` (also Detectron's Mask^X): so too, but its boxes end at their last pixel, at x2 - 1, y2 - 1.
    - `detectron2`: half a feature pixel up and left, since a feature's value belongs to the middle of its pixel; never
      widened (`aligned=True` elsewhere).

    Args:
      features: one map a level; level `k` has stride 2^k.
      boxes: in pixels of the canvas.
      output_size: bins along each side.
      sampling_ratio: points along each side of a bin; 0 for adaptive.
      convention: one of `CONVENTIONS`.
      chunk_size: boxes that are gathered at a time; bounds the memory. By default 16, and 4 where the program is
        compiled for a CPU.

    Raises:
      ValueError: the convention is unknown.
    """
    return interpolate(features, taps(features, boxes, output_size, sampling_ratio, convention), chunk_size)


def taps(
    features: dict[int, Float[Array, "_ _ c"]],
    boxes: Float[Array, "r 4"],
    output_size: int,
    sampling_ratio: int = 2,
    convention: str = "detectron2",
) -> Taps:
    """Return the pixels that `roi_align` reads.

    Raises:
      ValueError: the convention is unknown.
    """
    level, corners = place_boxes(features, boxes, convention)
    if convention == "detectron2":
        corners -= 0.5
    extent = corners[:, 2:] - corners[:, :2]
    if convention != "detectron2":
        extent = jnp.maximum(extent, 1.0)
    return place_points(features, level, corners[:, :2], extent, output_size, sampling_ratio)


def place_boxes(
    features: dict[int, Float[Array, "_ _ c"]], boxes: Float[Array, "r 4"], convention: str
) -> tuple[Int[Array, "r"], Float[Array, "r 4"]]:
    """Return the position of each box's level among those of the features, and its corners over that level's stride.

    Raises:
      ValueError: the convention is unknown.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"got RoIAlign convention {convention!r}; expected one of {CONVENTIONS}")
    levels = sorted(features)
    level = assign_levels(boxes, levels[0], levels[-1]) - levels[0]
    if convention == "detectron":
        boxes = boxes - jnp.array([0.0, 0.0, 1.0, 1.0], boxes.dtype)
    return level, boxes * jnp.asarray(2.0 ** -np.array(levels), jnp.float32)[level][:, None]


def map_sides(
    features: dict[int, Float[Array, "_ _ c"]], level: Int[Array, "r"]
) -> tuple[Int[Array, "r"], Int[Array, "r"]]:
    """Return height and width of each box's level."""
    height, width = (jnp.array([features[k].shape[axis] for k in sorted(features)])[level] for axis in (0, 1))
    return height, width


def place_points(
    features: dict[int, Float[Array, "_ _ c"]],
    level: Int[Array, "r"],
    start: Float[Array, "r 2"],
    extent: Float[Array, "r 2"],
    output_size: int,
    sampling_ratio: int,
) -> Taps:
    """Return the pixels read by points that are spread evenly over boxes, given in feature pixels as (x, y)."""
    height, width = map_sides(features, level)
    return Taps(
        level,
        *_taps(start[:, 1], extent[:, 1], height, output_size, sampling_ratio),
        *_taps(start[:, 0], extent[:, 0], width, output_size, sampling_ratio),
    )


def interpolate(
    features: dict[int, Float[Array, "_ _ c"]], read: Taps, chunk_size: int | None = None
) -> Float[Array, "r bins bins c"]:
    """Return the weighted sum of the pixels that each bin reads; the chunk size is that of `roi_align`."""
    pooled = _weighted_gather(*flatten(features, read), chunk_size)
    bins = read.rows.shape[1]
    return pooled.reshape(-1, bins, bins, pooled.shape[-1])


def flatten(
    features: dict[int, Float[Array, "_ _ c"]], read: Taps
) -> tuple[Float[Array, "positions c"], Int[Array, "r bins taps"], Float[Array, "r bins taps"]]:
    """Return all levels' pixels in one list, and for each box and bin, row by row, places in it and their weights."""
    pyramid, start, width = flatten_levels(features, read.level)
    start, width = (each[:, None, None, None, None] for each in (start, width))
    index = start + (read.rows[:, :, None, :, None] * width + read.columns[:, None, :, None, :])
    weight = read.row_weights[:, :, None, :, None] * read.column_weights[:, None, :, None, :]
    shape = (len(read.level), read.rows.shape[1] ** 2, -1)
    return pyramid, index.reshape(shape), weight.reshape(shape)


def flatten_levels(
    features: dict[int, Float[Array, "_ _ c"]], level: Int[Array, "r"]
) -> tuple[Float[Array, "positions c"], Int[Array, "r"], Int[Array, "r"]]:
    """Return all levels' pixels in one list, and for each box where its level begins in it and how wide that is."""
    maps = [features[k] for k in sorted(features)]
    starts = np.cumsum([0, *(m.shape[0] * m.shape[1] for m in maps[:-1])])
    pyramid = jnp.concatenate([m.reshape(-1, m.shape[-1]) for m in maps])
    return pyramid, jnp.asarray(starts)[level], jnp.array([m.shape[1] for m in maps])[level]


def _taps(
    start: Float[Array, "r"], extent: Float[Array, "r"], length: Int[Array, "r"], bins: int, ratio: int
) -> tuple[Int[Array, "r bins taps"], Float[Array, "r bins taps"]]:
    """Return along one axis the pixels that each bin reads, and their weights: two for each sampling point."""
    number: Any
    share: Any
    if ratio:
        points, number, share = np.arange(ratio), ratio, 1 / ratio
    else:
        points = np.arange(MAX_ADAPTIVE_RATIO)
        number = jnp.clip(jnp.ceil(extent / bins), 1, MAX_ADAPTIVE_RATIO)[:, None, None]
        # An empty box has no point at all.
        share = jnp.where((points < number) & (extent > 0)[:, None, None], 1 / number, 0.0)
    offsets = (np.arange(bins)[:, None] + (points + 0.5) / number) / bins
    point = start[:, None, None] + jnp.asarray(offsets, jnp.float32) * extent[:, None, None]
    last = (length - 1)[:, None, None]
    inside = (point >= -1.0) & (point <= length[:, None, None])
    point = jnp.clip(point, 0.0, last)
    low = jnp.minimum(jnp.floor(point).astype(jnp.int32), last)
    high = jnp.minimum(low + 1, last)
    fraction = point - low
    pixels = jnp.stack([low, high], axis=-1)
    weights = jnp.stack([1.0 - fraction, fraction], axis=-1) * (inside * share)[..., None]
    return pixels.reshape(*pixels.shape[:2], -1), weights.reshape(*weights.shape[:2], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _weighted_gather(
    source: Float[Array, "positions c"],
    index: Int[Array, "r bins taps"],
    weight: Float[Array, "r bins taps"],
    chunk_size: int | None,
) -> Float[Array, "r bins c"]:
    """Return sum over taps of weight * source[index], a chunk of regions at a time."""
    return in_chunks(_pool, chunk_size, source, index, weight)


def in_chunks(function: Callable[..., Any], chunk_size: int | None, *arrays: Array) -> Any:
    """Call a function of a chunk size and arrays; None is the size for the platform that the program is compiled for.

    That need not be the platform of this process: a program may be exported for another one.
    """
    if chunk_size is not None:
        return function(chunk_size, *arrays)
    sizes = {platform: functools.partial(function, size) for platform, size in _CHUNK_SIZES.items()}
    return jax.lax.platform_dependent(*arrays, **sizes)


def _pool(
    chunk_size: int,
    source: Float[Array, "positions c"],
    index: Int[Array, "r bins taps"],
    weight: Float[Array, "r bins taps"],
) -> Float[Array, "r bins c"]:
    def pool(chunk: tuple[Int[Array, "bins taps"], Float[Array, "bins taps"]]) -> Float[Array, "bins c"]:
        chunk_index, chunk_weight = chunk
        # Highest precision: GPUs and TPUs would round float32 inputs of a product, and this is an interpolation.
        weights = chunk_weight.astype(source.dtype)
        return jnp.einsum("btc,bt->bc", source[chunk_index], weights, precision=jax.lax.Precision.HIGHEST)

    return jax.lax.map(pool, (index, weight), batch_size=min(chunk_size, index.shape[0]))


def _weighted_gather_forward(source, index, weight, chunk_size):
    return _weighted_gather(source, index, weight, chunk_size), (source, index, weight)


def _weighted_gather_backward(chunk_size, residuals, gradient):
    # Written out because the transpose of the loop would add a gradient of the whole pyramid once a chunk.
    return in_chunks(_pull_back, chunk_size, *residuals, gradient), None, None


def _pull_back(
    chunk_size: int,
    source: Float[Array, "positions c"],
    index: Int[Array, "r bins taps"],
    weight: Float[Array, "r bins taps"],
    gradient: Float[Array, "r bins c"],
) -> Float[Array, "positions c"]:
    chunk_size = min(chunk_size, index.shape[0])
    padding = -index.shape[0] % chunk_size

    def chunks(array: Array) -> Array:
        padded = jnp.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))
        return padded.reshape(-1, chunk_size, *array.shape[1:])

    def scatter(total: Array, chunk: tuple[Array, Array, Array]) -> tuple[Array, None]:
        chunk_index, chunk_weight, chunk_gradient = chunk
        update = chunk_weight[..., None] * chunk_gradient[:, :, None, :].astype(jnp.float32)
        return total.at[chunk_index].add(update), None

    zeros = jax.lax.platform_dependent(
        gradient,
        cpu=functools.partial(late_zeros, shape=source.shape),
        default=lambda _: jnp.zeros(source.shape, jnp.float32),
    )
    total, _ = jax.lax.scan(scatter, zeros, (chunks(index), chunks(weight), chunks(gradient)))
    return total.astype(source.dtype)


_weighted_gather.defvjp(_weighted_gather_forward, _weighted_gather_backward)
