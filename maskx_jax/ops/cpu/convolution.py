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

from maskx_jax.ops.cpu.platform import largest_divisor

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# What is multiplied at a time: so that it stays in the cache of a core between its making and its use.
_TILE_BYTES = 8 * 2**20
# Below as many channels the transforms of Winograd's algorithm cost more than they save.
_WINOGRAD_CHANNELS = 32


def _both_axes(*rows: tuple[float, ...]) -> np.ndarray:
    return np.kron(np.array(rows, np.float32), np.array(rows, np.float32))


# F(2 x 2, 3 x 3) of Lavin and Gray 2016, the transforms of both axes at once: of a kernel's 9 values, of the 16 pixels
# that a square of four outputs sees, and of the 16 products to the four outputs.
_KERNEL_TRANSFORM = _both_axes((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
_INPUT_TRANSFORM = _both_axes((1.0, 0.0, -1.0, 0.0), (0.0, 1.0, 1.0, 0.0), (0.0, -1.0, 1.0, 0.0), (0.0, 1.0, 0.0, -1.0))
_OUTPUT_TRANSFORM = _both_axes((1.0, 1.0, 1.0, 0.0), (0.0, 1.0, -1.0, -1.0))

Padding = tuple[tuple[int, int], tuple[int, int]]


def convolution(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c o"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b h2 w2 o"]:
    """Convolve as `jax.lax.conv_general_dilated` does, without dilation or groups.

    This is `matrix_convolution` in the place of `flax.linen.Conv`'s argument `conv_general_dilated`: its other options
    come along and must have their defaults.

    Raises:
      ValueError: dilation, groups or another order of dimensions.
    """
    _expect_plain(options)
    (top, bottom), (left, right) = padding
    return matrix_convolution(x, kernel, (strides[0], strides[1]), ((top, bottom), (left, right)))


def matrix_convolution(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw c o"], strides: tuple[int, int], padding: Padding
) -> Float[Array, "b h2 w2 o"]:
    """Convolve by matrix products, forward and backward."""
    if kernel.shape[:2] == (1, 1) and padding == ((0, 0), (0, 0)):
        return jnp.einsum("bhwc,co->bhwo", x[:, :: strides[0], :: strides[1]], kernel[0, 0])
    return _convolve(x, kernel, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding) -> Array:
    if _is_winograd(x, kernel, strides):
        return _winograd(x, kernel, padding)
    windows = _windows(x, kernel.shape[:2], strides, padding)
    flat = kernel.reshape(-1, kernel.shape[-1])
    tiles = jax.lax.map(lambda index: _columns(windows, index) @ flat, jnp.arange(windows.number))
    return tiles.reshape(*windows.output, -1)


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
    windows = _windows(x, kernel.shape[:2], strides, padding)

    def tile_product(index: Array, outputs_gradient: Array) -> Array:
        return _float32_einsum("pi,po->io", _columns(windows, index), outputs_gradient)

    gradients = gradient.reshape(windows.number, -1, kernel.shape[3])
    total = _sum_over_tiles(tile_product, gradients, (math.prod(kernel.shape[:3]), kernel.shape[3]))
    return total.reshape(kernel.shape).astype(kernel.dtype)


def _is_winograd(x: Array, kernel: Array, strides: tuple[int, int]) -> bool:
    """Say whether Winograd's algorithm applies, with 16 multiplications for four outputs in place of 36."""
    *size, inputs, outputs = kernel.shape
    wide = min(inputs, outputs) >= _WINOGRAD_CHANNELS
    return size == [3, 3] and strides == (1, 1) and wide and x.dtype == jnp.float32


def _winograd(x: Array, kernel: Array, padding: Padding) -> Array:
    windows, (height, width) = _squares(x, padding)
    inputs, outputs = kernel.shape[2:]
    transformed = jnp.matmul(_KERNEL_TRANSFORM, kernel.reshape(9, -1)).reshape(16, inputs, outputs)

    def tile_product(index: Array) -> Array:
        pixels = _transformed_windows(windows, index)
        products = jnp.einsum("kpi,kio->kpo", pixels, transformed)
        squares = jnp.matmul(_OUTPUT_TRANSFORM, products.reshape(16, -1)).reshape(2, 2, -1, windows.output[2], outputs)
        return squares.transpose(2, 0, 3, 1, 4)

    tiles = jax.lax.map(tile_product, jnp.arange(windows.number))
    images, rows, columns = windows.output
    return tiles.reshape(images, 2 * rows, 2 * columns, outputs)[:, :height, :width]


def _winograd_kernel_gradient(x: Array, kernel: Array, gradient: Array, padding: Padding) -> Array:
    windows, (height, width) = _squares(x, padding)
    inputs, outputs = kernel.shape[2:]
    _, rows, columns = windows.output
    gradient = jnp.pad(gradient, ((0, 0), (0, 2 * rows - height), (0, 2 * columns - width), (0, 0)))

    def tile_product(index: Array, squares_gradient: Array) -> Array:
        squares_gradient = squares_gradient.transpose(1, 3, 0, 2, 4).reshape(4, -1)
        products_gradient = jnp.matmul(_OUTPUT_TRANSFORM.T, squares_gradient).reshape(16, -1, outputs)
        return _float32_einsum("kpi,kpo->kio", _transformed_windows(windows, index), products_gradient)

    gradients = gradient.reshape(windows.number, -1, 2, columns, 2, outputs)
    total = _sum_over_tiles(tile_product, gradients, (16, inputs, outputs))
    return jnp.matmul(_KERNEL_TRANSFORM.T, total.reshape(16, -1)).reshape(kernel.shape)


def _squares(x: Array, padding: Padding) -> tuple["_Windows", tuple[int, int]]:
    """Return the windows of 4 x 4 pixels that squares of four outputs see, and height and width of the output."""
    (top, bottom), (left, right) = padding
    height, width = x.shape[1] + top + bottom - 2, x.shape[2] + left + right - 2
    even = ((top, bottom + height % 2), (left, right + width % 2))
    return _windows(x, (4, 4), (2, 2), even), (height, width)


def _transformed_windows(windows: "_Windows", index: Array) -> Float[Array, "16 windows c"]:
    pixels = jnp.stack(windows.pixels(index))
    return jnp.matmul(_INPUT_TRANSFORM, pixels.reshape(16, -1)).reshape(16, -1, pixels.shape[-1])


def _columns(windows: "_Windows", index: Array) -> Float[Array, "windows inputs"]:
    """Return what the windows of a tile see, a row each."""
    pixels = jnp.concatenate(windows.pixels(index), axis=-1)
    return pixels.reshape(-1, pixels.shape[-1])


def _float32_einsum(equation: str, *arrays: Array) -> Array:
    return jnp.einsum(equation, *arrays, preferred_element_type=jnp.float32)


def _sum_over_tiles(tile_product: Callable[[Array, Array], Array], gradients: Array, shape: tuple[int, ...]) -> Array:
    def add(total: Array, tile: tuple[Array, Array]) -> tuple[Array, None]:
        return total + tile_product(*tile), None

    total, _ = jax.lax.scan(add, jnp.zeros(shape, jnp.float32), (jnp.arange(len(gradients)), gradients))
    return total


class _Windows(NamedTuple):
    """What the outputs of a convolution see, in tiles: those of some images, or of some rows of one image.

    Attributes:
      number: of tiles, in the order of memory.
      pixels: returns for each pixel of a window its values in a tile, `images rows columns c`.
      output: images, rows and columns of windows.
    """

    number: int
    pixels: Callable[[Int[Array, ""]], list[Array]]
    output: tuple[int, int, int]


def _windows(x: Array, size: tuple[int, ...], strides: tuple[int, int], padding: Padding) -> _Windows:
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    images, _, _, channels = x.shape
    height, width = ((side - k) // stride + 1 for side, k, stride in zip(x.shape[1:3], size, strides, strict=True))
    row_bytes = width * math.prod(size) * channels * x.dtype.itemsize
    rows = largest_divisor(height, _TILE_BYTES // row_bytes)
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


def _expect_plain(options: dict[str, Any]) -> None:
    for name, value in options.items():
        plain = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "feature_group_count": 1}.get(name, value)
        if value is not None and (tuple(value) if isinstance(value, Sequence) else value) != plain:
            raise ValueError(f"got {name} {value!r} of a convolution; expected {plain!r}")
