"""Masks by fully connected layers in place of convolutions: Mask R-CNN, table 2e."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from maskx_jax.models.layers import Linear32, xavier_fill
from maskx_jax.models.rcnn.box_head import ClassWeights
from maskx_jax.models.rcnn.mask_head import MaskHead


class MLPMaskHead(MaskHead):
    """A mask head of `num_convs` hidden layers of `channels` units, and a layer for all pixels of the masks.

    The paper names the layers alone: 1024, 1024 and 80 * 28^2. What they see is taken to be what the convolutions see,
    14 x 14 features of a region, flattened. Training is as of the other heads.

    Attributes:
      num_masks: masks that are predicted for a region: one for each class and background, or one for all classes.
    """

    num_masks: int = 1

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "r s s c"], labels: Int[Array, "r"], mask_weights: Any = ()
    ) -> Float[Array, "r m m"]:
        """Return the mask logits of each region for its own label, float32; all classes are computed."""
        x = pooled.reshape(len(pooled), -1)
        for index in range(1, self.num_convs + 1):
            x = nn.relu(nn.Dense(self.channels, kernel_init=xavier_fill, dtype=self.dtype, name=f"fc{index}")(x))
        side = 2 * pooled.shape[1]
        output = Linear32(self.num_masks * side**2, nn.initializers.normal(0.001), self.dtype, name="output")
        logits = output(x)[0].reshape(-1, self.num_masks, side, side)
        own = jnp.minimum(labels, self.num_masks - 1)
        return jnp.take_along_axis(logits, own[:, None, None, None], axis=1)[:, 0]


def no_weights(class_weights: ClassWeights, labels: Int[Array, "b q"]) -> tuple[tuple[()], Int[Array, "b q"]]:
    """Return nothing, and the labels: the weights of the masks are the head's own."""
    return (), labels
