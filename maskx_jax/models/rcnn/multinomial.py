"""Masks by a softmax over the classes in every pixel, as where images are segmented: Mask R-CNN, table 2b."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from maskx_jax.models.rcnn.mask_head import MaskHead
from maskx_jax.models.rcnn.weight_transfer import MaskWeights


class MultinomialMaskHead(MaskHead):
    """A mask head whose classes compete for each pixel, with each other and with background.

    The paper says "a per-pixel softmax and a multinomial loss" and no more, and its released code has no such head.
    Here a pixel of the object should be of the region's class and any other of background, class 0, out of all classes;
    the loss is the cross-entropy of that choice. A detection's mask is the probability of its own class.

    The MLP beside the convolutions has no part in it: `mlp` is "none".
    """

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "r s s c"], labels: Int[Array, "r"], mask_weights: MaskWeights
    ) -> Float[Array, "r 2 m m"]:
        """Return for each pixel the logarithms of two probabilities, float32: of background, and of the own class.

        All classes are computed: it costs as much as there are classes.
        """
        x = self.features(pooled)
        weights = mask_weights.weights.astype(x.dtype)
        logits = jnp.einsum("rhwc,kc->rkhw", x, weights, preferred_element_type=jnp.float32)
        logs = jax.nn.log_softmax(logits + mask_weights.bias[:, None, None], axis=1)
        own = jnp.take_along_axis(logs, labels[:, None, None, None], axis=1)
        return jnp.concatenate([logs[:, :1], own], axis=1)

    def cross_entropy(
        self, predictions: Float[Array, "b q 2 m m"], targets: Float[Array, "b q m m"]
    ) -> Float[Array, "b q m m"]:
        """Return the loss of each pixel; a target is the part of the pixel that is object."""
        return -(targets * predictions[..., 1, :, :] + (1 - targets) * predictions[..., 0, :, :])

    def probabilities(self, predictions: Float[Array, "b q 2 m m"]) -> Float[Array, "b q m m"]:
        """Return the probability that a pixel is of the region's class."""
        return jnp.exp(predictions[..., 1, :, :])
