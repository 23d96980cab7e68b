"""Convolutions as matrix products, for a CPU.

XLA computes the gradient of a convolution's kernel on CPUs five times more slowly than the convolution itself, and the
convolution more slowly than a product of matrices with as many multiplications. Other accelerators have good
convolutions of their own.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from maskx_jax.ops.cpu.fusion import late_zeros, unknown_zero
from maskx_jax.ops.cpu.platform import largest_divisor

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# What is multiplied at a time: so that it stays in the cache of a core between its making and its use.
_TILE_BYTES = 8 * 2**20
# Below as many channels the transforms of Winograd's algorithm cost more than they save.
_WINOGRAD_CHANNELS = 32
# Below as many outputs Winograd's larger squares have more of the transformed kernel to read than they save.
_LARGE_SQUARES_OUTPUTS = 2048
# Nor where they cover more than this times the map, as in regions of 7 x 7 and 14 x 14.
_LARGE_SQUARES_COVER = 1.1
# Of fewer output channels than this it costs less to add up shifted maps than to gather what each output sees.
_NARROW_OUTPUTS = 16


class _Winograd(NamedTuple):
    """Winograd's algorithm for 3 x 3 kernels: F(m x m, 3 x 3) of Lavin and Gray 2016.

    Attributes:
      side: m of the squares of outputs that are computed at a time.
      kernel, pixels, outputs: the transforms of both axes at once: of a kernel's 9 values, of the pixels that a square
        sees, and of the products to the outputs.
    """

    side: int
    kernel: np.ndarray
    pixels: np.ndarray
    outputs: np.ndarray


def _both_axes(*rows: tuple[float | int, ...]) -> np.ndarray:
    return np.kron(np.array(rows, np.float32), np.array(rows, np.float32))


_WINOGRAD = {
    # 16 multiplications for four outputs in place of 36.
    2: _Winograd(
        2,
        _both_axes((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
        _both_axes((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        _both_axes((1, 1, 1, 0), (0, 1, -1, -1)),
    ),
    # 36 for sixteen, at the points 0, 1, -1, 1/2 and -2, with which it rounds least (Barabasz et al. 2018).
    4: _Winograd(
        4,
        _both_axes(
            (1, 0, 0),
            (1 / 3, 1 / 3, 1 / 3),
            (-1 / 3, 1 / 3, -1 / 3),
            (-16 / 15, -8 / 15, -4 / 15),
            (1 / 15, -2 / 15, 4 / 15),
            (0, 0, 1),
        ),
        _both_axes(
            (1, -1.5, -2, 1.5, 1, 0),
            (0, -1, 0.5, 2.5, 1, 0),
            (0, 1, -2.5, 0.5, 1, 0),
            (0, -2, -1, 2, 1, 0),
            (0, 0.5, -1, -0.5, 1, 0),
            (0, 1, -1.5, -2, 1.5, 1),
        ),
        _both_axes(
            (1, 1, 1, 1, 1, 0),
            (0, 1, -1, 0.5, -2, 0),
            (0, 1, 1, 0.25, 4, 0),
            (0, 1, -1, 0.125, -8, 1),
        ),
    ),
}

Padding = tuple[tuple[int, int], tuple[int, int]]


def convolution(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c_of_group o"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    feature_group_count: int = 1,
    **options: Any,
) -> Float[Array, "b h2 w2 o"]:
    """Convolve as `jax.lax.conv_general_dilated` does, without dilation.

    This is `matrix_convolution` in the place of `flax.linen.Conv`'s argument `conv_general_dilated`: its other options
    come along and must have their defaults.

    Args:
      x, kernel, strides, padding, feature_group_count: as there.
      **options: of Flax.

    Raises:
      ValueError: dilation or another order of dimensions.
    """
    _expect_plain(options)
    (top, bottom), (left, right) = padding
    whole = ((top, bottom), (left, right))
    if feature_group_count == x.shape[-1] == kernel.shape[-1]:
        return depthwise_convolution(x, kernel, (strides[0], strides[1]), whole)
    if feature_group_count > 1:
        return grouped_convolution(x, kernel, (strides[0], strides[1]), whole, feature_group_count)
    return matrix_convolution(x, kernel, (strides[0], strides[1]), whole)


def matrix_convolution(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c o"],
    strides: tuple[int, int],
    padding: Padding,
) -> Float[Array, "b h2 w2 o"]:
    """Convolve by matrix products, forward and backward.

    3 x 3 kernels of float32 by Winograd's algorithm, on large maps with squares of 16 outputs: relative to the largest
    output it rounds to 3e-6 there, and to 7e-7 with the squares of four elsewhere.

    Args:
      x: maps.
      kernel: of the convolution.
      strides: of rows and of columns.
      padding: of rows and of columns, with zeros.
    """
    if kernel.shape[:2] == (1, 1) and padding == ((0, 0), (0, 0)):
        return jnp.einsum("bhwc,co->bhwo", x[:, :: strides[0], :: strides[1]], kernel[0, 0])
    if kernel.shape[3] < _NARROW_OUTPUTS and strides == (1, 1):
        return _narrow(x, kernel, padding)
    return _convolve(x, kernel, strides, padding)


def grouped_convolution(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c_of_group o"],
    strides: tuple[int, int],
    padding: Padding,
    groups: int,
) -> Float[Array, "b h2 w2 o"]:
    """Convolve groups of channels, each with a kernel of its own (ResNeXt, Xie et al. 2017), by matrix products.

    Groups that are too narrow for Winograd's algorithm go together, in a kernel with zeros where an output does not see
    an input: that is faster than many small products.

    Args:
      x, strides, padding: see `matrix_convolution`.
      kernel: of all groups; the outputs of the first come first.
      groups: of equal size.
    """
    height, width, inputs, outputs = kernel.shape
    together = largest_divisor(groups, _WINOGRAD_CHANNELS // inputs)
    blocks = groups // together
    kernels = kernel.reshape(height, width, inputs, blocks, together, -1)
    kernels = jnp.einsum("hwibto,st->bhwsito", kernels, jnp.eye(together, dtype=kernel.dtype))
    kernels = kernels.reshape(blocks, height, width, together * inputs, outputs // blocks)
    maps = jnp.moveaxis(x.reshape(*x.shape[:3], blocks, -1), 3, 0)
    y = jax.lax.map(lambda block: _convolve(*block, strides, padding), (maps, kernels))
    return jnp.moveaxis(y, 0, 3).reshape(*y.shape[1:4], outputs)


def depthwise_convolution(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw 1 c"], strides: tuple[int, int], padding: Padding
) -> Float[Array, "b h2 w2 c"]:
    """Convolve each channel with a kernel of its own: a sum of shifted maps, which the compiler makes one loop of.

    Args:
      x, strides, padding: see `matrix_convolution`.
      kernel: of each channel.
    """
    height, width = kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = ((x.shape[i + 1] - kernel.shape[i]) // strides[i] + 1 for i in (0, 1))
    shifted = (
        x[:, i : i + (rows - 1) * strides[0] + 1 : strides[0], j : j + (columns - 1) * strides[1] + 1 : strides[1]]
        * kernel[i, j, 0]
        for i in range(height)
        for j in range(width)
    )
    return functools.reduce(jnp.add, shifted)


def _narrow(x: Array, kernel: Array, padding: Padding) -> Array:
    """Convolve with few outputs: multiply by the whole kernel at every pixel, and add up what each output gets."""
    height, width, inputs, outputs = kernel.shape
    products = _float32_einsum("bhwc,co->bhwo", x, kernel.transpose(2, 0, 1, 3).reshape(inputs, -1))
    products = jnp.pad(products, ((0, 0), *padding, (0, 0)))
    rows, columns = products.shape[1] - height + 1, products.shape[2] - width + 1
    shifted = (
        products[:, i : i + rows, j : j + columns, (i * width + j) * outputs : (i * width + j + 1) * outputs]
        for i in range(height)
        for j in range(width)
    )
    return functools.reduce(jnp.add, shifted).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding) -> Array:
    if _is_winograd(x, kernel, strides):
        return _winograd(x, kernel, padding)
    windows = _windows(x, kernel.shape[:2], strides, padding)
    flat = kernel.reshape(-1, kernel.shape[-1])
    tiles = _map_tiles(lambda index: _columns(windows, index) @ flat, windows.number, x)
    height = (x.shape[1] + sum(padding[0]) - kernel.shape[0]) // strides[0] + 1
    return tiles.reshape(*windows.output, -1)[:, :height]


def _forward(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, strides, padding), (x, kernel)


def _backward(
    strides: tuple[int, int], padding: Padding, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    x_gradient = _input_gradient(x, kernel, gradient, strides, padding)
    if _is_winograd(x, kernel, strides):
        return x_gradient, _winograd_kernel_gradient(x, kernel, gradient, padding)
    return x_gradient, _kernel_gradient(x, kernel, gradient, strides, padding)


_convolve.defvjp(_forward, _backward)


def _input_gradient(x: Array, kernel: Array, gradient: Array, strides: tuple[int, int], padding: Padding) -> Array:
    height, width = kernel.shape[:2]
    (top, bottom), (left, right) = padding
    if strides == (1, 1) and max(top, bottom) < height and max(left, right) < width:
        # A convolution too, with the kernel turned around.
        turned = kernel[::-1, ::-1].swapaxes(2, 3)
        around = ((height - 1 - top, height - 1 - bottom), (width - 1 - left, width - 1 - right))
        return _convolve(gradient, turned, strides, around)
    _, pull_back = jax.vjp(
        lambda x: jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_DIMENSIONS), x
    )
    x_gradient: Array = pull_back(gradient)[0]
    return x_gradient


def _kernel_gradient(x: Array, kernel: Array, gradient: Array, strides: tuple[int, int], padding: Padding) -> Array:
    # Padded anew: what the forward pass saw would be kept for it, besides x.
    windows = _windows(x, kernel.shape[:2], strides, padding, unknown_zero(gradient))

    def tile_product(index: Array, outputs_gradient: Array) -> Array:
        return _float32_einsum("pi,po->io", _columns(windows, index), outputs_gradient)

    gradient = jnp.pad(gradient, ((0, 0), (0, windows.output[1] - gradient.shape[1]), (0, 0), (0, 0)))
    gradients = gradient.reshape(windows.number, -1, kernel.shape[3])
    total = _sum_over_tiles(tile_product, gradients, (math.prod(kernel.shape[:3]), kernel.shape[3]))
    return total.reshape(kernel.shape).astype(kernel.dtype)


def _is_winograd(x: Array, kernel: Array, strides: tuple[int, int]) -> bool:
    """Say whether Winograd's algorithm applies."""
    *size, inputs, outputs = kernel.shape
    wide = min(inputs, outputs) >= _WINOGRAD_CHANNELS
    return size == [3, 3] and strides == (1, 1) and wide and x.dtype == jnp.float32


