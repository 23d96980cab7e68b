"""A head on regions: the middle of each object, as one keypoint."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from maskx_jax.ops.losses import masked_mean


class CenterHead(nn.Module):
    resolution: int = 7

    produces = "keypoints"

    def regions(self, rois, ground_truth):
        return rois, rois.foreground

    @nn.compact
    def __call__(self, pooled, labels, used, class_weights):
        return nn.Dense(1, name="center")(pooled)[..., 0][:, :, None]

    def losses(self, predictions, rois, used, ground_truth):
        boxes = jax.vmap(lambda boxes, index: boxes[index])(ground_truth.boxes, rois.gt_index)
        middle = (boxes[..., :2] + boxes[..., 2:]) / 2
        cells = (middle - rois.boxes[..., :2]) / (rois.boxes[..., 2:] - rois.boxes[..., :2]) * self.resolution
        column, row = jnp.moveaxis(jnp.clip(cells.astype(jnp.int32), 0, self.resolution - 1), -1, 0)
        logits = predictions.reshape(*used.shape, -1)
        error = optax.softmax_cross_entropy_with_integer_labels(logits, row * self.resolution + column)
        return {"center": masked_mean(error, used)}

    def detect(self, predictions, detections):
        return dataclasses.replace(detections, keypoint_maps=predictions)
