"""Assign candidate boxes (anchors or proposals) to ground truth by overlap."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskx_jax.ops import boxes as box_ops


class Match(NamedTuple):
    """What each candidate is; one that is neither foreground nor background is ignored."""

    gt_index: Int[Array, "a"]
    foreground: Bool[Array, "a"]
    background: Bool[Array, "a"]


@dataclasses.dataclass(frozen=True)
class Matcher:
    """The rule by which each candidate is matched to the object with which it overlaps most.

    Attributes:
      foreground: a candidate is foreground where IoU >= this.
      background: and background where IoU < this.
      crowd: a candidate that is not foreground and has more than this fraction of its area in one crowd region is
        ignored, since nobody annotated what stands there.
      low_quality: whether the candidates that tie for the best IoU of some object are foreground as well (Faster R-CNN,
        section 3.1.2 (i)), whatever that IoU is as long as it is not 0. They keep the object they overlap most.
    """

    foreground: float
    background: float
    crowd: float
    low_quality: bool = False

    def __call__(
        self,
        candidates: Float[Array, "a 4"],
        candidate_valid: Bool[Array, "a"],
        gt_boxes: Float[Array, "n 4"],
        gt_valid: Bool[Array, "n"],
        gt_is_crowd: Bool[Array, "n"],
    ) -> Match:
        """Match the candidates of one image.

        Args:
          candidates: boxes to label.
          candidate_valid: invalid candidates are ignored.
          gt_boxes: ground-truth boxes.
          gt_valid: which slots hold an object.
          gt_is_crowd: crowd regions are never matched.
        """
        usable = gt_valid & ~gt_is_crowd
        overlaps = jnp.where(usable & candidate_valid[:, None], box_ops.iou(candidates, gt_boxes), 0.0)
        best = overlaps.max(axis=1)
        foreground = best >= self.foreground
        if self.low_quality:
            best_of_object = overlaps.max(axis=0)
            foreground |= ((overlaps == best_of_object) & (best_of_object > 0)).any(axis=1)
        covered = box_ops.covered_fraction(candidates, gt_boxes)
        in_crowd = ((covered > self.crowd) & gt_is_crowd & gt_valid).any(axis=1)
        return Match(
            gt_index=overlaps.argmax(axis=1).astype(jnp.int32),
            foreground=foreground & candidate_valid,
            background=(best < self.background) & ~foreground & ~in_crowd & candidate_valid,
        )
