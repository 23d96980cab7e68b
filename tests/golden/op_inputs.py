"""Inputs of the comparison with torchvision, made by NumPy alone: the file of goldens holds only outputs.

`RandomState`, not `default_rng`, because NumPy promises that its streams never change. Coordinates are multiples of an
eighth of a pixel unless said otherwise: sums and differences of them are exact in float32, so that what is compared is
the rule and not the order of the additions.
"""

import math

import numpy as np

Array = np.ndarray

# Height and width. A square box of level 5 has sides from 448, and is to fit inside.
CANVAS = (448, 512)
ROI_SIZES = (7, 14)
ROI_CHANNELS = 2
NMS_THRESHOLDS = (0.3, 0.5, 0.7)
CODER_WEIGHTS = {"rpn": (1.0, 1.0, 1.0, 1.0), "box_head": (10.0, 10.0, 5.0, 5.0)}
# The last is no multiple of 64: P6 has a row and a column for what is left over.
ANCHOR_CANVASES = {"landscape": (128, 192), "portrait": (192, 128), "odd": (96, 160)}
ANCHOR_SIZES = (32, 64, 128, 256, 512)
ANCHOR_LEVELS = (2, 3, 4, 5, 6)
ASPECT_RATIOS = (0.5, 1.0, 2.0)
# Foreground threshold, background threshold, whether matches of low quality count.
MATCHERS = {"rpn": (0.7, 0.3, True), "box_head": (0.5, 0.5, False)}
PASTE_IMAGE = (120, 160)
PASTE_MASK_SIZE = 28


def _eighths(random: np.random.RandomState, low: Array | float, high: Array | float, shape: tuple[int, ...]) -> Array:
    return (np.floor(random.uniform(low, high, shape) * 8) / 8).astype(np.float32)


def _boxes(random: np.random.RandomState, count: int, extent: Array, shortest: float, longest: float) -> Array:
    """Return boxes whose centres lie in 0..`extent`, (width, height)."""
    size = _eighths(random, shortest, longest, (count, 2))
    low = _eighths(random, 0, extent, (count, 2)) - np.floor(size * 4) / 8
    return np.concatenate([low, low + size], axis=1).astype(np.float32)


def pyramid() -> dict[int, Array]:
    """Return noise in 0..1 for levels 2 to 5 of the canvas, `height width channels`.

    At the far end of level 2 a step of float32 in a point's position, 8e-6, changes what is read by as much.
    """
    random = np.random.RandomState(0)
    height, width = CANVAS
    return {
        level: random.uniform(0, 1, (height >> level, width >> level, ROI_CHANNELS)).astype(np.float32)
        for level in (2, 3, 4, 5)
    }


def coarse_pyramid() -> dict[int, Array]:
    """Return `pyramid` in eighths: many pixels are equal, so that it matters which of them is the largest."""
    return {level: np.floor(features * 8) / np.float32(8) for level, features in pyramid().items()}


def roi_boxes() -> dict[str, Array]:
    """Return the boxes to pool, in pixels of the canvas, by what is special about them."""
    random = np.random.RandomState(1)
    height, width = CANVAS
    extent = np.array([width, height])
    inside = np.concatenate([_boxes(random, 3, extent, *sides) for sides in ((8, 100), (120, 200), (230, 400))])
    inside += np.tile(np.maximum(-inside[:, :2], 0), 2)
    inside -= np.tile(np.maximum(inside[:, 2:] - extent, 0), 2)
    cases = {
        "inside": inside,
        "on the border": [
            [0, 0, width, height],
            [0, 0, 30, 40],
            [width - 50, height - 20, width, height],
            [0, 100, 150, height],
            [width - 260, 0, width, 230],
            [0, 0, 448, 448],
        ],
        "across the border": [
            [-20.5, -10.25, 30, 20],
            [width - 16, height - 12.5, width + 24.75, height + 27.5],
            [-100, 50, 140, 290],
            [300, 300, 560, 580],
            [-300, -200, width + 150, height + 90],
            [-3, -3, 20, 20],
        ],
        "outside": [
            [-100, -100, -50.5, -50],
            [width + 9, 10, width + 40, 30],
            [10, height + 30, 300, height + 300],
            [-500, 10, -40, 480],
        ],
        "tiny": [
            [100, 100, 100, 100],
            [60.25, 70.5, 60.75, 71],
            [200, 300, 203, 301],
            [511.5, 447.5, 512, 448],
            [0, 0, 0.125, 0.125],
            [30, 40, 30.5, 440],
        ],
        # Sides on which FPN's equation 1 changes its result, and those just below.
        "between levels": [
            [side_low, 8, side_low + side, 8 + side]
            for side_low, side in ((3, 112), (3, 111.875), (40, 224), (40, 223.875), (0, 448), (0, 447.875))
        ],
        "none on level 4": [[10, 20, 50, 49.5], [60, 300, 200, 430], [90, 16.125, 211.5, 140], [20, 0, 500, 440]],
    }
    return {name: np.array(boxes, np.float32) for name, boxes in cases.items()}


