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
from jaxtyping import Array, Float, Int

from maskx_jax.ops.platform import on_one_cpu

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# What is multiplied at a time: so that it stays in the cache of a core between its making and its use.
_COLUMNS_BYTES = 8 * 2**20

Padding = tuple[tuple[int, int], tuple[int, int]]


def convolution(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c o"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b h2 w2 o"]:
    """Convolve as `jax.lax.conv_general_dilated` does, without dilation or groups.

    On one CPU device this is `matrix_convolution`, elsewhere XLA's own convolution. Its place is `flax.linen.Conv`'s
    argument `conv_general_dilated`, whose other options come along and must have their defaults.

    Raises:
      ValueError: dilation, groups or another order of dimensions on a CPU.
    """
    if on_one_cpu():
        _expect_plain(options)
        (top, bottom), (left, right) = padding
        return matrix_convolution(x, kernel, (strides[0], strides[1]), ((top, bottom), (left, right)))
    plain: Array = jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    return plain


def matrix_convolution(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw c o"], strides: tuple[int, int], padding: Padding
) -> Float[Array, "b h2 w2 o"]:
    """Convolve by matrix products, forward and backward."""
    if kernel.shape[:2] == (1, 1) and padding == ((0, 0), (0, 0)):
        return jnp.einsum("bhwc,co->bhwo", x[:, :: strides[0], :: strides[1]], kernel[0, 0])
    return _convolve(x, kernel, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding) -> Array:
    tiles = _tiles(x, kernel, strides, padding)
    flat = kernel.reshape(-1, kernel.shape[-1])

    def of_tile(index: Int[Array, ""]) -> Array:
        return tiles.columns(index) @ flat

    return jax.lax.map(of_tile, jnp.arange(tiles.number)).reshape(*tiles.output, -1)


def _forward(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, strides, padding), (x, kernel)


def _backward(
    strides: tuple[int, int], padding: Padding, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    return _gradient_of_x(x, kernel, gradient, strides, padding), _gradient_of_kernel(
        x, kernel, gradient, strides, padding
    )


_convolve.defvjp(_forward, _backward)


def _gradient_of_x(x: Array, kernel: Array, gradient: Array, strides: tuple[int, int], padding: Padding) -> Array:
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
    of_x: Array = pull_back(gradient)[0]
    return of_x


def _gradient_of_kernel(x: Array, kernel: Array, gradient: Array, strides: tuple[int, int], padding: Padding) -> Array:
    tiles = _tiles(x, kernel, strides, padding)

    def add(total: Array, index_and_gradient: tuple[Array, Array]) -> tuple[Array, None]:
        index, of_tile = index_and_gradient
        product = jax.lax.dot_general(
            tiles.columns(index), of_tile, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        return total + product, None

    zeros = jnp.zeros((math.prod(kernel.shape[:3]), kernel.shape[3]), jnp.float32)
    of_tiles = gradient.reshape(tiles.number, -1, kernel.shape[3])
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(tiles.number), of_tiles))
    return total.reshape(kernel.shape).astype(kernel.dtype)


class _Tiles(NamedTuple):
    """A convolution's output in tiles: some images, or some rows of one image.

    Attributes:
      number: of tiles, in the order of memory.
      columns: returns what a tile's pixels see, `pixels kh*kw*c`.
      output: images, height and width of the output.
    """

    number: int
    columns: Callable[[Int[Array, ""]], Float[Array, "pixels inputs"]]
    output: tuple[int, int, int]


def _tiles(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding) -> _Tiles:
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    images, _, _, channels = x.shape
    size = kernel.shape[:2]
    height, width = ((side - k) // stride + 1 for side, k, stride in zip(x.shape[1:3], size, strides, strict=True))
    row_bytes = width * math.prod(size) * channels * x.dtype.itemsize
    rows = _largest_divisor(height, _COLUMNS_BYTES // row_bytes)
    together = _largest_divisor(images, _COLUMNS_BYTES // (row_bytes * height)) if rows == height else 1
    read = ((rows - 1) * strides[0] + size[0], x.shape[2])
    below, beside = (rows - 1) * strides[0] + 1, (width - 1) * strides[1] + 1

    def columns(index: Int[Array, ""]) -> Array:
        image, row = jnp.divmod(index, height // rows)
        start = (image * together, row * (rows * strides[0]), 0, 0)
        seen = jax.lax.dynamic_slice(x, start, (together, *read, channels))
        shifted = [
            seen[:, i : i + below : strides[0], j : j + beside : strides[1]]
            for i in range(size[0])
            for j in range(size[1])
        ]
        return jnp.concatenate(shifted, axis=-1).reshape(-1, len(shifted) * channels)

    return _Tiles(images // together * (height // rows), columns, (images, height, width))


def _largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor that is not above the limit, or 1."""
    return max(d for d in range(1, number + 1) if number % d == 0 and d <= max(limit, 1))


def _expect_plain(options: dict[str, Any]) -> None:
    for name, value in options.items():
        plain = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "feature_group_count": 1}.get(name, value)
        if value is not None and (tuple(value) if isinstance(value, Sequence) else value) != plain:
            raise ValueError(f"got {name} {value!r} of a convolution; expected {plain!r}")
