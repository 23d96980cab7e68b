"""Region Proposal Network over a feature pyramid (Faster R-CNN, section 3.1; FPN, section 4.1)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from maskx_jax.limits import Check, number, numbers, one_of, some_numbers
from maskx_jax.models.layers import Linear32, conv, relu
from maskx_jax.ops import boxes as box_ops
from maskx_jax.ops.anchors import CONVENTIONS, cell_anchors, grid_anchors, grid_strides
from maskx_jax.ops.losses import Mean, masked_mean, smooth_l1
from maskx_jax.ops.matching import Matcher
from maskx_jax.ops.nms import nms_of_sorted
from maskx_jax.ops.per_image import per_image
from maskx_jax.ops.sampling import Sample, draw, top_k
from maskx_jax.structures import GroundTruth, Proposals

LIMITS: Mapping[str, Check] = {
    "channels": number(1),
    "anchor_sizes": some_numbers(1e-6),
    "aspect_ratios": some_numbers(1e-6),
    "anchor_convention": one_of(*CONVENTIONS),
    "foreground_threshold": number(0, 1),
    "background_threshold": number(0, 1),
    "crowd_threshold": number(0, 1),
    "num_samples": number(1),
    "foreground_fraction": number(0, 1),
    "pre_nms_top_k": numbers(2, 1),
    "post_nms_top_k": numbers(2, 1),
    "smooth_l1_beta": number(0),
    "nms_threshold": number(0, 1),
    "min_size": number(0),
}

_BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
_normal = nn.initializers.normal(0.01)


class RPN(nn.Module):
    """Predict at every anchor whether an object is there, and its box.

    Attributes:
      channels: of the hidden convolution.
      anchor_sizes: square roots of the anchors' areas, from the lowest level on, as many on each: one of five on P2 to
        P6, or all on C4.
      aspect_ratios: height over width.
      anchor_convention: see `ops.anchors.cell_anchors`.
      boundary_threshold: anchors that reach further than this over the image's border (pixels) are ignored in
        training; negative means that none is.
      foreground_threshold, background_threshold, crowd_threshold: see `ops.matching.Matcher`.
      num_samples: anchors an image that are trained on.
      foreground_fraction: at most this part of them is foreground.
      pre_nms_top_k: (training, detection) proposals a level before NMS.
      post_nms_top_k: (training, detection) proposals an image after NMS.
      smooth_l1_beta: of the box loss: 1/9 in Detectron and torchvision, 0 in detectron2.
      nms_threshold: IoU above which the worse of two proposals of one level is dropped.
      min_size: proposals with a side shorter than this, in pixels, are dropped.
      sizes_per_level: how many of `anchor_sizes` are a level's.
      dtype: of the computation.
      cpu: whether convolutions are computed as one CPU does best, see `layers.conv`.
    """

    channels: int = 256
    anchor_sizes: Sequence[float] = (32.0, 64.0, 128.0, 256.0, 512.0)
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)
    anchor_convention: str = "detectron2"
    boundary_threshold: float = 0.0
    foreground_threshold: float = 0.7
    background_threshold: float = 0.3
    crowd_threshold: float = 0.7
    num_samples: int = 256
    foreground_fraction: float = 0.5
    pre_nms_top_k: tuple[int, int] = (2000, 1000)
    post_nms_top_k: tuple[int, int] = (1000, 1000)
    smooth_l1_beta: float = 1 / 9
    nms_threshold: float = 0.7
    min_size: float = 1e-3
    sizes_per_level: int = 1
    dtype: Any = jnp.float32
    cpu: bool = False

    def setup(self) -> None:
        """Name the layers, shared by all levels."""
        num_anchors = self.sizes_per_level * len(self.aspect_ratios)
        self.conv = conv(self.channels, 3, kernel_init=_normal, dtype=self.dtype, cpu=self.cpu)
        self.objectness = Linear32(num_anchors, _normal, self.dtype, (1, 1))
        self.deltas = Linear32(4 * num_anchors, _normal, self.dtype, (1, 1))

    def __call__(
        self, pyramid: dict[int, Float[Array, "b _ _ c"]]
    ) -> tuple[dict[int, Float[Array, "b _"]], dict[int, Float[Array, "b _ 4"]]]:
        """Return for each level the logits and the box deltas of its anchors, float32."""
        logits, deltas = {}, {}
        for level, features in sorted(pyramid.items()):
            batch = features.shape[0]
            hidden = relu(self.conv(features), cpu=self.cpu)
            logits[level] = self.objectness(hidden)[0].reshape(batch, -1)
            deltas[level] = self.deltas(hidden)[0].reshape(batch, -1, 4)
        return logits, deltas

    def anchors(self, pyramid: dict[int, Float[Array, "b _ _ c"]]) -> dict[int, Float[Array, "_ 4"]]:
        """Return the anchors of each level, in the order of the predictions.

        Raises:
          ValueError: the numbers of levels and of anchor sizes differ.
        """
        sizes, count = self.anchor_sizes, self.sizes_per_level
        if len(sizes) != len(pyramid) * count:
            raise ValueError(f"got {len(sizes)} anchor sizes for {len(pyramid)} levels; expected {count} each")
        lowest = min(pyramid)
        _, height, width, _ = pyramid[lowest].shape
        canvas = (height * 2**lowest, width * 2**lowest)
        anchors = {}
        for index, level in enumerate(sorted(pyramid)):
            _, height, width, _ = pyramid[level].shape
            own = sizes[index * count : (index + 1) * count]
            cell = cell_anchors(own, self.aspect_ratios, 2**level, self.anchor_convention)
            strides = grid_strides(canvas, (height, width), 2**level, self.anchor_convention)
            anchors[level] = grid_anchors(cell, height, width, strides)
        return anchors

    def proposals(
        self,
        logits: dict[int, Float[Array, "b _"]],
        deltas: dict[int, Float[Array, "b _ 4"]],
        anchors: dict[int, Float[Array, "_ 4"]],
        image_sizes: Float[Array, "b 2"],
        training: bool,
    ) -> Proposals:
        """Decode, clip and thin out the best predictions; NMS runs within each level, the last cut over all."""
        pre_nms, post_nms = (pair[0 if training else 1] for pair in (self.pre_nms_top_k, self.post_nms_top_k))

        def one_image(
            logits: dict[int, Float[Array, "_"]],
            deltas: dict[int, Float[Array, "_ 4"]],
            size: Float[Array, "2"],
            anchors: dict[int, Float[Array, "_ 4"]],
        ) -> Proposals:
            count = min(pre_nms, max(level.shape[0] for level in logits.values()))

            def one_level(logits: Array, deltas: Array, anchors: Array) -> Proposals:
                best = top_k(logits, count)
                boxes = box_ops.clip(box_ops.decode(deltas[best], anchors[best], _BOX_WEIGHTS), size)
                large = (boxes[:, 2:] - boxes[:, :2] >= self.min_size).all(axis=-1)
                # Small levels are filled up: NMS works on all levels at once.
                missing = count - best.shape[0]
                return jax.tree.map(
                    lambda values: jnp.pad(values, ((0, missing), *[(0, 0)] * (values.ndim - 1))),
                    Proposals(boxes, logits[best], large),
                )

            levels = [one_level(logits[level], deltas[level], anchors[level]) for level in sorted(logits)]
            stacked = jax.tree.map(lambda *values: jnp.stack(values), *levels)
            one_label = jnp.zeros(count, jnp.int32)
            keep = jax.vmap(lambda boxes, valid: nms_of_sorted(boxes, one_label, valid, self.nms_threshold))
            kept = stacked.replace(valid=keep(stacked.boxes, stacked.valid))
            flat = jax.tree.map(lambda values: values.reshape(-1, *values.shape[2:]), kept)
            best = top_k(jnp.where(flat.valid, flat.scores, -jnp.inf), post_nms)
            return jax.tree.map(lambda values: values[best], flat)

        # Proposals are inputs of the second stage, not outputs of the first: their gradient is not used (Faster
        # R-CNN, "approximate joint training").
        logits, deltas = jax.lax.stop_gradient((logits, deltas))
        return per_image(one_image, in_axes=(0, 0, 0, None))(logits, deltas, image_sizes, anchors)

    def losses(
        self,
        logits: dict[int, Float[Array, "b _"]],
        deltas: dict[int, Float[Array, "b _ 4"]],
        anchors: dict[int, Float[Array, "_ 4"]],
        image_sizes: Float[Array, "b 2"],
        ground_truth: GroundTruth,
        keys: Key[Array, "b"] | Int[Array, "b 2"],
    ) -> dict[str, Mean]:
        """Return rpn_class (sigmoid cross-entropy) and rpn_box (smooth L1) over the sampled anchors.

        Both are divided by the number of sampled anchors of the whole batch.
        """
        levels = sorted(logits)
        match = Matcher(self.foreground_threshold, self.background_threshold, self.crowd_threshold, low_quality=True)

        def one_image(
            size: Float[Array, "2"], gt: GroundTruth, key: Array, anchors: Float[Array, "a 4"]
        ) -> tuple[Sample, Float[Array, "r 4"]]:
            allowed = jnp.ones(anchors.shape[0], bool)
            if self.boundary_threshold >= 0:
                margin = self.boundary_threshold
                allowed = (anchors[:, :2] >= -margin).all(-1) & (anchors[:, 2:] <= size[::-1] + margin).all(-1)
            matched = match(anchors, allowed, gt.boxes, gt.valid, gt.is_crowd)
            drawn = draw(key, matched.foreground, matched.background, self.num_samples, self.foreground_fraction)
            gt_boxes = gt.boxes[matched.gt_index[drawn.indices]]
            return drawn, box_ops.encode(gt_boxes, anchors[drawn.indices], _BOX_WEIGHTS)

        all_anchors = jnp.concatenate([anchors[level] for level in levels])
        drawn, targets = per_image(one_image, in_axes=(0, 0, 0, None))(image_sizes, ground_truth, keys, all_anchors)
        take = jax.vmap(lambda values, index: values[index])
        logit, delta = (
            take(jnp.concatenate([values[level] for level in levels], axis=1), drawn.indices)
            for values in (logits, deltas)
        )
        class_loss = optax.sigmoid_binary_cross_entropy(logit, drawn.foreground.astype(jnp.float32))
        box_loss = jnp.where(drawn.foreground, smooth_l1(delta - targets, beta=self.smooth_l1_beta).sum(-1), 0.0)
        return {"rpn_class": masked_mean(class_loss, drawn.valid), "rpn_box": masked_mean(box_loss, drawn.valid)}
