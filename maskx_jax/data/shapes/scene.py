"""What an image shows, before colours: outlines, and where they lie over each other."""

import dataclasses
import functools
from collections.abc import Callable

import cv2
import numpy as np

from maskx_jax.coco import boxes

# Objects are drawn at twice the size and averaged down: smooth edges, and a mask pixel is one that is half covered.
SUPERSAMPLING = 2
# Fractional bits of the coordinates that OpenCV draws with.
SHIFT = 4
# No object is placed where it would leave less than this share of itself or of an earlier object in sight.
MIN_VISIBLE_FRACTION = 0.25
# Of the pixels that a pair shows, each partner has at least this share.
MIN_PAIR_SHARE = 0.3
# Limits on the IoU of a pair's boxes: close enough to confuse, never the same box.
PAIR_BOX_IOU = (0.6, 0.92)
# Positions tried for an object or a pair before the image goes without it.
NUM_ATTEMPTS = 12


@dataclasses.dataclass(frozen=True)
class Outline:
    """A shape in the square -1..1: filled polygons, or strokes of a thickness given as a share of the half side."""

    lines: list[np.ndarray]
    thickness: float = 0.0
    closed: bool = False

    def transformed(self, matrix: np.ndarray, offset: np.ndarray | float = 0.0) -> "Outline":
        """Map every point by `matrix @ point + offset`; the thickness stays."""
        return dataclasses.replace(self, lines=[line @ matrix.T + offset for line in self.lines])


@dataclasses.dataclass(frozen=True)
class Scene:
    """What an image shows, before colours: `labels`, `is_crowd` and the supersampled map of who is seen where.

    In `owners` 0 is background and `i + 1` the object `i`; later objects lie over earlier ones. `whole` has the
    supersampled mask of each object with what others hide of it.
    """

    labels: list[int]
    is_crowd: list[bool]
    owners: np.ndarray
    whole: list[np.ndarray] = dataclasses.field(default_factory=list)


def place(
    scene: Scene,
    rng: np.random.Generator,
    draw_outlines: Callable[[], list[Outline]],
    labels: list[int],
    size: tuple[float, float],
    is_crowd: bool = False,
) -> None:
    """Put one group of outlines where it and what is there already stay in sight, if such a place is found."""
    canvas_height, canvas_width = scene.owners.shape
    side = min(scene.owners.shape)
    areas = np.bincount(scene.owners.ravel(), minlength=len(scene.labels) + 1)
    for _ in range(NUM_ATTEMPTS):
        half_side = 0.5 * side * rng.uniform(*size)
        # One or two attempts in ten may reach over the border.
        margin = half_side * rng.choice([1.0, 0.75], p=[0.85, 0.15])
        centre = np.array([rng.uniform(margin, canvas_width - margin), rng.uniform(margin, canvas_height - margin)])
        drawn = [draw(outline, centre, half_side, scene.owners.shape) for outline in draw_outlines()]
        full_areas = [int(np.count_nonzero(mask)) for mask in drawn]
        if len(drawn) == 2:
            first, second = drawn
            shown = full_areas[0] - int(np.count_nonzero(first & second))
            share = shown / (shown + full_areas[1])
            if not MIN_PAIR_SHARE <= share <= 1 - MIN_PAIR_SHARE or shown < MIN_VISIBLE_FRACTION * full_areas[0]:
                continue
            iou = boxes.iou(boxes.tight(first & ~second), boxes.tight(second))
            if not PAIR_BOX_IOU[0] <= iou <= PAIR_BOX_IOU[1]:
                continue
        union = functools.reduce(np.logical_or, drawn)
        covered = np.bincount(scene.owners[union], minlength=len(areas))
        # An object that is overlaid a second time is measured against what was seen of it before: close enough.
        if np.any(covered[1:] > (1 - 2 * MIN_VISIBLE_FRACTION) * areas[1:]):
            continue
        for mask, label in zip(drawn, labels, strict=True):
            scene.labels.append(label)
            scene.is_crowd.append(is_crowd)
            scene.whole.append(mask)
            scene.owners[mask] = len(scene.labels)
        return


def draw(outline: Outline, centre: np.ndarray, half_side: float, shape: tuple[int, ...]) -> np.ndarray:
    """Draw an outline into a boolean canvas."""
    canvas = np.zeros(shape, np.uint8)
    # OpenCV counts from the centre of the first pixel.
    lines = [np.round((centre + half_side * line - 0.5) * 2**SHIFT).astype(np.int32) for line in outline.lines]
    if outline.thickness:
        thickness = max(1, round(outline.thickness * half_side))
        cv2.polylines(canvas, lines, outline.closed, 1, thickness, cv2.LINE_8, SHIFT)
    else:
        for line in lines:
            cv2.fillPoly(canvas, [line], 1, cv2.LINE_8, SHIFT)
    return canvas.astype(bool)