def all_roi_boxes() -> Array:
    """Return the boxes of all cases, in their order."""
    return np.concatenate(list(roi_boxes().values()))


def roi_cotangent(count: int, size: int) -> Array:
    """Return what the gradient of the pooled features is taken along, `count size size channels`."""
    random = np.random.RandomState(2)
    return random.uniform(-1, 1, (count, size, size, ROI_CHANNELS)).astype(np.float32)


def nms_boxes() -> tuple[Array, Array, Array]:
    """Return boxes in clusters, scores and labels 1..5; every fifth box is a duplicate, and most scores are tied."""
    random = np.random.RandomState(3)
    clusters = _boxes(random, 60, np.array([400, 300]), 10, 90)
    boxes = clusters[random.randint(0, 60, 400)] + _eighths(random, -9, 9, (400, 4))
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:] - 1), boxes[:, 2:]], axis=1)
    order = random.permutation(400)
    boxes[order[:80]] = boxes[order[80:160]]
    scores = random.randint(0, 60, 400) / 64
    return boxes.astype(np.float32), scores.astype(np.float32), random.randint(1, 6, 400).astype(np.int32)


def nms_boxes_at_a_threshold(threshold: float) -> tuple[Array, Array]:
    """Return two boxes whose overlap is the quotient of whole numbers that `threshold` rounds, and scores."""
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, round(10 * threshold)]], np.float32)
    return boxes, np.array([0.75, 0.5], np.float32)


def coder_boxes() -> tuple[Array, Array]:
    """Return boxes and the anchors they are encoded with."""
    random = np.random.RandomState(4)
    extent = np.array([512, 448])
    return _boxes(random, 200, extent, 2, 300), _boxes(random, 200, extent, 8, 300)


def coder_deltas() -> Array:
    """Return deltas for the anchors of `coder_boxes`; every fourth row grows beyond the clip in one or both sides."""
    random = np.random.RandomState(5)
    deltas = random.uniform(-1.5, 1.5, (200, 4))
    deltas[0::8, 2] = random.uniform(4, 60, 25)
    deltas[4::8, 2:] = random.uniform(4, 60, (25, 2))
    return deltas.astype(np.float32)


def map_size(canvas: tuple[int, int], level: int) -> tuple[int, int]:
    """Return height and width of a level's feature map; strided layers round up."""
    return math.ceil(canvas[0] / 2**level), math.ceil(canvas[1] / 2**level)


