"""From scores of candidates to a fixed number of detections: the end of every detector."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskx_jax.ops import boxes as box_ops
from maskx_jax.ops.nms import nms_of_sorted
from maskx_jax.ops.sampling import top_k


class Found(NamedTuple):
    """The detections of one image, best first; slots that are not valid have no meaning.

    Attributes:
      boxes: clipped to the image.
      scores: of the label; 0 in slots that are not valid.
      labels: 1..C.
      candidates: the index of each detection's candidate.
      valid: which slots hold a detection.
    """

    boxes: Float[Array, "d 4"]
    scores: Float[Array, "d"]
    labels: Int[Array, "d"]
    candidates: Int[Array, "d"]
    valid: Bool[Array, "d"]


def select(
    scores: Float[Array, "n c"],
    valid: Bool[Array, "n"],
    boxes_of: Callable[[Int[Array, "k"], Int[Array, "k"]], Float[Array, "k 4"]],
    image_size: Float[Array, "2"],
    *,
    score_threshold: float,
    pre_nms_top_k: int,
    nms_threshold: float,
    max_detections: int,
    labels_per_candidate: int | None = None,
) -> Found:
    """Take the best pairs of a candidate and a label, decode their boxes, and drop the worse of two that overlap.

    Args:
      scores: of every candidate (regions, or places of maps) for every class, without background.
      valid: which candidates there are.
      boxes_of: the boxes of the candidates with these indices for these labels (1..C); only the best are decoded.
      image_size: height and width without padding.
      score_threshold: detections score more than this.
      pre_nms_top_k: pairs that enter NMS.
      nms_threshold: IoU above which the worse of two boxes of one label is dropped.
      max_detections: slots, over all labels.
      labels_per_candidate: how many labels of a candidate are looked at, the best first; all by default. Where the
        scores of a candidate sum to 1 and the threshold is t, fewer than 1 / t can pass, and as many lose nothing.
    """
    per_candidate = scores.shape[1] if labels_per_candidate is None else min(labels_per_candidate, scores.shape[1])
    labels = top_k(scores, per_candidate) + 1
    scores = jnp.take_along_axis(scores, labels - 1, axis=1)
    passes = (scores > score_threshold) & valid[:, None]
    flat_scores = jnp.where(passes, scores, -jnp.inf).ravel()
    best = top_k(flat_scores, pre_nms_top_k)
    candidate, label = best // per_candidate, labels.ravel()[best]
    boxes = box_ops.clip(boxes_of(candidate, label), image_size)
    return suppress(boxes, flat_scores[best], label, candidate, nms_threshold, max_detections)


def suppress(
    boxes: Float[Array, "k 4"],
    scores: Float[Array, "k"],
    labels: Int[Array, "k"],
    candidates: Int[Array, "k"],
    nms_threshold: float,
    max_detections: int,
) -> Found:
    """Drop the worse of two boxes of one label that overlap, and put the best of the others into slots.

    Args:
      boxes: clipped to the image.
      scores: best first; -inf where there is no box.
      labels: 1..C.
      candidates: that the boxes come from.
      nms_threshold: IoU above which the worse is dropped.
      max_detections: slots, over all labels.
    """
    keep = nms_of_sorted(boxes, labels, scores > -jnp.inf, nms_threshold)
    kept_scores = jnp.where(keep, scores, -jnp.inf)
    kept = top_k(kept_scores, max_detections)
    return Found(
        boxes=boxes[kept],
        scores=jnp.where(keep, kept_scores, 0.0)[kept],
        labels=labels[kept],
        candidates=candidates[kept],
        valid=keep[kept],
    )
