"""The second stage's box branch: class and box of each region (Fast R-CNN on FPN, Faster R-CNN on C4)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from maskx_jax.limits import Check, number, numbers, one_of, some_numbers
from maskx_jax.models.layers import Linear32, conv_norm, xavier_fill
from maskx_jax.ops import boxes as box_ops
from maskx_jax.ops.class_activation import class_activations
from maskx_jax.ops.detections import select
from maskx_jax.ops.losses import Mean, masked_mean, smooth_l1
from maskx_jax.ops.matching import Matcher
from maskx_jax.ops.per_image import per_image
from maskx_jax.ops.sampling import draw
from maskx_jax.structures import Detections, GroundTruth, Proposals, RoiTargets

BODIES = ("mlp", "conv", "mean")
# From here on (with background) deltas are computed for the classes that are asked for alone: with fewer classes one
# matrix product of all is as fast, on accelerators faster.
MANY_CLASSES = 1000
LIMITS: Mapping[str, Check] = {
    "body": one_of(*BODIES),
    "hidden": number(1),
    "conv_channels": some_numbers(1),
    "resolution": number(1),
    "num_samples": number(1),
    "foreground_fraction": number(0, 1),
    "foreground_threshold": number(0, 1),
    "crowd_threshold": number(0, 1),
    "box_weights": numbers(4, 1e-6),
    "smooth_l1_beta": number(0),
    "score_threshold": number(0, 1),
    "nms_threshold": number(0, 1),
    "pre_nms_top_k": number(1),
}


class ClassWeights(NamedTuple):
    """The predictor's own parameters, one row a class (row 0 is background): what Mask^X R-CNN transfers from."""

    classification: Float[Array, "classes hidden"]
    boxes: Float[Array, "classes 4*hidden"]


class BoxLayer(NamedTuple):
    """The layer that predicts deltas: columns 4 c to 4 c + 3 are of class c."""

    kernel: Float[Array, "hidden 4*classes"]
    bias: Float[Array, "4*classes"]


class Deltas(NamedTuple):
    """Class-specific deltas of regions, float32: all of them, or what those of single classes are computed from.

    Training asks for one class of a region and detection for a few, so where there are many classes the others are not
    computed.

    Attributes:
      of_regions: the deltas for every class, `b r classes 4`, or what the box head sees of each region, `b r hidden`;
        those of one image are without `b`.
      layer: what makes deltas of the latter; None with the former.
    """

    of_regions: Array
    layer: BoxLayer | None

    def of_labels(self, labels: Int[Array, "*b r"]) -> Float[Array, "*b r 4"]:
        """Return the deltas of each region for its label."""
        if self.layer is None:
            return jnp.take_along_axis(self.of_regions, labels[..., None, None], axis=-2)[..., 0, :]
        columns = 4 * labels[..., None] + jnp.arange(4)
        # From the kernel as it lies: the gradient of a transposed kernel would be transposed back, for all classes.
        rows = jnp.moveaxis(self.layer.kernel[:, columns], 0, -1).astype(self.of_regions.dtype)
        deltas = jnp.einsum("...h,...kh->...k", self.of_regions, rows, preferred_element_type=jnp.float32)
        return deltas + self.layer.bias[columns]

    def of_pairs(self, regions: Int[Array, "k"], labels: Int[Array, "k"]) -> Float[Array, "k 4"]:
        """Return the deltas of regions, which may repeat, for a label each; in one image."""
        if self.layer is None:
            return self.of_regions[regions, labels]
        return Deltas(self.of_regions[regions], self.layer).of_labels(labels)


