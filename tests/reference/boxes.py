"""Boxes one at a time, in Python floats: Faster R-CNN's overlaps and Fast R-CNN's deltas."""

import math

import numpy as np


def area(box):
    x1, y1, x2, y2 = map(float, box)
    return (x2 - x1) * (y2 - y1) if x2 > x1 and y2 > y1 else 0.0


def intersection(box, other):
    return area((max(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), min(box[3], other[3])))


def iou_of_pair(box, other):
    common = intersection(box, other)
    union = area(box) + area(other) - common
    return common / union if union > 0 else 0.0


def iou(boxes, others):
    return np.array([[iou_of_pair(b, o) for o in others] for b in boxes]).reshape(len(boxes), len(others))


def covered_fraction(boxes, regions):
    return np.array([[intersection(b, r) / area(b) if area(b) > 0 else 0.0 for r in regions] for b in boxes])


def clip(boxes, height, width):
    return np.array([[min(max(v, 0), limit) for v, limit in zip(b, [width, height] * 2, strict=True)] for b in boxes])


def encode(boxes, anchors, weights):
    """Fast R-CNN, section 3.1: t_x = (G_x - P_x) / P_w, t_w = log(G_w / P_w), on centres and sizes."""
    deltas = []
    for (x1, y1, x2, y2), (ax1, ay1, ax2, ay2) in zip(boxes.tolist(), anchors.tolist(), strict=True):
        anchor_width, anchor_height = ax2 - ax1, ay2 - ay1
        dx = ((x1 + x2) / 2 - (ax1 + ax2) / 2) / anchor_width
        dy = ((y1 + y2) / 2 - (ay1 + ay2) / 2) / anchor_height
        dw = math.log((x2 - x1) / anchor_width)
        dh = math.log((y2 - y1) / anchor_height)
        deltas.append([d * w for d, w in zip((dx, dy, dw, dh), weights, strict=True)])
    return np.array(deltas)


def decode(deltas, anchors, weights, max_scale=1000 / 16):
    boxes = []
    for delta, (ax1, ay1, ax2, ay2) in zip(deltas.tolist(), anchors.tolist(), strict=True):
        dx, dy, dw, dh = (d / w for d, w in zip(delta, weights, strict=True))
        anchor_width, anchor_height = ax2 - ax1, ay2 - ay1
        x, y = (ax1 + ax2) / 2 + dx * anchor_width, (ay1 + ay2) / 2 + dy * anchor_height
        width = anchor_width * math.exp(min(dw, math.log(max_scale)))
        height = anchor_height * math.exp(min(dh, math.log(max_scale)))
        boxes.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return np.array(boxes)