def matching_scenes() -> dict[str, tuple[Array, Array]]:
    """Return candidates and ground truth, by what is special about them; every object overlaps some candidate.

    The last scene is `scene_with_an_object_that_nothing_touches` without that object.
    """
    random = np.random.RandomState(6)
    extent = np.array([400, 300])
    objects = _boxes(random, 12, extent, 20, 150)
    near = objects[random.randint(0, 12, 150)] + _eighths(random, -12, 12, (150, 4))
    crowded = np.concatenate([objects, _boxes(random, 200, extent, 20, 200), near])
    scenes = {
        "several objects": (crowded[12:], objects),
        "objects among the candidates": (crowded, objects),
        "two equal objects": (crowded, np.concatenate([objects, objects[3:6]])),
        # Both candidates lie half in the one and half in the other object.
        "a candidate between two objects": (
            [[5, 0, 15, 10], [5, 0, 15, 30], [0, 0, 10, 2], [12, 1, 20, 10]],
            [[0, 0, 10, 10], [10, 0, 20, 10]],
        ),
        # Mirrored about the object, with an overlap of 0.25, and one that is better for another object.
        "two candidates tie for the best": (
            [[-6, 0, 4, 10], [6, 0, 16, 10], [7, 0, 17, 10], [50, 50, 60, 54], [50, 56, 60, 60], [52, 50, 60, 52]],
            [[0, 0, 10, 10], [50, 50, 60, 60]],
        ),
        "overlaps equal to the thresholds": (
            [[0, 0, 10, 7], [0, 0, 10, 5], [0, 0, 10, 3], [0, 0, 10, 6.875], [0, 0, 10, 4.875], [0, 0, 10, 2.875]],
            [[0, 0, 10, 10]],
        ),
    }
    candidates, objects = scene_with_an_object_that_nothing_touches()
    scenes["without the object that nothing touches"] = (candidates, objects[:1])
    return {name: (np.array(pair[0], np.float32), np.array(pair[1], np.float32)) for name, pair in scenes.items()}


def scene_with_an_object_that_nothing_touches() -> tuple[Array, Array]:
    """Return candidates and ground truth whose second object has no overlap with any candidate."""
    random = np.random.RandomState(7)
    objects = np.array([[100, 100, 170, 160], [900, 900, 950, 950]], np.float32)
    near = objects[:1] + _eighths(random, -12, 12, (20, 4))
    return np.concatenate([_boxes(random, 100, np.array([400, 300]), 20, 100), near]), objects


def paste_boxes() -> dict[str, Array]:
    """Return boxes that reach into the image, by name."""
    random = np.random.RandomState(8)
    height, width = PASTE_IMAGE
    boxes = {
        "inside": [30.3, 20.2, 101.7, 88.9],
        "whole pixels": [30, 20, 86, 76],
        "full image": [0, 0, width, height],
        "over the left and the top": [-25.4, -17.7, 42.3, 34.1],
        "over the right and the bottom": [120.2, 80.6, 190.9, 155.5],
        "over the top": [40.7, -30.2, 90.3, 25.8],
        "far over all sides": [-210.5, -150.5, 380.5, 260.5],
        "larger than the image": [-20.5, -10.5, 185.5, 140.5],
        "touching the last column from outside": [159.2, 30.1, 200.8, 60.4],
        "half a pixel": [70.2, 60.3, 70.7, 60.8],
        "a pixel": [70.0, 60.0, 71.0, 61.0],
        "two pixels": [11.6, 12.3, 13.9, 14.1],
        "thin and tall": [80.4, 5.2, 82.1, 115.6],
        "thin and wide": [5.9, 60.1, 155.3, 61.7],
        "tiny in the corner": [-0.6, -0.4, 1.3, 1.7],
    }
    size = random.uniform(5, 90, (15, 2))
    middle = random.uniform(0, [width, height], (15, 2))
    for index, corners in enumerate(np.concatenate([middle - size / 2, middle + size / 2], axis=1)):
        boxes[f"random {index}"] = corners.tolist()
    return {name: np.array(box, np.float32) for name, box in boxes.items()}


def paste_masks() -> dict[str, Array]:
    """Return one mask a box of `paste_boxes`, smooth ones and noisy ones, float32 `box 28 28` in 0..1."""
    random = np.random.RandomState(9)
    count, size = len(paste_boxes()), PASTE_MASK_SIZE
    y, x = np.meshgrid(*[(np.arange(size) + 0.5) / size] * 2, indexing="ij")
    middle = random.uniform(0.35, 0.65, (2, count, 1, 1))
    radius = random.uniform(0.2, 0.5, (2, count, 1, 1))
    distance = ((x - middle[0]) / radius[0]) ** 2 + ((y - middle[1]) / radius[1]) ** 2
    return {
        "smooth": (1 / (1 + distance**2)).astype(np.float32),
        "noisy": random.uniform(0, 1, (count, size, size)).astype(np.float32),
    }
