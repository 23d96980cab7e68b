"""The types that travel between data, models, training and evaluation.

Letters of the shapes, here and in every docstring of the package:

    b  images of a batch      n  ground-truth slots      a  anchors over all levels    m  side of a predicted mask
    h  rows of the canvas     p  proposals               r  sampled RoIs               s  side of a stored mask (112)
    w  columns of the canvas  d  detections              k  keypoints                  c  channels

Conventions, from disk to metric:

- Boxes are (x1, y1, x2, y2), float32, in continuous pixels of the padded canvas: the pixel in row 0, column 0 covers
  [0, 1) x [0, 1), and the width of a box is x2 - x1.
- Labels are 1..C; 0 is background. Category ids are the dataset's own numbers and stay on the host.
- Whether a slot holds something is said by a boolean field, never by a special value.

The same types hold NumPy arrays on the host and JAX arrays on the device.
"""

from typing import Any

from flax import struct, traverse_util

# Rows of 112 bits: a stored mask is a bitmap of its object's own box, see `GroundTruth.masks`.
STORED_MASK_SIDE = 112

Array = Any
PyTree = Any


@struct.dataclass
class Keypoints:
    """The annotated keypoints of objects, in the order of the dataset's skeleton.

    Attributes:
      points: `b n k 2` float32, (x, y) in continuous pixels; of no meaning where not labelled.
      labelled: `b n k` bool, whether its place is annotated (COCO's v > 0): what may be trained on.
      visible: `b n k` bool, whether it is labelled and can be seen (COCO's v = 2).
    """

    points: Array
    labelled: Array
    visible: Array


@struct.dataclass
class GroundTruth:
    """What is known of the objects of a batch, in `n` slots an image.

    Attributes:
      boxes: `b n 4` float32, clipped to the image.
      labels: `b n` int32, 1..C.
      masks: `b n s s/8` uint8, packed bits (`numpy.packbits` along the last axis) of the object seen in its frame.
      mask_frames: `b n 4` float32, the box that the stored mask covers: the object's uncropped extent, which may
        reach over the image's border after a crop.
      has_mask: `b n` bool, whether the mask may be used for training.
      is_crowd: `b n` bool, a region of many objects; ignored in training, never learned as background.
      valid: `b n` bool, whether the slot holds an object.
      keypoints: of the objects, or None where the dataset has none.
      mask_weight: `b n` float32, 0 to 1, how much the mask counts where it may be used; None where all count the same.
    """

    boxes: Array
    labels: Array
    masks: Array
    mask_frames: Array
    has_mask: Array
    is_crowd: Array
    valid: Array
    keypoints: Keypoints | None = None
    mask_weight: Array | None = None


@struct.dataclass
class Batch:
    """Images on a common canvas with their ground truth.

    Attributes:
      images: `b h w 3` uint8 RGB, padded at the bottom and the right.
      image_sizes: `b 2` float32, height and width of the image's part of the canvas.
      image_ids: `b` int32 (int64 on the host), the dataset's ids.
      scales: `b` float32, canvas pixels per pixel of the original image.
      valid: `b` bool; False for the images that fill up the last batch of an evaluation.
      ground_truth: the objects.
      maps: what the backbone makes of the images, `b _ _ _` by level, where it is computed already, or None.
      pyramid: what the pyramid makes of that, likewise.
    """

    images: Array
    image_sizes: Array
    image_ids: Array
    scales: Array
    valid: Array
    ground_truth: GroundTruth
    maps: PyTree | None = None
    pyramid: PyTree | None = None


@struct.dataclass
class Proposals:
    """Class-agnostic boxes from the RPN: boxes `b p 4`, scores `b p` (logits), valid `b p`."""

    boxes: Array
    scores: Array
    valid: Array


@struct.dataclass
class RoiTargets:
    """Sampled regions and what the second stage should say of them.

    Attributes:
      boxes: `b r 4` float32.
      labels: `b r` int32; 0 for background.
      gt_index: `b r` int32, slot of the matched ground truth (meaningless for background).
      foreground: `b r` bool. Foreground regions come first.
      valid: `b r` bool.
      features: `b r s s c`, what the heads see of them, where it is computed once for all heads (C4), or None.
      activations: `b r s s` float32, where in them their label is seen, where it is computed already, or None.
    """

    boxes: Array
    labels: Array
    gt_index: Array
    foreground: Array
    valid: Array
    features: Array | None = None
    activations: Array | None = None


@struct.dataclass
class Detections:
    """What a detector found, best first.

    Attributes:
      boxes: `b d 4` float32.
      scores: `b d` float32, probabilities.
      labels: `b d` int32, 1..C.
      masks: `b d m m` float32, probability of the object at each point of its box, or None.
      valid: `b d` bool.
      keypoint_maps: `b d k m m` float32, logits of the place of each keypoint over the cells of its box, or None.
    """

    boxes: Array
    scores: Array
    labels: Array
    masks: Array | None
    valid: Array
    keypoint_maps: Array | None = None


@struct.dataclass
class TrainState:
    """All that a step changes, and what stays as it is beside it.

    Attributes:
      step: int32 scalar, number of steps done.
      trained: the parameters that steps change.
      untrained: the other parameters.
      frozen: the constants: folded BatchNorm, fixed class embeddings.
      opt_state: the optimizer's, of `trained`.
      average: running average of `trained`, or None.
    """

    step: Array
    trained: PyTree
    untrained: PyTree
    frozen: PyTree
    opt_state: PyTree
    average: PyTree | None

    @property
    def params(self) -> PyTree:
        """All parameters, as the last step left them."""
        return merge(self.trained, self.untrained)

    @property
    def average_params(self) -> PyTree | None:
        """All parameters, those that are trained averaged; None where no average is kept."""
        return None if self.average is None else merge(self.average, self.untrained)

    @property
    def variables(self) -> PyTree:
        """What the model is applied with to detect: the averaged parameters where an average is kept."""
        return {"params": self.params if self.average is None else self.average_params, "frozen": self.frozen}


def merge(first: PyTree, second: PyTree) -> PyTree:
    """Return the nested dict with the leaves of both."""
    return traverse_util.unflatten_dict(traverse_util.flatten_dict(first) | traverse_util.flatten_dict(second))
