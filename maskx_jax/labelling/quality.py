"""How good the mask of a given box is likely to be, where nobody knows the right one."""

from typing import NamedTuple

import numpy as np

from maskx_jax.coco import boxes, rle


class ObjectMask(NamedTuple):
    """A mask for a given box.

    Attributes:
      segmentation: compressed run lengths in the size of the image.
      certainty: mean of `|2p - 1|` over the points of the box, p the probability of the object: 1 where the model is
        sure of every point. Of masks made elsewhere it is their score.
      box_iou: IoU of the box around the mask and the given one: a mask that is too small, or that takes in a
        neighbour's part, does not fill its box.
    """

    segmentation: dict
    certainty: float
    box_iou: float

    @property
    def quality(self) -> float:
        """Certainty times IoU: a mask is as good as both say."""
        return self.certainty * self.box_iou


def certainty(probabilities: np.ndarray) -> float:
    """Return the mean of `|2p - 1|`."""
    return float(np.abs(2 * probabilities - 1).mean())


def object_mask(segmentation: dict, box: np.ndarray, certainty: float) -> ObjectMask | None:
    """Return a mask with what says its quality; None where it has no pixel.

    Args:
      segmentation: compressed run lengths.
      box: xyxy, as given.
      certainty: see `ObjectMask`.
    """
    x, y, width, height = rle.tight_box(segmentation)
    if width <= 0 or height <= 0:
        return None
    tight = np.array([x, y, x + width, y + height])
    return ObjectMask(segmentation, certainty, float(boxes.iou(tight, box)))