def _winograd(x: Array, kernel: Array, padding: Padding) -> Array:
    algorithm, windows, (height, width) = _squares(x, padding)
    side = algorithm.side
    inputs, outputs = kernel.shape[2:]
    # Kernels are there from the beginning: the compiler would transform them all before anything else.
    transformed = jnp.matmul(algorithm.kernel + unknown_zero(x), kernel.reshape(9, -1)).reshape(-1, inputs, outputs)

    def tile_product(index: Array) -> Array:
        pixels = _transformed_windows(algorithm, windows, index)
        products = jnp.einsum("kpi,kio->kpo", pixels, transformed)
        values = jnp.matmul(algorithm.outputs, products.reshape(len(products), -1))
        return values.reshape(side, side, -1, windows.output[2], outputs).transpose(2, 0, 3, 1, 4)

    tiles = _map_tiles(tile_product, windows.number, x)
    images, rows, columns = windows.output
    return tiles.reshape(images, side * rows, side * columns, outputs)[:, :height, :width]


def _winograd_kernel_gradient(x: Array, kernel: Array, gradient: Array, padding: Padding) -> Array:
    # Padded and transformed anew: what the forward pass saw would be kept for it, besides x.
    algorithm, windows, (height, width) = _squares(x, padding, unknown_zero(gradient))
    side, count = algorithm.side, len(algorithm.pixels)
    inputs, outputs = kernel.shape[2:]
    _, rows, columns = windows.output
    gradient = jnp.pad(gradient, ((0, 0), (0, side * rows - height), (0, side * columns - width), (0, 0)))

    def tile_product(index: Array, squares_gradient: Array) -> Array:
        squares_gradient = squares_gradient.transpose(1, 3, 0, 2, 4).reshape(side * side, -1)
        products_gradient = jnp.matmul(algorithm.outputs.T, squares_gradient).reshape(count, -1, outputs)
        pixels = _transformed_windows(algorithm, windows, index)
        return _float32_einsum("kpi,kpo->kio", pixels, products_gradient)

    gradients = gradient.reshape(windows.number, -1, side, columns, side, outputs)
    total = _sum_over_tiles(tile_product, gradients, (count, inputs, outputs))
    return jnp.matmul(algorithm.kernel.T, total.reshape(count, -1)).reshape(kernel.shape)


