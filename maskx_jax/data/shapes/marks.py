"""Keypoints of the shapes: places that an outline decides, each marked by a disc that is painted on its object.

Four are tips, the outermost places to the left, right, top and bottom where a mark fits onto the whole object; the
fifth, the core, is where the object is thickest. The marks of the left and the right tip look the same: which one is
meant is a question of their places, so a mirrored image exchanges them, as it does the eyes of a person.
"""

import cv2
import numpy as np

from maskx_jax.coco.keypoints import Skeleton
from maskx_jax.data.shapes.scene import SUPERSAMPLING, Scene
from maskx_jax.structures import Keypoints

SKELETON = Skeleton(
    names=("left_tip", "right_tip", "top", "bottom", "core"),
    edges=((0, 4), (1, 4), (2, 4), (3, 4)),
    flip=(1, 0, 2, 3, 4),
    sigmas=(0.08,) * 5,
)
_WHITE, _BLACK, _PURPLE = (255, 255, 255), (0, 0, 0), (200, 0, 255)
# Of each keypoint the colours of the ring and of what is inside.
_COLOURS = ((_BLACK, _WHITE), (_BLACK, _WHITE), (_WHITE, _BLACK), (_WHITE, _BLACK), (_WHITE, _PURPLE))
# Radius of a mark as a share of the side of the image: onto the thinnest strokes it just fits.
_RADIUS = 1 / 45


def locate(scene: Scene) -> Keypoints:
    """Return the keypoints of the objects of a scene, in pixels of the image; crowds have none.

    One that a later object hides is labelled and not visible.
    """
    points = np.zeros((len(scene.labels), len(SKELETON.names), 2), np.float32)
    labelled = np.zeros(points.shape[:2], bool)
    visible = np.zeros(points.shape[:2], bool)
    for slot, whole in enumerate(scene.whole):
        if scene.is_crowd[slot]:
            continue
        x, y = _places(whole)
        points[slot] = (np.stack([x, y], axis=1) + 0.5) / SUPERSAMPLING
        labelled[slot] = True
        visible[slot] = scene.owners[y, x] == slot + 1
    return Keypoints(points, labelled, visible)


def paint_marks(canvas: np.ndarray, scene: Scene, keypoints: Keypoints) -> None:
    """Paint a mark at each labelled keypoint into the supersampled canvas `h w 3`, where its object is seen."""
    radius = _radius(scene.owners.shape)
    reach = int(np.ceil(radius))
    for slot, keypoint in np.argwhere(keypoints.labelled).tolist():
        column, row = np.floor(keypoints.points[slot, keypoint] * SUPERSAMPLING).astype(int).tolist()
        window = (slice(max(row - reach, 0), row + reach + 1), slice(max(column - reach, 0), column + reach + 1))
        owners = scene.owners[window]
        rows, columns = np.ogrid[: owners.shape[0], : owners.shape[1]]
        distance = np.hypot(rows + window[0].start - row, columns + window[1].start - column)
        ring, inside = _COLOURS[keypoint]
        canvas[window][(owners == slot + 1) & (distance <= radius)] = ring
        canvas[window][(owners == slot + 1) & (distance <= 0.6 * radius)] = inside


def _radius(shape: tuple[int, ...]) -> float:
    return _RADIUS * min(shape)


def _places(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return column and row, int `k` each, of the keypoints of a mask."""
    depth = cv2.distanceTransform(mask.view(np.uint8), cv2.DIST_L2, 5)
    rows, columns = np.nonzero(depth >= min(_radius(mask.shape), depth.max()))
    core = depth[rows, columns].argmax()
    tips = [_tip(columns, -1), _tip(columns, 1), _tip(rows, -1), _tip(rows, 1)]
    places = np.array([*tips, core])
    return columns[places], rows[places]


def _tip(coordinates: np.ndarray, sign: int) -> int:
    """Return the index of the outermost pixel; of several the middle one."""
    outermost = np.flatnonzero(coordinates == (sign * coordinates).max() * sign)
    return int(outermost[len(outermost) // 2])
