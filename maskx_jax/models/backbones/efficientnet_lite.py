"""EfficientNet-Lite: inverted residual blocks without squeeze and excitation (Tan and Le 2019; Google's Lite form)."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from maskx_jax.limits import Check, number
from maskx_jax.models.layers import FrozenBatchNorm
from maskx_jax.ops.cpu import fusion
from maskx_jax.ops.cpu.convolution import convolution

LIMITS: Mapping[str, Check] = {"width": number(0.1), "depth": number(0.1)}

_STEM = 32
_EXPANSION = 6
_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class _Stage(NamedTuple):
    level: int
    blocks: int
    kernel: int
    channels: int


# The first stays as it is in every form, and so does the depth of the last.
_STAGES = (
    _Stage(1, 1, 3, 16),
    _Stage(2, 2, 3, 24),
    _Stage(3, 2, 5, 40),
    _Stage(4, 3, 3, 80),
    _Stage(4, 3, 5, 112),
    _Stage(5, 4, 5, 192),
    _Stage(5, 1, 3, 320),
)


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, a depthwise one, and 1x1 to fewer; with a shortcut where the shapes agree.

    Attributes:
      channels: of the output.
      kernel: side of the depthwise convolution's.
      stride: of it.
      expansion: of the channels in between; 1 has no first convolution.
      residual_scale: of the output's normalisation until weights are imported.
      others: see `EfficientNetLite`.
    """

    channels: int
    kernel: int
    stride: int
    expansion: int
    residual_scale: float
    dtype: Any
    cpu: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 channels"]:
        """Return the output, which no activation follows."""
        y, inner = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            y = _relu6(self, _conv_norm(self, "expand", inner, 1)(y))
        y = _relu6(self, _conv_norm(self, "depthwise", inner, self.kernel, self.stride, groups=inner)(y))
        y = _conv_norm(self, "project", self.channels, 1, scale=self.residual_scale)(y)
        return x + y if x.shape == y.shape else y


class EfficientNetLite(nn.Module):
    """Maps of strides 4 to 32, keyed by level 2 to 5; sides must be multiples of 32, as TensorFlow's padding is.

    BatchNorm is folded into constants, so that it is for imported weights.

    Attributes:
      width: of the channels, relative to Lite0; they are rounded to multiples of 8.
      depth: of the number of blocks, likewise, rounded up.
      dtype: of the computation; parameters are float32.
      cpu: whether convolutions are computed as one CPU does best, see `layers.conv`.
    """

    width: float = 1.0
    depth: float = 1.0
    dtype: Any = jnp.float32
    cpu: bool = False

    levels: ClassVar[tuple[int, ...]] = (2, 3, 4, 5)
    multiple = 32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> dict[int, Float[Array, "b _ _ _"]]:
        """Return the last map of each level."""
        x = _relu6(self, _conv_norm(self, "stem", _STEM, 3, 2)(images))
        maps: dict[int, Array] = {}
        number = 0
        for stage in _STAGES:
            inner = stage not in (_STAGES[0], _STAGES[-1])
            num_blocks = math.ceil(stage.blocks * self.depth) if inner else stage.blocks
            for index in range(num_blocks):
                x = InvertedResidual(
                    channels=_rounded(stage.channels * self.width),
                    kernel=stage.kernel,
                    stride=2 if index == 0 and stage.level > max(maps, default=1) else 1,
                    expansion=_EXPANSION if number else 1,
                    residual_scale=num_blocks**-0.5 if index else 1.0,
                    dtype=self.dtype,
                    cpu=self.cpu,
                    name=f"block{number}",
                )(x)
                maps[stage.level] = x
                number += 1
        return {level: maps[level] for level in self.levels}


def _conv_norm(
    module: Any, name: str, features: int, size: int, stride: int = 1, groups: int = 1, scale: float = 1.0
) -> Any:
    """Return a convolution with the padding of TensorFlow for even sides, and its normalisation."""
    # As much as the output needs, the odd pixel at the bottom and right.
    padding = [((size - stride) // 2, size - stride - (size - stride) // 2)] * 2
    options: dict[str, Any] = {"conv_general_dilated": convolution} if module.cpu else {}
    conv = nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=_he_normal,
        dtype=module.dtype,
        name=name,
        **options,
    )
    norm = FrozenBatchNorm(scale, dtype=module.dtype, name=f"{name}_norm")
    return lambda x: norm(conv(x))


def _relu6(module: Any, x: Array) -> Array:
    return fusion.relu(x, 6.0) if module.cpu else jnp.clip(x, 0, 6)


def _rounded(channels: float) -> int:
    """Return the multiple of 8 that is nearest, but not by more than a tenth below."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