def _squares(x: Array, padding: Padding, zero: Array | float = 0.0) -> tuple[_Winograd, "_Windows", tuple[int, int]]:
    """Return the algorithm, the windows that squares of outputs see, and height and width of the output.

    Padding is with `zero`.
    """
    (top, bottom), (left, right) = padding
    height, width = x.shape[1] + top + bottom - 2, x.shape[2] + left + right - 2
    side = _square_side(len(x), height, width)
    whole = ((top, bottom + -height % side), (left, right + -width % side))
    return _WINOGRAD[side], _windows(x, (side + 2, side + 2), (side, side), whole, zero), (height, width)


def _square_side(images: int, height: int, width: int) -> int:
    """Return the side of the squares of outputs that are computed at a time, 4 or 2."""
    covered = math.ceil(height / 4) * math.ceil(width / 4) * 16
    pays = images * height * width >= _LARGE_SQUARES_OUTPUTS and covered <= _LARGE_SQUARES_COVER * height * width
    return 4 if pays else 2


def _transformed_windows(algorithm: _Winograd, windows: "_Windows", index: Array) -> Float[Array, "pixels windows c"]:
    pixels = jnp.stack(windows.pixels(index))
    transformed = jnp.matmul(algorithm.pixels, pixels.reshape(len(pixels), -1))
    return transformed.reshape(len(pixels), -1, pixels.shape[-1])


