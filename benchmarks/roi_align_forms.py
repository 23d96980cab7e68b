"""Other ways to compute RoIAlign, for accelerators: which is fastest is measured, not guessed.

Each equals `maskx_jax.ops.roi_align.roi_align` with its defaults, forward and backward, and none is used by the models.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from maskx_jax.ops.roi_align import flatten, roi_align, taps

Features = dict[int, Float[Array, "_ _ c"]]


def gather_all(features: Features, boxes: Float[Array, "r 4"], output_size: int) -> Float[Array, "r s s c"]:
    """Gather for all boxes at once, and scatter so too."""
    return roi_align(features, boxes, output_size, chunk_size=len(boxes))


def products(features: Features, boxes: Float[Array, "r 4"], output_size: int) -> Float[Array, "r s s c"]:
    """Multiply every level with a matrix of the rows and one of the columns that each box reads: no scatter at all."""
    samples = taps(features, boxes, output_size)
    pooled = jnp.zeros((), features[min(features)].dtype)
    for position, level in enumerate(sorted(features)):
        image = features[level]
        here = (samples.level == position)[:, None, None]
        rows = _matrix(samples.rows, samples.row_weights * here, image.shape[0]).astype(image.dtype)
        columns = _matrix(samples.columns, samples.column_weights, image.shape[1]).astype(image.dtype)
        of_rows = jnp.einsum("ryh,hwc->rywc", rows, image, precision=jax.lax.Precision.HIGHEST)
        pooled += jnp.einsum("rywc,rxw->ryxc", of_rows, columns, precision=jax.lax.Precision.HIGHEST)
    return pooled


def _matrix(
    pixels: Int[Array, "r bins taps"], weights: Float[Array, "r bins taps"], length: int
) -> Float[Array, "r bins length"]:
    return (jax.nn.one_hot(pixels, length) * weights[..., None]).sum(2)


def kernel(features: Features, boxes: Float[Array, "r 4"], output_size: int) -> Float[Array, "r s s c"]:
    """Gather, and add up gradients in place, by a Triton kernel written in Pallas; on a CPU it is interpreted."""
    source, index, weight = flatten(features, taps(features, boxes, output_size))
    number = index.shape[-1]
    pooled = _pool(source, index.reshape(-1, number), weight.reshape(-1, number))
    return pooled.reshape(-1, output_size, output_size, source.shape[-1])


@jax.custom_vjp
def _pool(
    source: Float[Array, "positions c"], index: Int[Array, "bins taps"], weight: Float[Array, "bins taps"]
) -> Float[Array, "bins c"]:
    (bins, taps), channels = index.shape, source.shape[1]
    call = _over_bins(
        _pool_bin,
        jax.ShapeDtypeStruct((bins, channels), source.dtype),
        grid=(bins,),
        in_specs=[_row(taps), _row(taps), pallas.BlockSpec()],
        out_specs=_row(channels),
    )
    return call(index, weight, source)


def _pool_forward(source: Array, index: Array, weight: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return _pool(source, index, weight), (source, index, weight)


def _pool_backward(saved: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, None, None]:
    source, index, weight = saved
    (bins, taps), channels = index.shape, source.shape[1]
    call = _over_bins(
        _add_bin,
        jax.ShapeDtypeStruct(source.shape, jnp.float32),
        grid=(bins,),
        in_specs=[_row(taps), _row(taps), _row(channels), pallas.BlockSpec()],
        out_specs=pallas.BlockSpec(),
        # The sum begins with zeros.
        input_output_aliases={3: 0},
    )
    total = call(index, weight, gradient, jnp.zeros(source.shape, jnp.float32))
    return total.astype(source.dtype), None, None


_pool.defvjp(_pool_forward, _pool_backward)


def _over_bins(body: Callable[..., None], result: jax.ShapeDtypeStruct, **options: Any) -> Callable[..., Array]:
    interpret = jax.default_backend() == "cpu"
    call: Callable[..., Array] = pallas.pallas_call(
        body, result, interpret=interpret, compiler_params=triton.CompilerParams(), **options
    )
    return call


def _row(length: int) -> pallas.BlockSpec:
    return pallas.BlockSpec((1, length), lambda bin: (bin, 0))


def _pool_bin(index: Any, weight: Any, source: Any, pooled: Any) -> None:
    def add(tap: Array, total: Array) -> Array:
        return total + weight[0, tap] * source[index[0, tap], :].astype(jnp.float32)

    total = jax.lax.fori_loop(0, index.shape[1], add, jnp.zeros(source.shape[1:], jnp.float32))
    pooled[0, :] = total.astype(pooled.dtype)


def _add_bin(index: Any, weight: Any, gradient: Any, zeros: Any, total: Any) -> None:
    del zeros
    of_bin = gradient[0, :].astype(jnp.float32)

    def add(tap: Array, done: Array) -> Array:
        # Bins share pixels.
        triton.atomic_add(total, (index[0, tap], slice(None)), weight[0, tap] * of_bin)
        return done

    jax.lax.fori_loop(0, index.shape[1], add, 0)


FORMS = {"": roi_align, "gather_all": gather_all, "products": products, "kernel": kernel}
