"""EmbedMask, object by object and pixel by pixel, in float64."""

import math

import numpy as np

from tests.reference.lovasz import lovasz_hinge


def probability(pixel, centre, precision):
    return math.exp(-sum(s * (e - q) ** 2 for e, q, s in zip(pixel, centre, precision, strict=True)))


def logit(p):
    p = min(max(p, 1e-9), 1 - 1e-9)
    return math.log(p / (1 - p))


def convolve(x, kernel, bias):
    """Convolve a map `h w c` with a kernel `3 3 c f`, zeros around it."""
    height, width, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    out = np.empty((height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            out[i, j] = np.tensordot(padded[i : i + 3, j : j + 3], kernel, 3) + bias
    return out


def double(x):
    """Bring a map `h w c` to twice its sides by bilinear interpolation, half a cell from the border constant."""
    for axis in (0, 1):
        x = np.moveaxis(x, axis, 0)
        before, after = np.concatenate([x[:1], x[:-1]]), np.concatenate([x[1:], x[-1:]])
        x = np.moveaxis(
            np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], 1).reshape(-1, *x.shape[1:]), 0, axis
        )
    return x


def places(height, width, stride):
    """Return the middle (x, y) of each cell of a map, in pixels."""
    return np.array([[((j + 0.5) * stride, (i + 0.5) * stride) for j in range(width)] for i in range(height)])


def pixel_embeddings(params, feature_map, form):
    """Embed the pixels of P3, whose tower has no layers, on a map of half its stride."""
    made = convolve(feature_map, *params["pixel_embedding"])
    if form == "ijcai":
        height, width, _ = feature_map.shape
        position = convolve(feature_map, *params["pixel_position"])
        made = np.concatenate([position + params["position_scale"] * places(height, width, 8) / 100, made], axis=-1)
    return double(made)


def object_embeddings(params, box_maps, distances, form):
    """Return centres and precisions of all points, level by level; distances `p 4` in strides."""
    centres, precisions = [], []
    for level, x in box_maps.items():
        height, width, _ = x.shape
        made = convolve(x, *params["object_embedding"])
        if form == "ijcai":
            position = convolve(x, *params["object_position"])
            where = params["position_scale"] * places(height, width, 2**level) / 100
            made = np.concatenate([position + where, made], axis=-1)
            logs = convolve(x / 32, *params["margin"])
            logs[..., :2] *= params[f"margin_scale{level}"]
            precisions.append(np.exp(logs).reshape(height * width, -1))
        else:
            kernel, bias = params["margin"]
            own, distances = distances[: height * width], distances[height * width :]
            precisions.append(np.exp(own * 2**level / 800 @ kernel + bias))
        centres.append(made.reshape(height * width, -1))
    return np.concatenate(centres), np.concatenate(precisions)


def mask_term(probabilities, labels, name):
    """Return one of the losses of a mask, from the probability and the label of each of its pixels."""
    logits = [logit(p) for p in probabilities]
    if name == "lovasz":
        return lovasz_hinge(logits, labels)
    if name == "bce":
        return np.mean([math.log1p(math.exp(-z if y else z)) for z, y in zip(logits, labels, strict=True)])
    common = sum(p for p, y in zip(probabilities, labels, strict=True) if y)
    return 1 - (2 * common + 1) / (sum(p**2 for p in probabilities) + sum(labels) + 1)


def iou(box, other):
    common = np.maximum(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0).prod()
    return common / ((box[2:] - box[:2]).prod() + (other[2:] - other[:2]).prod() - common)


def mask_loss(pixels, centres, precisions, boxes, assigned, gt_boxes, targets, form, region, loss, stride):
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
        probabilities, labels = [], []
        for i in range(pixels.shape[0]):
            for j in range(pixels.shape[1]):
                x, y = (j + 0.5) * stride, (i + 0.5) * stride
                if region == "image" or (x1 <= x <= x2 and y1 <= y <= y2):
                    probabilities.append(probability(pixels[i, j], centre, precision))
                    labels.append(bool(target[i, j]))
        mask.append(mask_term(probabilities, labels, loss))
        apart = sum(((centres[p] - centre) ** 2).sum() + (precisions[p, 0] - precision[0]) ** 2 for p in chosen)
        smooth.append(apart)
    return (np.mean(mask), np.mean(smooth)) if mask else None
