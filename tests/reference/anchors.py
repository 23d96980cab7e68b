"""Anchors as the parents make them."""

import math

import numpy as np

# Detectron's cell anchors of P2..P6 at ratios 0.5, 1, 2 (SPEC.md, section 1.4), inclusive corners: width x2 - x1 + 1.
DETECTRON_FPN = {
    4: [[-22, -10, 25, 13], [-14, -14, 17, 17], [-10, -22, 13, 25]],
    8: [[-40, -20, 47, 27], [-28, -28, 35, 35], [-20, -44, 27, 51]],
    16: [[-84, -40, 99, 55], [-56, -56, 71, 71], [-36, -80, 51, 95]],
    32: [[-164, -72, 195, 103], [-112, -112, 143, 143], [-76, -168, 107, 199]],
    64: [[-332, -152, 395, 215], [-224, -224, 287, 287], [-148, -328, 211, 391]],
}

# (width, height) of Detectron's C4 anchors at stride 16, ratios 0.5, 1, 2 (SPEC.md, section 1.4).
DETECTRON_C4 = {
    32: [(46, 24), (32, 32), (22, 44)],
    64: [(92, 48), (64, 64), (44, 88)],
    128: [(184, 96), (128, 128), (88, 176)],
    256: [(368, 192), (256, 256), (176, 352)],
    512: [(736, 384), (512, 512), (352, 704)],
}


def detectron_cell_anchors(size, aspect_ratios, stride):
    """generate_anchors.py: a window with inclusive corners, then its ratios, then its scale; one added at the end."""
    anchors = []
    for ratio in aspect_ratios:
        window = [0, 0, stride - 1, stride - 1]
        width, height = window[2] - window[0] + 1, window[3] - window[1] + 1
        x, y = window[0] + 0.5 * (width - 1), window[1] + 0.5 * (height - 1)
        new_width = round(math.sqrt(width * height / ratio))
        new_height = round(new_width * ratio)
        width, height = new_width * size / stride, new_height * size / stride
        inclusive = [x - 0.5 * (width - 1), y - 0.5 * (height - 1), x + 0.5 * (width - 1), y + 0.5 * (height - 1)]
        anchors.append([inclusive[0], inclusive[1], inclusive[2] + 1, inclusive[3] + 1])
    return np.array(anchors)


def torchvision_cell_anchors(size, aspect_ratios):
    return np.array([[round(v) for v in anchor] for anchor in detectron2_cell_anchors(size, aspect_ratios)])


def detectron2_cell_anchors(size, aspect_ratios):
    anchors = []
    for ratio in aspect_ratios:
        width = math.sqrt(size * size / ratio)
        height = ratio * width
        anchors.append([-width / 2, -height / 2, width / 2, height / 2])
    return np.array(anchors)


def grid_anchors(cell, height, width, stride):
    anchors = []
    for row in range(height):
        for column in range(width):
            for x1, y1, x2, y2 in cell:
                anchors.append([x1 + column * stride, y1 + row * stride, x2 + column * stride, y2 + row * stride])
    return np.array(anchors)
