"""FCOS, section 3.1 and 3.2, point by point and object by object."""

import math


def grid_points(height, width, strides, offset):
    shift = {"centre": 0.5, "corner": 0.0}[offset]
    return [((j + shift) * strides[1], (i + shift) * strides[0]) for i in range(height) for j in range(width)]


def centerness(left, top, right, bottom):
    if min(left, top, right, bottom) <= 0:
        return 0.0
    return math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))


def match_points(points, strides, size_ranges, gt_boxes, radius, closed_ranges):
    """Return the index of each point's object, or None."""
    matched = []
    for (x, y), stride, (low, high) in zip(points, strides, size_ranges, strict=True):
        best, best_area = None, math.inf
        for index, (x1, y1, x2, y2) in enumerate(gt_boxes):
            distances = (x - x1, y - y1, x2 - x, y2 - y)
            size = max(distances)
            in_range = low <= size <= high if closed_ranges else low < size < high
            away = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
            central = radius == 0 or away < radius * stride
            area = (x2 - x1) * (y2 - y1)
            if min(distances) > 0 and in_range and central and area < best_area:
                best, best_area = index, area
        matched.append(best)
    return matched
