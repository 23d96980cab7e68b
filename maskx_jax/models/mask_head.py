"""The mask branch: a small fully convolutional network on each region, and optionally an MLP beside it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from maskx_jax.models.layers import Deconvolution2x2, conv, msra_fill
from maskx_jax.models.weight_transfer import MaskWeights
from maskx_jax.ops.losses import masked_mean
from maskx_jax.ops.mask_targets import sample_mask
from maskx_jax.structures import GroundTruth, RoiTargets

MLP_BRANCHES = ("none", "paper", "light")


class MaskHead(nn.Module):
    """Predict a mask of twice `resolution` for each region.

    Attributes:
      channels: of the convolutions.
      num_convs: before the upsampling.
      resolution: of the pooled features.
      mlp: a class-agnostic prediction added to the logits (Mask^X R-CNN, section 3.4). "paper" is the released code's:
        one layer from all 200,704 features of a region to its 784 logits, 157 million weights. "light" first reduces
        the channels to `mlp_channels`. "none" leaves it out.
      mlp_channels: of the light branch.
      num_samples: at most so many foreground regions an image are trained on.
    """

    channels: int = 256
    num_convs: int = 4
    resolution: int = 14
    mlp: str = "none"
    mlp_channels: int = 8
    num_samples: int = 128
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "r s s c"], labels: Int[Array, "r"], mask_weights: MaskWeights
    ) -> Float[Array, "r m m"]:
        """Return the mask logits of each region for its own label, float32.

        Only the rows of the labels at hand are used: 3,000 classes cost what 80 cost.

        Raises:
          ValueError: `mlp` is unknown.
        """
        if self.mlp not in MLP_BRANCHES:
            raise ValueError(f"got mlp {self.mlp!r}; expected one of {MLP_BRANCHES}")
        x = pooled
        for index in range(self.num_convs):
            name = f"conv{index + 1}"
            x = nn.relu(conv(self.channels, 3, kernel_init=msra_fill, dtype=self.dtype, name=name)(x))
        x = nn.relu(Deconvolution2x2(self.channels, self.dtype, name="deconvolution")(x))
        weights = mask_weights.weights[labels].astype(self.dtype)
        logits = jnp.einsum("rhwc,rc->rhw", x, weights, preferred_element_type=jnp.float32)
        logits += mask_weights.bias[labels][:, None, None]
        if self.mlp != "none":
            logits += self._mlp(x)
        return logits

    def _mlp(self, x: Float[Array, "r m m c"]) -> Float[Array, "r m m"]:
        r, m, _, _ = x.shape
        if self.mlp == "light":
            reduce = nn.Dense(self.mlp_channels, kernel_init=msra_fill, dtype=self.dtype, name="mlp_reduction")
            x = nn.relu(reduce(x))
        dense = nn.Dense(m * m, kernel_init=nn.initializers.normal(0.001), dtype=self.dtype, name="mlp")
        return dense(x.reshape(r, -1)).reshape(r, m, m).astype(jnp.float32)

    def select(self, rois: RoiTargets, ground_truth: GroundTruth) -> tuple[RoiTargets, Bool[Array, "b q"]]:
        """Choose the regions to train masks on, and say which of them are supervised.

        A region is supervised if it is foreground and its own matched object has a mask. Those come first.
        """
        has_mask = jnp.take_along_axis(ground_truth.has_mask, rois.gt_index, axis=1)
        supervised = rois.foreground & has_mask
        count = min(self.num_samples, supervised.shape[1])
        chosen = jnp.argsort(~supervised, axis=1, stable=True)[:, :count]
        take = jax.vmap(lambda values, index: values[index])
        return jax.tree.map(lambda values: take(values, chosen), rois), take(supervised, chosen)

    def losses(
        self,
        logits: Float[Array, "b q m m"],
        rois: RoiTargets,
        supervised: Bool[Array, "b q"],
        ground_truth: GroundTruth,
    ) -> dict[str, Float[Array, ""]]:
        """Return mask: binary cross-entropy, the mean over all pixels of all supervised regions."""
        targets = jax.vmap(
            lambda masks, frames, index, boxes: sample_mask(masks, frames, index, boxes, logits.shape[-1])
        )(ground_truth.masks, ground_truth.mask_frames, rois.gt_index, rois.boxes)
        per_pixel = optax.sigmoid_binary_cross_entropy(logits, targets.astype(jnp.float32))
        return {"mask": masked_mean(per_pixel.mean((-2, -1)), supervised)}