def visible_masks(scene: Scene) -> list[np.ndarray]:
    """Return for each object the pixels of the image that it covers by half or more; no pixel is in two masks."""
    masks: list[np.ndarray] = []
    free = np.ones([side // SUPERSAMPLING for side in scene.owners.shape], bool)
    half = SUPERSAMPLING**2 // 2
    for owner in range(len(scene.labels), 0, -1):
        seen = (scene.owners == owner).view(np.uint8)
        mask = (seen[::2, ::2] + seen[1::2, ::2] + seen[::2, 1::2] + seen[1::2, 1::2] >= half) & free
        free &= ~mask
        masks.append(mask)
    return masks[::-1]


def single(rng: np.random.Generator) -> Outline:
    """Draw the outline of an object on its own."""
    thickness = rng.uniform(0.35, 0.55)
    reach = 1 - thickness / 2
    kind = rng.choice(["blob", "bar", "ring", "arc", "cross", "hook", "wave"], p=[0.34, 0.12, 0.1, 0.14, 0.1, 0.1, 0.1])
    if kind == "blob":
        return Outline([_star_convex(rng)])
    if kind == "ring":
        return Outline([_arc(0, 2 * np.pi, reach)], thickness).transformed(_random_stretch(rng))
    if kind == "arc":
        start = rng.uniform(0, 2 * np.pi)
        return Outline([_arc(start, start + rng.uniform(3, 5), reach)], thickness).transformed(_random_stretch(rng))
    if kind == "wave":
        lines = [_wave(reach, 1)]
    else:
        lines = {
            "bar": [np.array([[-reach, 0], [reach, 0]])],
            "cross": [np.array([[-reach, 0], [reach, 0]]), np.array([[0, -reach], [0, reach]])],
            "hook": [np.array([[-reach, -reach], [-reach, reach], [reach, reach]]) * 0.75],
        }[str(kind)]
    return Outline(lines, thickness).transformed(_rotation(rng.uniform(0, 2 * np.pi)))


def pair(rng: np.random.Generator) -> list[Outline]:
    """Draw two outlines that interlock within nearly the same box; the second lies over the first."""
    thickness = rng.uniform(0.35, 0.55)
    reach = 1 - thickness / 2
    half_turn = _rotation(np.pi)
    kind = rng.choice(["bars", "waves", "spirals", "hooks", "combs", "ring"], p=[0.4, 0.12, 0.14, 0.12, 0.12, 0.1])
    if kind == "bars":
        bend, other_bend = rng.uniform(-0.35, 0.35, 2)
        first = Outline([_bent((-reach, -reach), (reach, reach), bend)], thickness)
        second = Outline([_bent((-reach, reach), (reach, -reach), other_bend)], rng.uniform(0.35, 0.55))
    elif kind == "waves":
        first = Outline([_wave(reach, 1)], thickness)
        second = Outline([_wave(reach, -1)], thickness)
    elif kind == "spirals":
        angle = rng.uniform(0, 2 * np.pi)
        turn = np.linspace(0, 1, 24)
        radius = 0.3 + (reach - 0.3) * turn
        spiral = np.stack([radius * np.cos(angle + 5 * turn), radius * np.sin(angle + 5 * turn)], axis=-1)
        first = Outline([spiral], 0.7 * thickness)
        second = first.transformed(half_turn)
    elif kind == "hooks":
        inner = reach - rng.uniform(0.15, 0.3)
        first = Outline([np.array([[-reach, -reach], [-reach, inner], [inner, inner]])], thickness)
        second = first.transformed(half_turn)
    elif kind == "combs":
        teeth = np.array([-reach, reach / 3])
        tooth = np.array([[0.0, -reach], [0.0, 0.8 * reach]])
        back = np.array([[-reach, -reach], [0.4, -reach]])
        first = Outline([back, *(tooth + np.array([x, 0.0]) for x in teeth)], 0.8 * thickness)
        second = first.transformed(half_turn)
    else:
        first = Outline([_arc(0, 2 * np.pi, reach)], 0.8 * thickness)
        bar = _bent((-reach, -0.3), (reach, 0.3), 0.0)
        second = Outline([bar, bar @ _rotation(np.pi / 2).T], thickness)
    common = _rotation(rng.uniform(-0.25, 0.25) + rng.integers(4) * np.pi / 2) @ _random_stretch(rng)
    # The partners differ in size and place, so that their boxes do too.
    apart = np.diag(rng.uniform(0.82, 1.0, 2))
    pair = [first.transformed(common), second.transformed(apart @ common, rng.uniform(-0.1, 0.1, 2))]
    return pair if rng.random() < 0.5 else pair[::-1]


def crowd(rng: np.random.Generator) -> Outline:
    """Draw many small blobs, spread over the square."""
    side = int(rng.integers(4, 6))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
    centres = (grid + 0.5 + rng.uniform(-0.2, 0.2, grid.shape)) * 2 / side - 1
    kept = rng.random(len(centres)) < 0.85
    return Outline([centre + _star_convex(rng) * rng.uniform(0.7, 1.0) / side for centre in centres[kept]])


def _star_convex(rng: np.random.Generator) -> np.ndarray:
    """Return a smooth closed curve around the origin, one radius for each direction."""
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    frequencies = np.arange(1, 6)
    amplitudes = rng.normal(size=5) * 0.3 / frequencies**0.7
    radii = 1 + (amplitudes[:, None] * np.cos(frequencies[:, None] * angles + rng.uniform(0, 6.3, (5, 1)))).sum(axis=0)
    radii = np.maximum(radii, 0.25)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * radii[:, None]
    return points / np.abs(points).max()


def _arc(start: float, stop: float, radius: float) -> np.ndarray:
    angles = np.linspace(start, stop, 32)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _wave(reach: float, sign: int) -> np.ndarray:
    x = np.linspace(-1, 1, 24)
    return reach * np.stack([x, sign * np.sin(np.pi * x)], axis=-1)


def _bent(start: tuple[float, float], stop: tuple[float, float], bend: float) -> np.ndarray:
    """Return a line from `start` to `stop` that swings out by `bend` half way."""
    along = np.linspace(0, 1, 12)[:, None]
    direction = np.subtract(stop, start)
    normal = np.array([-direction[1], direction[0]]) / np.hypot(*direction)
    return start + along * direction + bend * np.sin(np.pi * along) * normal


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _random_stretch(rng: np.random.Generator) -> np.ndarray:
    """Return a matrix that shrinks one of the sides to no less than two thirds."""
    stretch = np.ones(2)
    stretch[rng.integers(2)] = rng.uniform(0.67, 1.0)
    return np.diag(stretch)
