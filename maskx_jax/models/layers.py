"""Initialisers and small layers shared by the networks."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from maskx_jax.ops.cpu import fusion
from maskx_jax.ops.cpu.convolution import convolution


def scaled_msra_fill(scale: float) -> nn.initializers.Initializer:
    """Return Caffe2's MSRAFill of 2018 times a factor: Gaussian with variance 2 / fan_out, as of Detectron's heads."""
    return nn.initializers.variance_scaling(2.0 * scale**2, "fan_out", "normal")


msra_fill = scaled_msra_fill(1.0)
# Caffe2's XavierFill: uniform within +- sqrt(3 / fan_in).
xavier_fill = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


def conv(features: int, kernel_size: int, stride: int = 1, *, cpu: bool = False, **options: Any) -> nn.Conv:
    """Return a convolution with square kernel and the symmetric padding k // 2 of Caffe and PyTorch.

    Args:
      features: of the output.
      kernel_size: k.
      stride: along both axes.
      cpu: whether it is computed by matrix products, as one CPU does best: see `ops.cpu.convolution`.
      **options: of `flax.linen.Conv`.
    """
    # XLA's "SAME" would pad a strided convolution on the bottom and right only.
    padding = [(kernel_size // 2, kernel_size // 2)] * 2
    if cpu:
        options["conv_general_dilated"] = convolution
    return nn.Conv(features, (kernel_size, kernel_size), (stride, stride), padding, **options)


def relu(x: Float[Array, "..."], *, cpu: bool) -> Float[Array, "..."]:
    """Return max(x, 0), behind a convolution.

    Args:
      x: its output, or a sum of such.
      cpu: whether it is computed as one CPU does best: see `ops.cpu.fusion`.
    """
    return fusion.relu(x) if cpu else nn.relu(x)


def group_norm_layer(channels: int, **options: Any) -> nn.GroupNorm:
    """Return what normalises groups of channels (Wu and He 2018): 32, or fewer with at least four channels each.

    Args:
      channels: of its input.
      **options: of `flax.linen.GroupNorm`.
    """
    return nn.GroupNorm(min(32, channels // 4), epsilon=1e-5, **options)


def check_group_norm(channels: Any) -> str:
    """Return "" where `group_norm_layer` can divide the channels into groups, and otherwise what was expected."""
    fits = isinstance(channels, int) and channels >= 4 and channels % min(32, channels // 4) == 0
    return "" if fits else "what GroupNorm divides: a multiple of 4 up to 128, of 32 beyond"


def group_norm(x: Array, dtype: Any, name: str, scale_init: Any = nn.initializers.ones) -> Array:
    """Normalise groups of channels, see `group_norm_layer`."""
    return group_norm_layer(x.shape[-1], dtype=dtype, scale_init=scale_init, name=name)(x)


def conv_norm(
    x: Float[Array, "r s s c"], channels: int, size: int, stride: int = 1, *, dtype: Any, cpu: bool, name: str
) -> Float[Array, "r s2 s2 channels"]:
    """Apply a convolution without bias and GroupNorm, within a module."""
    layer = conv(channels, size, stride, use_bias=False, kernel_init=msra_fill, dtype=dtype, cpu=cpu, name=name)
    return group_norm(layer(x), dtype, f"{name}_norm")


class FrozenBatchNorm(nn.Module):
    """BatchNorm folded into a constant scale and bias per channel, kept in the collection "frozen".

    Attributes:
      initial_scale: used until weights are imported.
    """

    initial_scale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        """Return x * scale + bias."""
        shape = x.shape[-1:]
        scale = self.variable("frozen", "scale", jnp.full, shape, self.initial_scale)
        bias = self.variable("frozen", "bias", jnp.zeros, shape)
        return x * scale.value.astype(self.dtype) + bias.value.astype(self.dtype)


class Deconvolution2x2(nn.Module):
    """Transposed convolution with a 2 x 2 kernel and stride 2: every pixel becomes a square of four.

    Without overlap between the squares this is one matrix product, which is faster than a convolution everywhere.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "r h w c"]) -> Float[Array, "r 2*h 2*w features"]:
        """Upsample by two."""
        # Caffe2 takes the input's side as MSRAFill's fan_out of a transposed convolution: c * 2 * 2.
        fill = nn.initializers.variance_scaling(2.0, "fan_out", "normal", in_axis=-1, out_axis=-2)
        kernel = self.param("kernel", fill, (2, 2, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        r, h, w, _ = x.shape
        y = jnp.einsum("rhwc,ijco->rhiwjo", x.astype(self.dtype), kernel.astype(self.dtype))
        return y.reshape(r, 2 * h, 2 * w, self.features) + bias.astype(self.dtype)


class Deconvolution4x4(nn.Module):
    """Transposed convolution with a 4 x 4 kernel, stride 2 and padding 1: a map of logits of twice the side, float32.

    One matrix product says what every pixel adds to the 4 x 4 pixels around its own square of two, and these are added
    up.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "r h w c"]) -> Float[Array, "r 2*h 2*w features"]:
        """Upsample by two."""
        # As in `Deconvolution2x2`.
        fill = nn.initializers.variance_scaling(2.0, "fan_out", "normal", in_axis=-1, out_axis=-2)
        kernel = self.param("kernel", fill, (4, 4, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        parts = jnp.einsum("rhwc,ijco->rhiwjo", x, kernel, preferred_element_type=jnp.float32)
        return _add_overlaps(_add_overlaps(parts, 1), 2) + bias


def _add_overlaps(parts: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Add up along one axis: entry i of a pixel p goes to 2 p + i - 1.

    Args:
      parts: pixels along `axis`, their four entries along the next one.
      axis: becomes one axis, twice as long.
    """

    def shifted(entry: int, places: int) -> Array:
        values = jax.lax.index_in_dim(parts, entry, axis + 1, keepdims=False)
        edges = [(0, 0, 0)] * values.ndim
        edges[axis] = (places, -places, 0)
        return jax.lax.pad(values, jnp.zeros((), values.dtype), edges)

    even, odd = shifted(1, 0) + shifted(3, 1), shifted(2, 0) + shifted(0, -1)
    both = jnp.stack([even, odd], axis=axis + 1)
    return both.reshape(*both.shape[:axis], -1, *both.shape[axis + 2 :])


class Linear32(nn.Module):
    """A linear layer, or a 1 x 1 convolution, whose outputs are float32 whatever type its inputs have.

    In bfloat16 too the products are summed in float32 and not rounded afterwards: logits and deltas near each other
    stay apart.

    Attributes:
      kernel_size: of the convolution, () for a linear layer: only the kernel's shape depends on it.
    """

    features: int
    kernel_init: Any
    dtype: Any = jnp.float32
    kernel_size: tuple[int, ...] = ()

    @nn.compact
    def __call__(
        self, x: Float[Array, "... i"]
    ) -> tuple[Float[Array, "... features"], Float[Array, "i features"], Float[Array, "features"]]:
        """Return the outputs, and the kernel and bias that made them."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).reshape(-1, self.features)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=jnp.float32)
        return y + bias, kernel, bias
