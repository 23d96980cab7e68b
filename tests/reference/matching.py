"""Faster R-CNN, section 3.1.2, candidate by candidate."""

from tests.reference.boxes import area, intersection, iou_of_pair


def match(candidates, gt_boxes, gt_is_crowd, foreground_threshold, background_threshold, crowd_threshold, low_quality):
    """Return for each candidate ("foreground" | "background" | "ignored", index of its object or None)."""
    objects = [j for j in range(len(gt_boxes)) if not gt_is_crowd[j]]
    crowds = [j for j in range(len(gt_boxes)) if gt_is_crowd[j]]
    results = []
    for candidate in candidates:
        best, best_object = 0.0, None
        for j in objects:
            overlap = iou_of_pair(candidate, gt_boxes[j])
            if overlap > best:
                best, best_object = overlap, j
        foreground = best >= foreground_threshold
        if low_quality and not foreground:
            for j in objects:
                best_of_object = max(iou_of_pair(other, gt_boxes[j]) for other in candidates)
                if best_of_object > 0 and iou_of_pair(candidate, gt_boxes[j]) == best_of_object:
                    foreground = True
        in_crowd = area(candidate) > 0 and any(
            intersection(candidate, gt_boxes[j]) / area(candidate) > crowd_threshold for j in crowds
        )
        if foreground:
            results.append(("foreground", best_object))
        elif best < background_threshold and not in_crowd:
            results.append(("background", None))
        else:
            results.append(("ignored", None))
    return results
