"""EmbedMask, object by object and pixel by pixel, in float64."""

import math

import numpy as np

from tests.reference.lovasz import lovasz_hinge


def probability(pixel, centre, precision):
    return math.exp(-sum(s * (e - q) ** 2 for e, q, s in zip(pixel, centre, precision, strict=True)))


def logit(p):
    p = min(max(p, 1e-9), 1 - 1e-9)
    return math.log(p / (1 - p))


def iou(box, other):
    common = np.maximum(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0).prod()
    return common / ((box[2:] - box[:2]).prod() + (other[2:] - other[:2]).prod() - common)


def mask_loss(pixels, centres, precisions, boxes, assigned, gt_boxes, targets, form, region, stride):
    """Return (mask, smooth) of one image, or None where no object counts.

    Args:
      pixels: embeddings `h w e`.
      centres, precisions: of the points, `p e` and `p e` or `p 1`.
      boxes: that the points predict, `p 4`.
      assigned: the object of each point, or None.
      gt_boxes: `n 4`.
      targets: bool `h w` of each object, None without mask.
    """
    precisions = np.broadcast_to(precisions, centres.shape)
    mask, smooth = [], []
    for n, target in enumerate(targets):
        own = [p for p, index in enumerate(assigned) if index == n]
        if target is None or not own:
            continue
        overlaps = [iou(boxes[p], gt_boxes[n]) for p in own]
        chosen = [own[int(np.argmax(overlaps))]]
        if form == "arxiv":
            chosen = [p for p, overlap in zip(own, overlaps, strict=True) if overlap > 0.5] or chosen
        centre, precision = centres[chosen].mean(axis=0), precisions[chosen].mean(axis=0)
        width, height = gt_boxes[n][2:] - gt_boxes[n][:2]
        x1, y1, x2, y2 = gt_boxes[n] + np.array([-1, -1, 1, 1]) * (0.1 * np.array([width, height] * 2) + 1)
        logits, labels = [], []
        for i in range(pixels.shape[0]):
            for j in range(pixels.shape[1]):
                x, y = (j + 0.5) * stride, (i + 0.5) * stride
                if region == "image" or (x1 <= x <= x2 and y1 <= y <= y2):
                    logits.append(logit(probability(pixels[i, j], centre, precision)))
                    labels.append(bool(target[i, j]))
        mask.append(lovasz_hinge(logits, labels))
        apart = sum(((centres[p] - centre) ** 2).sum() + (precisions[p, 0] - precision[0]) ** 2 for p in chosen)
        smooth.append(apart)
    return (np.mean(mask), np.mean(smooth)) if mask else None