def _columns(windows: "_Windows", index: Array) -> Float[Array, "windows inputs"]:
    """Return what the windows of a tile see, a row each."""
    pixels = jnp.concatenate(windows.pixels(index), axis=-1)
    return pixels.reshape(-1, pixels.shape[-1])


def _float32_einsum(equation: str, *arrays: Array) -> Array:
    return jnp.einsum(equation, *arrays, preferred_element_type=jnp.float32)


def _map_tiles(tile_product: Callable[[Array], Array], number: int, x: Array) -> Float[Array, "tiles ..."]:
    """Return the results for all tiles of x."""
    tile = jax.eval_shape(tile_product, jnp.int32(0))

    def add(index: Array, tiles: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(tiles, tile_product(index), index, 0)

    return jax.lax.fori_loop(0, number, add, late_zeros(x, (number, *tile.shape), tile.dtype))


def _sum_over_tiles(tile_product: Callable[[Array, Array], Array], gradients: Array, shape: tuple[int, ...]) -> Array:
    def add(total: Array, tile: tuple[Array, Array]) -> tuple[Array, None]:
        return total + tile_product(*tile), None

    total, _ = jax.lax.scan(add, late_zeros(gradients, shape), (jnp.arange(len(gradients)), gradients))
    return total


class _Windows(NamedTuple):
    """What the outputs of a convolution see, in tiles: those of some images, or of some rows of one image.

    Attributes:
      number: of tiles, in the order of memory.
      pixels: returns for each pixel of a window its values in a tile, `images rows columns c`.
      output: images, rows and columns of windows. The last rows may lie below the map.
    """

    number: int
    pixels: Callable[[Int[Array, ""]], list[Array]]
    output: tuple[int, int, int]


def _windows(
    x: Array, size: tuple[int, ...], strides: tuple[int, int], padding: Padding, zero: Array | float = 0.0
) -> _Windows:
    images, *sides, channels = x.shape
    sides = [side + sum(around) for side, around in zip(sides, padding, strict=True)]
    height, width = ((side - k) // stride + 1 for side, k, stride in zip(sides, size, strides, strict=True))
    row_bytes = width * math.prod(size) * channels * x.dtype.itemsize
    rows = _tile_rows(height, _TILE_BYTES // row_bytes)
    height += -height % rows
    (top, bottom), columns = padding
    below = max((height - 1) * strides[0] + size[0] - sides[0], 0)
    x = jnp.pad(x, ((0, 0), (top, bottom + below), columns, (0, 0)), constant_values=zero)
    together = largest_divisor(images, _TILE_BYTES // (row_bytes * height)) if rows == height else 1
    read = ((rows - 1) * strides[0] + size[0], x.shape[2])
    below, beside = (rows - 1) * strides[0] + 1, (width - 1) * strides[1] + 1

    def pixels(index: Int[Array, ""]) -> list[Array]:
        image, row = jnp.divmod(index, height // rows)
        start = (image * together, row * (rows * strides[0]), 0, 0)
        seen = jax.lax.dynamic_slice(x, start, (together, *read, channels))
        return [
            seen[:, i : i + below : strides[0], j : j + beside : strides[1]]
            for i in range(size[0])
            for j in range(size[1])
        ]

    return _Windows(images // together * (height // rows), pixels, (images, height, width))


def _tile_rows(height: int, limit: int) -> int:
    """Return how many rows a tile has: at most `limit`, or 1.

    Equal tiles of all rows, unless they would have less than half of what a tile may have: each tile reads the whole
    kernel. Then the last one may go beyond the end.
    """
    rows = largest_divisor(height, limit)
    return rows if 2 * rows >= limit else math.ceil(height / math.ceil(height / limit))


def _expect_plain(options: dict[str, Any]) -> None:
    for name, value in options.items():
        plain = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}.get(name, value)
        if value is not None and (tuple(value) if isinstance(value, Sequence) else value) != plain:
            raise ValueError(f"got {name} {value!r} of a convolution; expected {plain!r}")
