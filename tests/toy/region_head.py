"""A head on regions: the middle of each object, as one keypoint."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from maskx_jax.ops.losses import masked_mean


class CenterHead(nn.Module):
    resolution: int = 7

    produces = "keypoints"

    def regions(self, rois, ground_truth):
        return rois, rois.foreground

    @nn.compact
    def __call__(self, pooled, labels, used, class_weights):
        return nn.sigmoid(nn.Dense(2, name="center")(pooled.mean((2, 3))))

    def losses(self, predictions, rois, used, ground_truth):
        boxes = jax.vmap(lambda boxes, index: boxes[index])(ground_truth.boxes, rois.gt_index)
        middle = (boxes[..., :2] + boxes[..., 2:]) / 2
        size = jnp.maximum(rois.boxes[..., 2:] - rois.boxes[..., :2], 1.0)
        error = jnp.abs(predictions - (middle - rois.boxes[..., :2]) / size).mean(-1)
        return {"center": masked_mean(error, used)}

    def detect(self, predictions, detections):
        boxes = detections.boxes
        points = boxes[..., :2] + predictions * (boxes[..., 2:] - boxes[..., :2])
        points = jnp.concatenate([points, detections.scores[..., None]], axis=-1)
        return dataclasses.replace(detections, keypoints=points[:, :, None])
