"""A family of detectors without proposals and regions: every cell of the coarsest map says a box and its class."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from maskx_jax.models.pixels import Pixels
from maskx_jax.ops.boxes import iou
from maskx_jax.ops.detections import select
from maskx_jax.ops.losses import masked_mean
from maskx_jax.ops.per_image import per_image
from maskx_jax.structures import Detections


class Cells(nn.Module):
    num_classes: int
    pixels: Pixels
    backbone: nn.Module
    max_detections: int
    size: float = 48.0
    dtype: Any = jnp.float32
    cpu: bool = False

    produces = frozenset({"boxes"})
    multiple = property(lambda self: self.backbone.multiple)

    @nn.compact
    def predict(self, images, image_sizes):
        """Return boxes `b n 4`, class logits `b n c` and the squares `n 4` from which the boxes are measured."""
        features = self.backbone(self.pixels(images, image_sizes).astype(self.dtype))
        level = max(features)
        _, height, width, _ = features[level].shape
        x, y = jnp.meshgrid((jnp.arange(width) + 0.5) * 2**level, (jnp.arange(height) + 0.5) * 2**level)
        half = self.size / 2
        squares = jnp.stack([x - half, y - half, x + half, y + half], axis=-1).reshape(-1, 4)
        out = nn.Dense(4 + self.num_classes, name="out")(features[level]).reshape(len(images), len(squares), -1)
        return squares + out[..., :4] * self.size, out[..., 4:], squares

    def loss_means(self, batch, keys):
        boxes, logits, squares = self.predict(batch.images, batch.image_sizes)
        gt = batch.ground_truth
        overlaps = jnp.where(gt.valid[:, None], jax.vmap(lambda boxes: iou(squares, boxes))(gt.boxes), 0.0)
        index, found = overlaps.argmax(-1), overlaps.max(-1) > 0.1
        target = jnp.take_along_axis(gt.boxes, index[..., None], axis=1)
        labels = jnp.where(found, jnp.take_along_axis(gt.labels, index, axis=1), 0)
        classes = jax.nn.one_hot(labels - 1, self.num_classes)
        return {
            "box": masked_mean(jnp.abs(boxes - target).mean(-1) / self.size, found),
            "class": masked_mean(optax.sigmoid_binary_cross_entropy(logits, classes).sum(-1), found | True),
        }

    def detect(self, images, image_sizes):
        options = {"score_threshold": 0.01, "pre_nms_top_k": 100, "nms_threshold": 0.5}

        def one_image(boxes, logits, size):
            scores, every = jax.nn.sigmoid(logits), jnp.ones(len(boxes), bool)
            found = select(
                scores, every, lambda cell, _: boxes[cell], size, max_detections=self.max_detections, **options
            )
            return Detections(found.boxes, found.scores, found.labels, masks=None, valid=found.valid)

        boxes, logits, _ = self.predict(images, image_sizes)
        return per_image(one_image)(boxes, logits, image_sizes)