class BoxPredictions(NamedTuple):
    """Logits, float32, and deltas of each region, with the weights that made them, and what they were made from.

    Attributes:
      logits: of each class.
      deltas: of the boxes.
      class_weights: the predictor's parameters.
      maps: the map of each region whose mean the predictor sees; None for an MLP.
    """

    logits: Float[Array, "b r classes"]
    deltas: Deltas
    class_weights: ClassWeights
    maps: Float[Array, "b r s s hidden"] | None = None

    def activations(self, labels: Int[Array, "b r"]) -> Float[Array, "b r s s"]:
        """Return where in each region its label is seen, see `ops.class_activation`.

        Only the rows of the labels at hand are used: 3,000 classes cost what 80 cost. What is trained by it changes the
        maps and never the rows, as in OPMask; they are what the weight transfer of Mask^X R-CNN sees, too.

        Raises:
          ValueError: the box head is an MLP.
        """
        if self.maps is None:
            raise ValueError("got a box head of body 'mlp'; class activations are of one that takes the mean of a map")
        rows = jax.lax.stop_gradient(self.class_weights.classification)[labels]
        return jax.vmap(class_activations)(self.maps, rows)


class BoxHead(nn.Module):
    """A body, then the class and box predictor.

    Attributes:
      num_classes: C, without background.
      body: "mlp": two hidden layers (FPN). "conv": convolutions with GroupNorm and the mean over the bins (OPMask,
        Biertimpel et al. 2021). "mean": only the mean over the bins, since res5 came before (C4).
      hidden: width of the two layers, fc6 and fc7.
      conv_channels: of each of the 3x3 convolutions; the last is what the predictor sees.
      resolution: of the pooled features.
      num_samples: regions an image that are trained on.
      foreground_fraction: at most this part of them is foreground.
      foreground_threshold: IoU from which a region is foreground; below it is background.
      crowd_threshold: see `ops.matching.Matcher`.
      box_weights: scale of the deltas (Detectron's bbox_reg_weights).
      smooth_l1_beta: of the box loss: 1 in Detectron, 1/9 in torchvision, 0 in detectron2.
      score_threshold: detections must score more than this.
      nms_threshold: IoU above which the worse of two detections of one class is dropped.
      pre_nms_top_k: detections an image that enter NMS.
      max_detections: detections an image, over all classes.
      dtype: of the computation.
      cpu: whether convolutions are computed as one CPU does best, see `layers.conv`.
    """

    num_classes: int
    body: str = "mlp"
    hidden: int = 1024
    conv_channels: Sequence[int] = (512, 1024, 1024, 1024)
    resolution: int = 7
    num_samples: int = 512
    foreground_fraction: float = 0.25
    foreground_threshold: float = 0.5
    crowd_threshold: float = 0.7
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    smooth_l1_beta: float = 1.0
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    pre_nms_top_k: int = 2000
    max_detections: int = 100
    dtype: Any = jnp.float32
    cpu: bool = False

    @nn.compact
    def __call__(self, pooled: Float[Array, "b r s s c"]) -> BoxPredictions:
        """Predict from the features of regions.

        Raises:
          ValueError: `body` is unknown.
        """
        if self.body not in BODIES:
            raise ValueError(f"got body {self.body!r} of the box head; expected one of {BODIES}")
        if self.body == "mlp":
            maps, x = None, self._mlp(pooled)
        else:
            maps = self._convs(pooled) if self.body == "conv" else pooled
            x = maps.mean((2, 3))
        classes = self.num_classes + 1
        normal = nn.initializers.normal
        logits, class_columns, _ = Linear32(classes, normal(0.01), self.dtype, name="classification")(x)
        table, box_columns, box_biases = Linear32(4 * classes, normal(0.001), self.dtype, name="boxes")(x)
        # Row 4 c + k of the box weights belongs to class c: the four rows of a class become one.
        class_weights = ClassWeights(class_columns.T, box_columns.T.reshape(classes, -1))
        if classes < MANY_CLASSES:
            deltas = Deltas(table.reshape(*table.shape[:2], classes, 4), None)
        else:
            # Jitted, the table is not computed.
            deltas = Deltas(x.astype(self.dtype), BoxLayer(box_columns, box_biases))
        return BoxPredictions(logits, deltas, class_weights, maps)

    def _mlp(self, pooled: Float[Array, "b r s s c"]) -> Float[Array, "b r hidden"]:
        # Flattened in the order row, column, channel.
        x = pooled.reshape(*pooled.shape[:2], -1)
        for name in ("fc6", "fc7"):
            x = nn.relu(nn.Dense(self.hidden, kernel_init=xavier_fill, dtype=self.dtype, name=name)(x))
        return x

    def _convs(self, pooled: Float[Array, "b r s s c"]) -> Float[Array, "b r s s hidden"]:
        x = pooled.reshape(-1, *pooled.shape[2:])
        for index, channels in enumerate(self.conv_channels, 1):
            x = nn.relu(conv_norm(x, channels, 3, dtype=self.dtype, cpu=self.cpu, name=f"conv{index}"))
        return x.reshape(*pooled.shape[:-1], -1)

    def choose_regions(
        self, proposals: Proposals, ground_truth: GroundTruth, keys: Key[Array, "b"] | Int[Array, "b 2"]
    ) -> RoiTargets:
        """Draw the regions to train on from the proposals and the ground-truth boxes themselves."""
        match = Matcher(self.foreground_threshold, self.foreground_threshold, self.crowd_threshold)

        def one_image(proposals: Proposals, gt: GroundTruth, key: Array) -> RoiTargets:
            candidates = jnp.concatenate([proposals.boxes, gt.boxes])
            valid = jnp.concatenate([proposals.valid, gt.valid & ~gt.is_crowd])
            matched = match(candidates, valid, gt.boxes, gt.valid, gt.is_crowd)
            drawn = draw(key, matched.foreground, matched.background, self.num_samples, self.foreground_fraction)
            gt_index = matched.gt_index[drawn.indices]
            return RoiTargets(
                boxes=candidates[drawn.indices],
                labels=jnp.where(drawn.foreground, gt.labels[gt_index], 0),
                gt_index=gt_index,
                foreground=drawn.foreground,
                valid=drawn.valid,
            )

        return per_image(one_image)(proposals, ground_truth, keys)

    def losses(self, predictions: BoxPredictions, rois: RoiTargets, ground_truth: GroundTruth) -> dict[str, Mean]:
        """Return box_class (softmax cross-entropy) and box (smooth L1), both over all sampled regions."""
        gt_boxes = jnp.take_along_axis(ground_truth.boxes, rois.gt_index[..., None], axis=1)
        target = box_ops.encode(gt_boxes, rois.boxes, self.box_weights)
        box_loss = smooth_l1(predictions.deltas.of_labels(rois.labels) - target, beta=self.smooth_l1_beta).sum(-1)
        class_loss = optax.softmax_cross_entropy_with_integer_labels(predictions.logits, rois.labels)
        return {
            "box_class": masked_mean(class_loss, rois.valid),
            "box": masked_mean(jnp.where(rois.foreground, box_loss, 0.0), rois.valid),
        }

    def detect(self, predictions: BoxPredictions, proposals: Proposals, image_sizes: Float[Array, "b 2"]) -> Detections:
        """Turn predictions on proposals into detections without masks."""
        # Probabilities sum to 1, so fewer than 1 / threshold classes of one region can pass: looking at as many loses
        # nothing and keeps the candidates few, whatever the number of classes.
        labels_per_region = int(1 / self.score_threshold) if self.score_threshold > 0 else None

        def one_image(
            logits: Float[Array, "p classes"],
            of_regions: Float[Array, "p classes 4"] | Float[Array, "p hidden"],
            layer: BoxLayer | None,
            proposals: Proposals,
            size: Float[Array, "2"],
        ) -> Detections:
            def boxes_of(regions: Int[Array, "k"], labels: Int[Array, "k"]) -> Float[Array, "k 4"]:
                deltas = Deltas(of_regions, layer).of_pairs(regions, labels)
                return box_ops.decode(deltas, proposals.boxes[regions], self.box_weights)

            found = select(
                jax.nn.softmax(logits)[:, 1:],
                proposals.valid,
                boxes_of,
                size,
                score_threshold=self.score_threshold,
                pre_nms_top_k=self.pre_nms_top_k,
                nms_threshold=self.nms_threshold,
                max_detections=self.max_detections,
                labels_per_candidate=labels_per_region,
            )
            return Detections(found.boxes, found.scores, found.labels, masks=None, valid=found.valid)

        return per_image(one_image, in_axes=(0, 0, None, 0, 0))(
            predictions.logits, *predictions.deltas, proposals, image_sizes
        )
