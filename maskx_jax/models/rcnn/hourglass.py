"""An hourglass on each region: down to a few cells and up again, with shortcuts between maps of the same side.

Newell et al. 2016 ("Stacked Hourglass Networks for Human Pose Estimation"), in the form that Birodkar et al. 2021 ("The
Surprising Impact of Mask-Head Architecture on Novel Class Segmentation") put into mask heads; the layers are those of
the code that they released for Mask R-CNN, except that GroupNorm stands in place of BatchNorm.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from maskx_jax.models.layers import conv_norm


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where the shapes differ.

    Attributes:
      channels: of the output, and of the map between the convolutions.
      stride: of the first convolution.
      dtype: of the computation.
      cpu: whether convolutions are computed as one CPU does best, see `layers.conv`.
    """

    channels: int
    stride: int
    dtype: Any
    cpu: bool

    @nn.compact
    def __call__(self, x: Float[Array, "r s s c"]) -> Float[Array, "r s2 s2 channels"]:
        """Return relu(shortcut + residual)."""

        def normalized(x: Array, size: int, stride: int, name: str) -> Array:
            return conv_norm(x, self.channels, size, stride, dtype=self.dtype, cpu=self.cpu, name=name)

        y = nn.relu(normalized(x, 3, self.stride, "conv1"))
        y = normalized(y, 3, 1, "conv2")
        if x.shape != y.shape:
            x = normalized(x, 1, self.stride, "shortcut")
        return nn.relu(x + y)


class Hourglass(nn.Module):
    """A convolution and a residual block, the hourglass, and a convolution: maps keep their side.

    Level k has maps of 1 / 2^k of the side. On every level but the last, residual blocks go past the rest of the
    hourglass at this side, and others down to the next level; what comes back from there goes through as many, is
    upsampled to the nearest cells, and added. "Hourglass-20" and "-52" count the layers on the longest way.

    Attributes:
      channels: of the first convolution.
      stage_channels: of the maps of each level; those of level 0 are the output's.
      stage_blocks: residual blocks of each way on each level.
      remat: whether the backward pass computes the inside of each residual block again instead of keeping it.
      dtype: of the computation.
      cpu: whether convolutions are computed as one CPU does best, see `layers.conv`.
    """

    channels: int
    stage_channels: Sequence[int]
    stage_blocks: Sequence[int]
    remat: bool = False
    dtype: Any = jnp.float32
    cpu: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "r s s c"]) -> Float[Array, "r s s channels0"]:
        """Return maps of as many channels as level 0 has.

        Raises:
          ValueError: the side of the regions cannot be halved as often as there are levels below the first.
        """
        if x.shape[1] % (divisor := 2 ** (len(self.stage_channels) - 1)):
            raise ValueError(f"got regions of {x.shape[1]} x {x.shape[2]} cells; expected multiples of {divisor}")
        outputs, how = self.stage_channels[0], {"dtype": self.dtype, "cpu": self.cpu}
        x = nn.relu(conv_norm(x, self.channels, 3, **how, name="stem"))
        x = self._level(self._blocks(x, [outputs], "entry"), 0)
        return nn.relu(conv_norm(x, outputs, 3, **how, name="output"))

    def _level(self, x: Float[Array, "r s s c"], level: int) -> Float[Array, "r s s c"]:
        outer, count = self.stage_channels[level], self.stage_blocks[level]
        if level == len(self.stage_channels) - 1:
            return self._blocks(x, [outer] * count, f"level{level}")
        inner = self.stage_channels[level + 1]
        past = self._blocks(x, [outer] * count, f"past{level}")
        y = self._level(self._blocks(x, [inner] * count, f"down{level}", stride=2), level + 1)
        y = self._blocks(y, [inner] * (count - 1) + [outer], f"up{level}")
        return past + y.repeat(2, axis=1).repeat(2, axis=2)

    def _blocks(self, x: Float[Array, "r s s c"], channels: Sequence[int], name: str, stride: int = 1) -> Array:
        """Apply residual blocks one after the other, the first of them with the stride."""
        block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        for index, width in enumerate(channels):
            own_stride = stride if index == 0 else 1
            x = block(width, own_stride, dtype=self.dtype, cpu=self.cpu, name=f"{name}_block{index}")(x)
        return x
