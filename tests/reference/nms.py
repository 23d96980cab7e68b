"""Greedy non-maximum suppression."""

import numpy as np


def ious(box, others):
    """Return the overlaps of one box with others, in double precision; 0 with an empty one."""
    box, others = np.asarray(box, np.float64), np.asarray(others, np.float64)
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(np.maximum(others[:, 2:] - others[:, :2], 0), axis=1)
    union = np.prod(np.maximum(box[2:] - box[:2], 0)) + areas - common
    return common / np.where(union > 0, union, 1)


def greedy_nms(boxes, scores, labels, iou_threshold):
    """Return the indices kept, best first: take the best of what is left, drop what overlaps it, and so on."""
    left = np.lexsort((np.arange(len(boxes)), -np.asarray(scores)))
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        left = left[(labels[left] != labels[best]) | (ious(boxes[best], boxes[left]) <= iou_threshold)]
    return kept
