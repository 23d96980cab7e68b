"""The mask branch: a small fully convolutional network on each region, and optionally an MLP beside it."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from maskx_jax.limits import Check, number, one_of, some_numbers
from maskx_jax.models.layers import Deconvolution2x2, Linear32, conv, group_norm, msra_fill
from maskx_jax.models.rcnn.hourglass import Hourglass
from maskx_jax.models.rcnn.region_head import supervised_first
from maskx_jax.models.rcnn.weight_transfer import MaskWeights
from maskx_jax.ops.losses import Mean, masked_mean
from maskx_jax.ops.mask_targets import average_mask, sample_mask
from maskx_jax.structures import GroundTruth, RoiTargets

MLP_BRANCHES = ("none", "paper", "light")
BODIES = ("plain", "residual", "hourglass")
TRAIN_ON = ("proposals", "gt_boxes")
TARGETS = {"sampled": sample_mask, "averaged": average_mask}


LIMITS: Mapping[str, Check] = {
    "channels": number(1),
    "num_convs": number(0),
    "body": one_of(*BODIES, "mlp"),
    "stage_channels": some_numbers(1),
    "stage_blocks": some_numbers(1),
    "remat": one_of(False, True),
    "resolution": number(1),
    "mlp": one_of(*MLP_BRANCHES),
    "mlp_channels": number(1),
    "train_on": one_of(*TRAIN_ON),
    "num_samples": number(1),
    "targets": one_of(*TARGETS),
}


class MaskHead(nn.Module):
    """Predict a mask for each region, of twice the side of its features.

    Attributes:
      channels: of the convolutions, and of what the predictor sees.
      num_convs: before the upsampling; none on C4, where res5 comes before. An hourglass has its own.
      body: "plain" convolutions (Mask R-CNN), or "residual": a convolution, then pairs of them with GroupNorm around a
        shortcut, which stay trainable when there are many. Deeper heads segment unseen classes better (DeepMAC,
        Birodkar et al. 2021). "hourglass": down to a few cells and up again, theirs; see `hourglass.Hourglass`. "mlp":
        as many hidden layers of as many units, and no convolutions: see `MLPMaskHead`.
      stage_channels: of an hourglass: of its maps at the side of the features, at half of it, and so on.
      stage_blocks: of an hourglass: residual blocks of each way at each of these sides.
      remat: of an hourglass: whether the backward pass computes the inside of each residual block again instead of
        keeping it: less memory for about one more forward pass of the head.
      resolution: of the pooled features.
      mlp: a class-agnostic prediction added to the logits (Mask^X R-CNN, section 3.4). "paper" is the released code's:
        one layer from all 200,704 features of a region to its 784 logits, 157 million weights. "light" first reduces
        the channels to `mlp_channels`. "none" leaves it out.
      mlp_channels: of the light branch.
      train_on: "proposals": the sampled foreground regions (Mask R-CNN). "gt_boxes": only the objects' own boxes
        (DeepMAC): tight regions, and fewer.
      num_samples: regions an image that are trained on, at most.
      targets: "sampled": whether the middle of each predicted pixel is object (Mask R-CNN). "averaged": which part of
        the pixel is.
      dtype: of the computation.
      cpu: whether convolutions are computed as one CPU does best, see `layers.conv`.
    """

    channels: int = 256
    num_convs: int = 4
    body: str = "plain"
    stage_channels: Sequence[int] = (128, 128, 192)
    stage_blocks: Sequence[int] = (1, 2, 2)
    remat: bool = False
    resolution: int = 14
    mlp: str = "none"
    mlp_channels: int = 8
    train_on: str = "proposals"
    num_samples: int = 128
    targets: str = "averaged"
    dtype: Any = jnp.float32
    cpu: bool = False

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "r s s c"], labels: Int[Array, "r"], mask_weights: MaskWeights
    ) -> Float[Array, "r m m"]:
        """Return the mask logits of each region for its own label, float32.

        Only the rows of the labels at hand are used: 3,000 classes cost what 80 cost.

        Args:
          pooled: features of regions.
          labels: which row of the weights is each region's own; where there is one for each class, its class.
          mask_weights: the rows.

        Raises:
          ValueError: `mlp` or `body` is unknown, or a residual body has an even number of convolutions.
        """
        if self.mlp not in MLP_BRANCHES:
            raise ValueError(f"got mlp {self.mlp!r}; expected one of {MLP_BRANCHES}")
        x = self.features(pooled)
        weights = mask_weights.weights[labels].astype(self.dtype)
        logits = jnp.einsum("rhwc,rc->rhw", x, weights, preferred_element_type=jnp.float32)
        logits += mask_weights.bias[labels][:, None, None]
        if self.mlp != "none":
            logits += self._mlp(x)
        return logits

    def features(self, pooled: Float[Array, "r s s c"]) -> Float[Array, "r m m channels"]:
        """Return what the predictor sees of each region, within `__call__`.

        Raises:
          ValueError: `body` is unknown, or a residual one has an even number of convolutions.
        """
        if self.body not in BODIES:
            raise ValueError(f"got body {self.body!r} of the mask head; expected one of {BODIES}")
        bodies = {"plain": self._plain_body, "residual": self._residual_body, "hourglass": self._hourglass_body}
        x = Deconvolution2x2(self.channels, self.dtype, name="deconvolution")(bodies[self.body](pooled))
        if self.body == "hourglass":
            x = group_norm(x, self.dtype, "deconvolution_norm")
        return nn.relu(x)

    def _conv(self, index: int) -> nn.Conv:
        return conv(self.channels, 3, kernel_init=msra_fill, dtype=self.dtype, cpu=self.cpu, name=f"conv{index}")

    def _plain_body(self, x: Float[Array, "r s s c"]) -> Float[Array, "r s s channels"]:
        for index in range(1, self.num_convs + 1):
            x = nn.relu(self._conv(index)(x))
        return x

    def _residual_body(self, x: Float[Array, "r s s c"]) -> Float[Array, "r s s channels"]:
        if self.num_convs % 2 == 0:
            raise ValueError(f"got num_convs {self.num_convs}; a residual body has one convolution and then pairs")
        x = nn.relu(self._conv(1)(x))
        for index in range(2, self.num_convs, 2):
            y = nn.relu(group_norm(self._conv(index)(x), self.dtype, f"conv{index}_norm"))
            # Each pair begins as the identity, however deep the head is.
            zeros = nn.initializers.zeros
            x = nn.relu(x + group_norm(self._conv(index + 1)(y), self.dtype, f"conv{index + 1}_norm", zeros))
        return x

    def _hourglass_body(self, x: Float[Array, "r s s c"]) -> Float[Array, "r s s channels0"]:
        stages = self.channels, self.stage_channels, self.stage_blocks
        return Hourglass(*stages, self.remat, dtype=self.dtype, cpu=self.cpu, name="hourglass")(x)

    def _mlp(self, x: Float[Array, "r m m c"]) -> Float[Array, "r m m"]:
        r, m, _, _ = x.shape
        if self.mlp == "light":
            reduce = nn.Dense(self.mlp_channels, kernel_init=msra_fill, dtype=self.dtype, name="mlp_reduction")
            x = nn.relu(reduce(x))
        dense = Linear32(m * m, nn.initializers.normal(0.001), self.dtype, name="mlp")
        return dense(x.reshape(r, -1))[0].reshape(r, m, m)

    def regions(self, rois: RoiTargets, ground_truth: GroundTruth) -> tuple[RoiTargets, Bool[Array, "b q"]]:
        """Choose the regions to train masks on, and say which of them are supervised.

        A region is supervised if it is foreground and its own matched object has a mask. Those come first.

        Raises:
          ValueError: `train_on` is unknown.
        """
        if self.train_on not in TRAIN_ON:
            raise ValueError(f"got train_on {self.train_on!r}; expected one of {TRAIN_ON}")
        if self.train_on == "gt_boxes":
            slots = jnp.broadcast_to(jnp.arange(ground_truth.valid.shape[1]), ground_truth.valid.shape)
            objects = ground_truth.valid & ~ground_truth.is_crowd
            rois = RoiTargets(ground_truth.boxes, ground_truth.labels, slots, objects, objects)
        has_mask = jnp.take_along_axis(ground_truth.has_mask, rois.gt_index, axis=1)
        return supervised_first(rois, rois.foreground & has_mask, self.num_samples)

    def losses(
        self,
        predictions: Float[Array, "b q *channels m m"],
        rois: RoiTargets,
        supervised: Bool[Array, "b q"],
        ground_truth: GroundTruth,
    ) -> dict[str, Mean]:
        """Return mask: cross-entropy, the mean over all pixels of all supervised regions, as their masks are weighed.

        Raises:
          ValueError: `targets` is unknown.
        """
        if self.targets not in TARGETS:
            raise ValueError(f"got targets {self.targets!r} of the mask head; expected one of {tuple(TARGETS)}")
        target_of = functools.partial(TARGETS[self.targets], size=predictions.shape[-1])
        targets = jax.vmap(target_of)(ground_truth.masks, ground_truth.mask_frames, rois.gt_index, rois.boxes)
        per_pixel = self.cross_entropy(predictions, targets.astype(jnp.float32))
        weights = ground_truth.mask_weight
        if weights is not None:
            weights = jnp.take_along_axis(weights, rois.gt_index, axis=1)
        return {"mask": masked_mean(per_pixel.mean((-2, -1)), supervised, weights)}

    def cross_entropy(self, logits: Float[Array, "b q m m"], targets: Float[Array, "b q m m"]) -> Any:
        """Return the loss of each pixel; a target is the part of the pixel that is object."""
        return optax.sigmoid_binary_cross_entropy(logits, targets)

    def probabilities(self, logits: Float[Array, "b q m m"]) -> Float[Array, "b q m m"]:
        """Return the probability that a pixel is object."""
        return jax.nn.sigmoid(logits)
