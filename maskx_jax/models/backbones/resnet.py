"""ResNet with bottleneck blocks (He et al. 2015), and ResNeXt (Xie et al. 2017), as detectors use them."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from maskx_jax.limits import Check, number, numbers, one_of, optional
from maskx_jax.models.layers import FrozenBatchNorm, conv, group_norm, relu

NORMS = ("frozen_batch", "group", "group_32")
LIMITS: Mapping[str, Check] = {
    "stage_sizes": numbers(4, 1),
    "width": number(1),
    "groups": number(1),
    "group_width": optional(number(1)),
    "norm": one_of(*NORMS),
}

_he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut.

    Attributes:
      width: channels of the convolutions inside.
      outputs: channels of the output.
      groups: of the 3x3 convolution's channels.
      others: see `ResNet`.
    """

    width: int
    outputs: int
    groups: int
    stride: int
    norm: str
    stride_in_1x1: bool
    residual_scale: float
    dtype: Any
    cpu: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c4"]:
        """Return relu(shortcut + residual)."""
        strides = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)

        def block(
            x: Array, features: int, size: int, stride: int, name: str, scale: float = 1.0, groups: int = 1
        ) -> Array:
            options = {"kernel_init": _he_normal, "dtype": self.dtype, "cpu": self.cpu, "name": name}
            layer = conv(features, size, stride, use_bias=False, feature_group_count=groups, **options)
            return _normalize(layer(x), self.norm, scale, self.dtype, f"{name}_norm")

        y = relu(block(x, self.width, 1, strides[0], "conv1"), cpu=self.cpu)
        y = relu(block(y, self.width, 3, strides[1], "conv2", groups=self.groups), cpu=self.cpu)
        y = block(y, self.outputs, 1, 1, "conv3", self.residual_scale)
        if x.shape != y.shape:
            x = block(x, self.outputs, 1, self.stride, "shortcut")
        return relu(x + y, cpu=self.cpu)


class ResNet(nn.Module):
    """Stem and four stages; returns the maps of res2 to res5 keyed by level 2 to 5 (stride 2^level).

    Attributes:
      stage_sizes: blocks in each stage: (3, 4, 6, 3) is ResNet-50, (3, 4, 23, 3) is ResNet-101.
      width: channels of the stem; a stage's output has 4, 8, 16 and 32 times as many.
      groups: of the channels of the 3x3 convolutions, each of which sees its own: 1 is ResNet, 32 or 64 ResNeXt.
      group_width: channels of a group in the first stage, twice as many in each later one; by default `width`.
      norm: "frozen_batch" (constants, for imported weights), "group" (trained, for training from scratch: at least four
        channels in a group) or "group_32" (32 groups always, as weights of ResNets with GroupNorm have it).
      stride_in_1x1: whether a stage's first block strides in its 1x1 convolution (Caffe's weights, Detectron) or in
        the 3x3 one (torchvision's).
      remat: whether the backward pass computes the inside of each block again instead of keeping it: less memory for
        about one more forward pass of the backbone.
      dtype: of the computation; parameters are float32.
      cpu: whether convolutions are computed as one CPU does best, see `layers.conv`.
    """

    stage_sizes: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    groups: int = 1
    group_width: int | None = None
    norm: str = "frozen_batch"
    stride_in_1x1: bool = False
    remat: bool = False
    dtype: Any = jnp.float32
    cpu: bool = False

    levels: ClassVar[tuple[int, ...]] = (2, 3, 4, 5)
    multiple = 32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> dict[int, Float[Array, "b _ _ _"]]:
        """Return {2: res2, 3: res3, 4: res4, 5: res5}."""
        x = self.stem(images)
        features = {}
        for level in range(2, 2 + len(self.stage_sizes)):
            x = features[level] = self.stage(x, level)
        return features

    def stem(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b _ _ width"]:
        """Return the maps that res2 sees, of a quarter of the sides."""
        options = {"kernel_init": _he_normal, "dtype": self.dtype, "cpu": self.cpu, "name": "stem"}
        x = conv(self.width, 7, 2, use_bias=False, **options)(images)
        x = relu(_normalize(x, self.norm, 1.0, self.dtype, "stem_norm"), cpu=self.cpu)
        return nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])

    def stage(self, x: Float[Array, "b _ _ _"], level: int) -> Float[Array, "b _ _ _"]:
        """Return what a stage, res2 to res5, makes of what the one before returned."""
        bottleneck = nn.remat(Bottleneck) if self.remat else Bottleneck
        num_blocks, factor = self.stage_sizes[level - 2], 2 ** (level - 2)
        for index in range(num_blocks):
            x = bottleneck(
                width=self.groups * (self.group_width or self.width) * factor,
                outputs=4 * self.width * factor,
                groups=self.groups,
                stride=2 if index == 0 and level > 2 else 1,
                norm=self.norm,
                stride_in_1x1=self.stride_in_1x1,
                # Until weights are imported frozen constants normalise nothing; with this scale the variance grows by
                # at most e a stage instead of 2^blocks.
                residual_scale=num_blocks**-0.5,
                dtype=self.dtype,
                cpu=self.cpu,
                name=f"res{level}_block{index}",
            )(x)
        return x


def _normalize(x: Array, norm: str, scale: float, dtype: Any, name: str) -> Array:
    if norm == "frozen_batch":
        return FrozenBatchNorm(scale, dtype=dtype, name=name)(x)
    if norm == "group":
        return group_norm(x, dtype, name)
    if norm == "group_32":
        return nn.GroupNorm(32, epsilon=1e-5, dtype=dtype, name=name)(x)
    raise ValueError(f"got norm {norm!r}; expected one of {NORMS}")
