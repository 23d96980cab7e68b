"""FCOS: class, box and centerness at every point of the pyramid (Tian et al. 2019)."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, UInt8

from maskx_jax.limits import Check, number, numbers, one_of
from maskx_jax.models.layers import check_group_norm, conv, group_norm_layer
from maskx_jax.ops import boxes as box_ops
from maskx_jax.ops.anchors import grid_strides
from maskx_jax.ops.detections import suppress
from maskx_jax.ops.giou import giou_loss, paired_iou
from maskx_jax.ops.losses import Mean
from maskx_jax.ops.per_image import per_image
from maskx_jax.ops.point_matching import PointMatch, match_points
from maskx_jax.ops.points import boxes_from_distances, centerness, grid_points, side_distances
from maskx_jax.ops.sampling import top_k
from maskx_jax.structures import Detections, GroundTruth

BOX_WEIGHTS = ("none", "centerness")
QUALITIES = ("centerness", "iou")
SCORES = ("root", "product")
POINTS = ("centre", "torchvision")

LIMITS: Mapping[str, Check] = {
    "channels": check_group_norm,
    "num_convs": number(0),
    "points": one_of(*POINTS),
    "level_sizes": numbers(4, 0),
    "radius": number(0),
    "box_weight": one_of(*BOX_WEIGHTS),
    "box_smoothing": number(0),
    "images_per_denominator": number(0),
    "quality": one_of(*QUALITIES),
    "score": one_of(*SCORES),
    "score_threshold": number(0, 1),
    "pre_nms_top_k": number(1),
    "nms_threshold": number(0, 1),
}

_normal = nn.initializers.normal(0.01)


class Tower(nn.Module):
    """Convolutions with GroupNorm and ReLU, the same on every level."""

    channels: int
    num_convs: int
    dtype: Any
    cpu: bool

    @nn.compact
    def __call__(self, maps: dict[int, Float[Array, "b _ _ c"]]) -> dict[int, Float[Array, "b _ _ channels"]]:
        """Return a map for each map."""
        for index in range(1, self.num_convs + 1):
            options = {"kernel_init": _normal, "dtype": self.dtype, "cpu": self.cpu, "name": f"conv{index}"}
            layer = conv(self.channels, 3, **options)
            norm = group_norm_layer(self.channels, dtype=self.dtype, name=f"conv{index}_norm")
            maps = {level: nn.relu(norm(layer(x))) for level, x in maps.items()}
        return maps


class Points(NamedTuple):
    """The points of all levels, one after the other, P3 first.

    Attributes:
      places: (x, y) in pixels.
      strides: nominal stride of the point's level, the unit of its distances.
      size_ranges: see `ops.point_matching.match_points`.
      counts: points of each level.
    """

    places: Float[Array, "p 2"]
    strides: Float[Array, "p"]
    size_ranges: Float[Array, "p 2"]
    counts: tuple[int, ...]


class PointPredictions(NamedTuple):
    """What the head says at every point, float32.

    Attributes:
      logits: of each class.
      distances: from the point to the sides of its box, in strides, not negative.
      centerness: logits.
      box_maps: of the box tower, by level.
      class_weights: of the layer that classifies, flattened: what detects each class.
    """

    logits: Float[Array, "b p classes"]
    distances: Float[Array, "b p 4"]
    centerness: Float[Array, "b p"]
    box_maps: dict[int, Float[Array, "b _ _ c"]]
    class_weights: Float[Array, "classes w"]

    def boxes(self, points: Points) -> Float[Array, "b p 4"]:
        """Return the boxes in pixels."""
        return boxes_from_distances(points.places, self.distances * points.strides[:, None])


class PointDetections(NamedTuple):
    """Detections without masks, and the point that each was found at."""

    detections: Detections
    points: Int[Array, "b d"]


class FCOSHead(nn.Module):
    """Two towers shared by all levels, and their predictors. The code bases differ in most of the arguments below.

    Attributes:
      num_classes: C, without background: one sigmoid each.
      channels, num_convs: of the two towers.
      learned_scales: a scalar for each level multiplies the distances (the authors, AdelaiDet; not torchvision).
      points: "centre": fixed strides, points in the middle of the cells. "torchvision": at their top left, with strides
        rounded down from the canvas' size; see `ops.anchors.grid_strides`.
      level_sizes: the borders between the sizes that the levels are for, in pixels.
      closed_ranges: see `ops.point_matching.match_points`.
      radius: of the centre sampling, in strides.
      ignore_crowds: background points in a crowd region are not trained on; else they are background.
      box_weight: "none": a mean over the positive points. "centerness": weighted by it (the authors).
      box_smoothing: see `ops.giou.giou_loss`; 1 in the authors' code.
      images_per_denominator: so many images are divided by their positive points together; 0: all of the batch, on
        however many devices (the authors). torchvision divides on each device.
      quality: what the centerness branch learns: "centerness", or the "iou" of the predicted box (AdelaiDet).
      score: "root" of class probability times centerness (torchvision, AdelaiDet) or their "product" (the authors).
      threshold_score: whether the threshold is on the score (torchvision) or on the class probability.
      score_threshold: detections must have more than this.
      pre_nms_top_k: detections of a level that enter NMS.
      nms_threshold: IoU above which the worse of two detections of one class is dropped.
      max_detections: detections an image, over all classes.
      dtype: of the computation in the towers.
      cpu: whether convolutions are computed as one CPU does best, see `layers.conv`.
    """

    num_classes: int
    channels: int = 256
    num_convs: int = 4
    learned_scales: bool = False
    points: str = "centre"
    level_sizes: tuple[float, ...] = (64.0, 128.0, 256.0, 512.0)
    closed_ranges: bool = False
    radius: float = 1.5
    ignore_crowds: bool = True
    box_weight: str = "none"
    box_smoothing: float = 0.0
    images_per_denominator: int = 0
    quality: str = "centerness"
    score: str = "root"
    threshold_score: bool = True
    score_threshold: float = 0.2
    pre_nms_top_k: int = 1000
    nms_threshold: float = 0.6
    max_detections: int = 100
    dtype: Any = jnp.float32
    cpu: bool = False

    @nn.compact
    def __call__(self, pyramid: dict[int, Float[Array, "b _ _ c"]]) -> PointPredictions:
        """Predict at every point of the levels."""
        class_maps = Tower(self.channels, self.num_convs, self.dtype, self.cpu, name="class_tower")(pyramid)
        box_maps = Tower(self.channels, self.num_convs, self.dtype, self.cpu, name="box_tower")(pyramid)

        def predictor(features: int, name: str, bias: float = 0.0) -> nn.Conv:
            constant = nn.initializers.constant(bias)
            # Float32 whatever the towers are: rounded to bfloat16, a side of 500 pixels may be off by two.
            return conv(features, 3, kernel_init=_normal, bias_init=constant, cpu=self.cpu, name=name)

        # A class is found with probability .01 at first: RetinaNet's prior, without which the focal loss explodes.
        classification = predictor(self.num_classes, "classification", -math.log(99.0))
        # A side that is 0 at every point would get no gradient through the ReLU: begin within what a level is for.
        boxes, quality = predictor(4, "boxes", 4.0), predictor(1, "centerness")
        logits, distances, centernesses = [], [], []
        for level in sorted(pyramid):
            logits.append(_flat(classification(class_maps[level])))
            box = _flat(boxes(box_maps[level]))
            if self.learned_scales:
                box *= self.param(f"scale{level}", nn.initializers.ones, ())
            distances.append(nn.relu(box))
            centernesses.append(_flat(quality(box_maps[level]))[..., 0])
        return PointPredictions(
            jnp.concatenate(logits, axis=1),
            jnp.concatenate(distances, axis=1),
            jnp.concatenate(centernesses, axis=1),
            dict(sorted(box_maps.items())),
            classification.variables["params"]["kernel"].reshape(-1, self.num_classes).T,
        )

    def grid(self, pyramid: dict[int, Float[Array, "b _ _ c"]], images: UInt8[Array, "b h w 3"]) -> Points:
        """Return the points of a pyramid.

        Args:
          pyramid: its maps, by level.
          images: that it was made of; only their size plays a part.

        Raises:
          ValueError: there are more or fewer levels than `level_sizes` are for.
        """
        borders = [0.0, *self.level_sizes, math.inf]
        if len(pyramid) != len(borders) - 1:
            raise ValueError(
                f"got {len(self.level_sizes)} level_sizes; expected one less than the {len(pyramid)} levels"
            )
        is_torchvision = self.points == "torchvision"
        places, strides, ranges, counts = [], [], [], []
        for (level, features), low, high in zip(sorted(pyramid.items()), borders[:-1], borders[1:], strict=True):
            cells = (features.shape[1], features.shape[2])
            steps = grid_strides(
                (images.shape[1], images.shape[2]), cells, 2**level, "torchvision" if is_torchvision else "detectron2"
            )
            places.append(grid_points(*cells, steps, "corner" if is_torchvision else "centre"))
            counts.append(math.prod(cells))
            strides += [2.0**level] * counts[-1]
            ranges += [(low, high)] * counts[-1]
        return Points(
            jnp.concatenate(places),
            jnp.asarray(np.array(strides, np.float32)),
            jnp.asarray(np.array(ranges, np.float32)),
            tuple(counts),
        )

    def match(
        self, points: Points, ground_truth: GroundTruth, allowed: Bool[Array, "b p n"] | None = None
    ) -> PointMatch:
        """Assign the points of each image to its objects; see `ops.point_matching.match_points`."""

        def image(boxes: Array, valid: Array, allowed: Array | None) -> PointMatch:
            return match_points(
                points.places,
                points.strides,
                points.size_ranges,
                boxes,
                valid,
                radius=self.radius,
                closed_ranges=self.closed_ranges,
                allowed=allowed,
            )

        objects = ground_truth.valid & ~ground_truth.is_crowd
        return jax.vmap(image, in_axes=(0, 0, None if allowed is None else 0))(ground_truth.boxes, objects, allowed)

    def losses(
        self, predictions: PointPredictions, points: Points, matched: PointMatch, ground_truth: GroundTruth
    ) -> dict[str, Mean]:
        """Return class (focal loss), box (GIoU) and centerness (binary cross-entropy).

        All are divided by the positive points; the box loss by their weights.

        Raises:
          ValueError: `images_per_denominator` does not divide the number of images.
        """
        positive = matched.foreground
        labels = jnp.take_along_axis(ground_truth.labels, matched.gt_index, axis=1)
        target_classes = jax.nn.one_hot(jnp.where(positive, labels, 0) - 1, self.num_classes)
        focal = optax.sigmoid_focal_loss(predictions.logits, target_classes, alpha=0.25, gamma=2.0).sum(axis=-1)
        counted = positive | ~self._in_crowd(points, ground_truth) if self.ignore_crowds else jnp.ones_like(positive)

        gt_boxes = jnp.take_along_axis(ground_truth.boxes, matched.gt_index[..., None], axis=1)
        target = side_distances(points.places[None], gt_boxes) / points.strides[:, None]
        # Around the point, in strides: the loss of boxes is the same wherever they lie.
        target_boxes, boxes = (_around_point(x) for x in (target, predictions.distances))
        target_centerness = centerness(target)
        quality = target_centerness
        if self.quality == "iou":
            quality = jax.lax.stop_gradient(paired_iou(boxes, target_boxes))
        weight = jnp.where(positive, target_centerness if self.box_weight == "centerness" else 1.0, 0.0)
        box_loss = jnp.where(positive, giou_loss(boxes, target_boxes, smoothing=self.box_smoothing), 0.0)
        cross_entropy = optax.sigmoid_binary_cross_entropy(predictions.centerness, quality)
        return {
            "class": self._mean(jnp.where(counted, focal, 0.0), positive),
            "box": self._mean(box_loss * weight, weight),
            "centerness": self._mean(jnp.where(positive, cross_entropy, 0.0), positive),
        }

    def _mean(self, losses: Float[Array, "b p"], weights: Float[Array, "b p"] | Bool[Array, "b p"]) -> Mean:
        """Return the sum of losses by the sum of weights; over groups of images, the mean of what each group has."""
        together = self.images_per_denominator
        if not together:
            return Mean(losses.sum(), weights.sum())
        if len(losses) % together:
            raise ValueError(f"got images_per_denominator {together}; expected a divisor of the {len(losses)} images")
        totals, numbers = (x.sum(axis=1).reshape(-1, together).sum(axis=1) for x in (losses, weights))
        return Mean(jax.vmap(Mean.value)(Mean(totals, numbers)).sum(), jnp.float32(len(totals)))

    def _in_crowd(self, points: Points, ground_truth: GroundTruth) -> Bool[Array, "b p"]:
        crowds = ground_truth.valid & ground_truth.is_crowd
        distances = side_distances(points.places[None, :, None], ground_truth.boxes[:, None])
        return ((distances.min(axis=-1) > 0) & crowds[:, None]).any(axis=-1)

    def detect(
        self, predictions: PointPredictions, points: Points, image_sizes: Float[Array, "b 2"]
    ) -> PointDetections:
        """Turn predictions into detections without masks."""

        def image(logits: Array, quality: Array, boxes: Array, size: Array) -> PointDetections:
            probability, scores = self._scores(logits, quality)
            passes = (scores if self.threshold_score else probability) > self.score_threshold
            scores = jnp.where(passes, scores, -jnp.inf)
            # The best of each level: (point, class) pairs, counted through all levels.
            chosen, start = [], 0
            for count in points.counts:
                level = scores[start : start + count].ravel()
                chosen.append(start * self.num_classes + top_k(level, self.pre_nms_top_k))
                start += count
            pairs = jnp.concatenate(chosen)
            pairs = pairs[top_k(scores.ravel()[pairs], len(pairs))]
            best, point, label = scores.ravel()[pairs], pairs // self.num_classes, pairs % self.num_classes + 1
            clipped = box_ops.clip(boxes[point], size)
            found = suppress(clipped, best, label, point, self.nms_threshold, self.max_detections)
            detections = Detections(found.boxes, found.scores, found.labels, masks=None, valid=found.valid)
            return PointDetections(detections, found.candidates)

        return per_image(image)(predictions.logits, predictions.centerness, predictions.boxes(points), image_sizes)

    def _scores(self, logits: Float[Array, "p classes"], quality: Float[Array, "p"]) -> tuple[Array, Array]:
        """Return the probability of each class at each point, and the score of a detection of it there."""
        probability = jax.nn.sigmoid(logits)
        product = probability * jax.nn.sigmoid(quality)[:, None]
        return probability, jnp.sqrt(product) if self.score == "root" else product

    def closest(
        self,
        predictions: PointPredictions,
        points: Points,
        image_sizes: Float[Array, "b 2"],
        boxes: Float[Array, "b n 4"],
        labels: Int[Array, "b n"],
    ) -> Int[Array, "b n"]:
        """Return the point whose own box fits each given box best, by IoU; the score for its label decides a tie.

        The box of a detection leads back to the point that found it.

        Args:
          predictions: of the head.
          points: of the pyramid.
          image_sizes: height and width without padding.
          boxes: clipped to the images.
          labels: 1..C.
        """

        def image(logits: Array, quality: Array, found: Array, size: Array, boxes: Array, labels: Array) -> Array:
            _, scores = self._scores(logits, quality)
            overlaps = box_ops.iou(boxes, box_ops.clip(found, size))
            # Boxes that fill the image are the same at many points once they are clipped, up to rounding.
            return (overlaps + 1e-4 * scores[:, labels - 1].T).argmax(axis=1)

        of_points = predictions.logits, predictions.centerness, predictions.boxes(points)
        return per_image(image)(*of_points, image_sizes, boxes, labels)


def _flat(x: Float[Array, "b h w c"]) -> Float[Array, "b h*w c"]:
    return x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)


def _around_point(distances: Float[Array, "... 4"]) -> Float[Array, "... 4"]:
    return jnp.concatenate([-distances[..., :2], distances[..., 2:]], axis=-1)
