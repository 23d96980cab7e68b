"""Assign candidate boxes (anchors or proposals) to ground truth by overlap."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskx_jax.ops import boxes as box_ops


class Match(NamedTuple):
    """What each candidate is; one that is neither foreground nor background is ignored."""

    gt_index: Int[Array, "a"]
    foreground: Bool[Array, "a"]
    background: Bool[Array, "a"]


def match(
    candidates: Float[Array, "a 4"],
    candidate_valid: Bool[Array, "a"],
    gt_boxes: Float[Array, "n 4"],
    gt_valid: Bool[Array, "n"],
    gt_is_crowd: Bool[Array, "n"],
    *,
    foreground_threshold: float,
    background_threshold: float,
    crowd_threshold: float,
    match_low_quality: bool,
) -> Match:
    """Match each candidate to the object with which it overlaps most.

    Args:
      candidates: boxes to label.
      candidate_valid: invalid candidates are ignored.
      gt_boxes: ground-truth boxes.
      gt_valid: which slots hold an object.
      gt_is_crowd: crowd regions are never matched.
      foreground_threshold: foreground where IoU >= this.
      background_threshold: background where IoU < this.
      crowd_threshold: a candidate that is not foreground and has more than this fraction of its area in one crowd
        region is ignored, since nobody annotated what stands there.
      match_low_quality: also take as foreground the candidates that tie for the best IoU of some object (Faster R-CNN,
        section 3.1.2 (i)), whatever that IoU is as long as it is not 0. They keep the object they overlap most.
    """
    usable = gt_valid & ~gt_is_crowd
    overlaps = jnp.where(usable & candidate_valid[:, None], box_ops.iou(candidates, gt_boxes), 0.0)
    best = overlaps.max(axis=1)
    foreground = best >= foreground_threshold
    if match_low_quality:
        best_of_object = overlaps.max(axis=0)
        foreground |= ((overlaps == best_of_object) & (best_of_object > 0)).any(axis=1)
    covered = box_ops.covered_fraction(candidates, gt_boxes)
    in_crowd = ((covered > crowd_threshold) & gt_is_crowd & gt_valid).any(axis=1)
    return Match(
        gt_index=overlaps.argmax(axis=1).astype(jnp.int32),
        foreground=foreground & candidate_valid,
        background=(best < background_threshold) & ~foreground & ~in_crowd & candidate_valid,
    )
