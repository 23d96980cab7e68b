"""RoIPool as torchvision and Caffe2 compile it, and RoIWarp and RoIAlign's maximum, pixel by pixel."""

import math

import numpy as np

from tests.reference.roi_align import level_of, taps


def rounded(value):
    """C's `round`: halves away from zero."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def whole_pixels(box, level, convention):
    """Return the first column and row of a box, and how many it has of either."""
    last = 1 if convention == "detectron" else 0
    x1, y1 = (rounded(float(v) / 2**level) for v in box[:2])
    x2, y2 = (rounded((float(v) - last) / 2**level) for v in box[2:])
    return x1, y1, max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)


def bin_pixels(first, number, length, size):
    """Return along one axis the pixels of each bin."""
    side = np.float32(number) / np.float32(size)
    edges = [(math.floor(np.float32(i) * side), math.ceil(np.float32(i + 1) * side)) for i in range(size)]
    return [range(min(max(first + low, 0), length), min(max(first + high, 0), length)) for low, high in edges]


def largest_pixels(features, boxes, size, convention):
    """Yield (box, bin row, bin column, level, row, column, channel) of the first largest pixel of each bin."""
    for r, box in enumerate(boxes):
        level = level_of(box, min(features), max(features))
        height, width, channels = features[level].shape
        x, y, columns, rows = whole_pixels(box, level, convention)
        for i, in_rows in enumerate(bin_pixels(y, rows, height, size)):
            for j, in_columns in enumerate(bin_pixels(x, columns, width, size)):
                for channel in range(channels if len(in_rows) and len(in_columns) else 0):
                    pixels = [(row, column) for row in in_rows for column in in_columns]
                    row, column = max(pixels, key=lambda pixel: features[level][(*pixel, channel)])
                    yield r, i, j, level, row, column, channel


def roi_pool(features, boxes, size, convention="torchvision"):
    pooled = np.zeros((len(boxes), size, size, next(iter(features.values())).shape[-1]))
    for r, i, j, level, row, column, channel in largest_pixels(features, boxes, size, convention):
        pooled[r, i, j, channel] = features[level][row, column, channel]
    return pooled


def roi_pool_gradient(features, boxes, gradient, convention="torchvision"):
    """Return the gradient of sum(gradient * pooled) with respect to the features."""
    result = {level: np.zeros(feature.shape) for level, feature in features.items()}
    for r, i, j, level, row, column, channel in largest_pixels(features, boxes, gradient.shape[1], convention):
        result[level][row, column, channel] += gradient[r, i, j, channel]
    return result


def extent_of(box, level, convention, warp):
    """Return where a box begins in feature pixels, x and y, and its sides: RoIWarp's or RoIAlign's."""
    if warp:
        x, y, columns, rows = whole_pixels(box, level, convention)
        return x - 0.5, y - 0.5, columns, rows
    offset = 0.5 if convention == "detectron2" else 0.0
    last = 1 if convention == "detectron" else 0
    x1, y1 = (float(v) / 2**level - offset for v in box[:2])
    x2, y2 = ((float(v) - last) / 2**level - offset for v in box[2:])
    least = -math.inf if convention == "detectron2" else 1.0
    return x1, y1, max(x2 - x1, least), max(y2 - y1, least)


def points_of_bins(features, box, size, ratio, convention, warp):
    """Yield (bin row, bin column, level, taps of each of its points)."""
    level = level_of(box, min(features), max(features))
    height, width, _ = features[level].shape
    x, y, columns, rows = extent_of(box, level, convention, warp)
    for i in range(size):
        for j in range(size):
            places = [(i + (iy + 0.5) / ratio, j + (ix + 0.5) / ratio) for iy in range(ratio) for ix in range(ratio)]
            yield i, j, level, [taps(y + v * rows / size, x + u * columns / size, height, width) for v, u in places]


def pool_points(features, boxes, size, ratio, convention, warp, largest):
    """Return RoIWarp (`warp`) or RoIAlign, with the largest of a bin's points or their mean."""
    pooled = np.zeros((len(boxes), size, size, next(iter(features.values())).shape[-1]))
    for r, box in enumerate(boxes):
        for i, j, level, points in points_of_bins(features, box, size, ratio, convention, warp):
            values = [sum((w * features[level][y, x] for y, x, w in point), 0 * pooled[r, i, j]) for point in points]
            pooled[r, i, j] = np.max(values, axis=0) if largest else np.mean(values, axis=0)
    return pooled


def pool_points_gradient(features, boxes, gradient, ratio, convention, warp, largest):
    """Return the gradient of sum(gradient * pooled) with respect to the features; the largest points are unique."""
    result = {level: np.zeros(feature.shape) for level, feature in features.items()}
    for r, box in enumerate(boxes):
        for i, j, level, points in points_of_bins(features, box, gradient.shape[1], ratio, convention, warp):
            values = np.array(
                [sum((w * features[level][y, x] for y, x, w in p), 0 * gradient[0, 0, 0]) for p in points]
            )
            share = (np.arange(len(points))[:, None] == values.argmax(axis=0)) if largest else 1 / len(points)
            for point, part in zip(points, np.broadcast_to(share, values.shape), strict=True):
                for row, column, weight in point:
                    result[level][row, column] += weight * part * gradient[r, i, j]
    return result
