"""RoIAlign as torchvision and Caffe2 compile it (SPEC.md, section 1.7), point by point."""

import math

import numpy as np


def level_of(box, lowest, highest):
    """FPN, equation 1, with Detectron's 1e-6."""
    side = math.sqrt(max(float(box[2]) - float(box[0]), 0) * max(float(box[3]) - float(box[1]), 0))
    return min(max(math.floor(4 + math.log2(side / 224 + 1e-6)), lowest), highest)


def taps(y, x, height, width):
    """Return the (row, column, weight) of up to four pixels that a point reads; none beyond a pixel off the map."""
    if y < -1 or y > height or x < -1 or x > width:
        return []
    y, x = max(y, 0.0), max(x, 0.0)
    y_low, x_low = int(y), int(x)
    if y_low >= height - 1:
        y_low = y_high = height - 1
        y = float(y_low)
    else:
        y_high = y_low + 1
    if x_low >= width - 1:
        x_low = x_high = width - 1
        x = float(x_low)
    else:
        x_high = x_low + 1
    ly, lx = y - y_low, x - x_low
    hy, hx = 1 - ly, 1 - lx
    return [
        (y_low, x_low, hy * hx),
        (y_low, x_high, hy * lx),
        (y_high, x_low, ly * hx),
        (y_high, x_high, ly * lx),
    ]


def bin_taps(box, level, height, width, size, ratio, convention, most=math.inf):
    """Yield (bin row, bin column, row, column, weight) for all that one box reads.

    A ratio of 0 is adaptive, but `most` at most.
    """
    offset = 0.5 if convention == "detectron2" else 0.0
    last = 1 if convention == "detectron" else 0
    x1, y1 = (float(v) / 2**level - offset for v in box[:2])
    x2, y2 = ((float(v) - last) / 2**level - offset for v in box[2:])
    roi_width, roi_height = x2 - x1, y2 - y1
    if convention != "detectron2":
        roi_width, roi_height = max(roi_width, 1.0), max(roi_height, 1.0)
    bin_width, bin_height = roi_width / size, roi_height / size
    rows, columns = (ratio or min(math.ceil(side), most) for side in (bin_height, bin_width))
    for i in range(size):
        for j in range(size):
            for iy in range(rows):
                y = y1 + i * bin_height + (iy + 0.5) * bin_height / rows
                for ix in range(columns):
                    x = x1 + j * bin_width + (ix + 0.5) * bin_width / columns
                    for row, column, weight in taps(y, x, height, width):
                        yield i, j, row, column, weight / (rows * columns)


def roi_align(features, boxes, size, ratio=2, convention="torchvision", most=math.inf):
    channels = next(iter(features.values())).shape[-1]
    pooled = np.zeros((len(boxes), size, size, channels))
    for r, box in enumerate(boxes):
        level = level_of(box, min(features), max(features))
        height, width, _ = features[level].shape
        for i, j, row, column, weight in bin_taps(box, level, height, width, size, ratio, convention, most):
            pooled[r, i, j] += weight * features[level][row, column]
    return pooled


def roi_align_gradient(features, boxes, gradient, ratio=2, convention="torchvision"):
    """Return the gradient of sum(gradient * pooled) with respect to the features."""
    result = {level: np.zeros(feature.shape) for level, feature in features.items()}
    for r, box in enumerate(boxes):
        level = level_of(box, min(features), max(features))
        height, width, _ = features[level].shape
        for i, j, row, column, weight in bin_taps(box, level, height, width, gradient.shape[1], ratio, convention):
            result[level][row, column] += weight * gradient[r, i, j]
    return result
