"""A synthetic set that asks the question of partial supervision, rendered on demand.

A category is a hue and a texture ("red solid", "blue dotted"); the outline says nothing about it. Most objects come in
interlocked pairs of different categories whose boxes nearly coincide, so a box does not say which pixels are meant: a
mask head has to know what the category looks like, and for categories without masks it has to learn that from boxes.

Image `index` is a pure function of (seed, index) and of the options. No file is read and none is written.
"""

import colorsys
import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from maskx_jax.coco.categories import Categories
from maskx_jax.data import records

# Hue in degrees, saturation, value.
HUES = {
    "red": (0, 0.85, 0.85),
    "green": (140, 0.85, 0.55),
    "blue": (224, 0.85, 0.9),
    "yellow": (54, 0.85, 0.95),
    "purple": (272, 0.65, 0.7),
    "orange": (27, 0.9, 0.98),
    "cyan": (182, 0.75, 0.85),
    "magenta": (315, 0.8, 0.9),
    "lime": (88, 0.75, 0.85),
    "brown": (22, 0.65, 0.42),
    "pink": (345, 0.35, 0.98),
    "navy": (232, 0.75, 0.4),
}

# Whether a point of texture space (in periods) takes the second shade.
TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "solid": lambda x, y: np.zeros(np.broadcast_shapes(x.shape, y.shape), bool),
    "horizontal": lambda x, y: (y % 1 < 0.5) & (x == x),
    "vertical": lambda x, y: (x % 1 < 0.5) & (y == y),
    "diagonal": lambda x, y: (x + y) * 0.7071 % 1 < 0.5,
    "dotted": lambda x, y: (x % 1 - 0.5) ** 2 + (y % 1 - 0.5) ** 2 < 0.1,
    "checkered": lambda x, y: (x % 1 < 0.5) ^ (y % 1 < 0.5),
    "gridded": lambda x, y: (x % 1 < 0.28) | (y % 1 < 0.28),
}

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
class Layout:
    """What an image shows, before colours: `labels`, `is_crowd` and the supersampled map of who is seen where.

    In `owners` 0 is background and `i + 1` the object `i`; later objects lie over earlier ones.
    """

    labels: list[int]
    is_crowd: list[bool]
    owners: np.ndarray


class ShapesSource:
    """The synthetic set as a `records.Source`.

    Args:
      num_images: number of images; image `index` does not depend on it.
      seed: of the whole set. Use another seed for the validation images.
      image_size: side of the square images, or (smallest, largest) side of images of every orientation.
      num_hues: how many of `HUES` are used.
      num_textures: how many of `TEXTURES` are used. There are `num_hues * num_textures` categories.
      max_objects: largest number of objects of an image, crowds not counted. A pair counts as two.
      pair_fraction: probability that a pair is placed where there is room for two more objects.
      crowd_fraction: share of the images that hold a crowd, one region of many small objects of one category.
      empty_fraction: share of the images without any object.

    Raises:
      ValueError: an option is out of range.
    """

    def __init__(
        self,
        num_images: int,
        seed: int,
        image_size: int | tuple[int, int] = 128,
        num_hues: int = 10,
        num_textures: int = 6,
        max_objects: int = 4,
        pair_fraction: float = 0.7,
        crowd_fraction: float = 0.04,
        empty_fraction: float = 0.02,
    ) -> None:
        smallest, largest = (image_size, image_size) if isinstance(image_size, int) else image_size
        if not 32 <= smallest <= largest:
            raise ValueError(f"image_size is {image_size}; expected sides of 32 or more, the smallest first")
        for name, value, low, high in (
            ("num_images", num_images, 0, float("inf")),
            ("num_hues", num_hues, 1, len(HUES)),
            ("num_textures", num_textures, 1, len(TEXTURES)),
            ("max_objects", max_objects, 1, 100),
            ("pair_fraction", pair_fraction, 0, 1),
            ("crowd_fraction", crowd_fraction, 0, 1),
            ("empty_fraction", empty_fraction, 0, 1),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; expected a value from {low} to {high}")
        if num_hues * num_textures < 2 and pair_fraction > 0:
            raise ValueError("a pair needs two categories; raise num_hues or num_textures, or set pair_fraction to 0")
        self.seed = seed
        self.max_objects = max_objects
        self.pair_fraction = pair_fraction
        self.crowd_fraction = crowd_fraction
        self.empty_fraction = empty_fraction
        self._looks = [(hue, texture) for hue in list(HUES)[:num_hues] for texture in list(TEXTURES)[:num_textures]]
        self.categories = Categories(
            tuple(range(1, len(self._looks) + 1)), tuple(f"{hue} {texture}" for hue, texture in self._looks)
        )
        self.sizes = np.random.default_rng((seed, 0)).integers(smallest, largest + 1, (num_images, 2))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> records.Record:
        """Render image `index`; its id is `index + 1`.

        Raises:
          IndexError: there is no such image.
        """
        layout = self._layout(index)
        masks = _visible_masks(layout)
        packed = np.zeros((len(masks), *records.PACKED_SHAPE), np.uint8)
        frames = np.zeros((len(masks), 4), np.float32)
        for slot, mask in enumerate(masks):
            packed[slot], frames[slot] = records.crop_bitmap(mask)
        height, width = self.sizes[index].tolist()
        return records.Record(
            image=self._paint(layout, np.random.default_rng((self.seed, 2, index))),
            image_id=index + 1,
            size=(height, width),
            boxes=frames.copy(),
            labels=np.array(layout.labels, np.int32),
            masks=packed,
            mask_frames=frames,
            has_mask=np.ones(len(masks), bool),
            is_crowd=np.array(layout.is_crowd, bool),
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this set from another; the sizes, the seed and the other options stand for its images."""
        options = [self.seed, self.max_objects, self.pair_fraction, self.crowd_fraction, self.empty_fraction]
        return records.identity_of(self.categories, len(self), self.sizes, json.dumps(options))

    @functools.cached_property
    def image_labels(self) -> list[np.ndarray]:
        """For each image the labels of its non-crowd objects."""
        layouts = map(self._layout, range(len(self)))
        return [np.array(x.labels, np.int32)[~np.array(x.is_crowd, bool)] for x in layouts]

    @property
    def image_has_mask(self) -> list[np.ndarray]:
        """For each image whether its non-crowd objects have masks: all have."""
        return [np.ones(len(labels), bool) for labels in self.image_labels]

    def coco_ground_truth(self) -> dict:
        """Return the annotations as a COCO instances dictionary; segmentations are uncompressed RLE."""
        images: list[dict] = []
        annotations: list[dict] = []
        for index, (height, width) in enumerate(self.sizes.tolist()):
            images.append({"id": index + 1, "height": height, "width": width, "file_name": f"{index + 1:012d}.png"})
            layout = self._layout(index)
            for mask, label, is_crowd in zip(_visible_masks(layout), layout.labels, layout.is_crowd, strict=True):
                x1, y1, x2, y2 = _tight_box(mask)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index + 1,
                        "category_id": self.categories.ids[label - 1],
                        "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                        "area": int(mask.sum()),
                        "iscrowd": int(is_crowd),
                        "segmentation": {"size": [height, width], "counts": _run_lengths(mask)},
                    }
                )
        return {"images": images, "annotations": annotations, "categories": self.categories.to_coco()}

    def _layout(self, index: int) -> Layout:
        """Place the objects of an image."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of a set of {len(self)}")
        rng = np.random.default_rng((self.seed, 1, index))
        height, width = self.sizes[index].tolist()
        layout = Layout([], [], np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8))
        kind = rng.random()
        if kind < self.empty_fraction:
            return layout
        if kind < self.empty_fraction + self.crowd_fraction:
            _place(layout, rng, lambda: [_crowd(rng)], self._draw_labels(rng, 1), (0.4, 0.65), is_crowd=True)
        remaining = int(rng.integers(1, self.max_objects + 1))
        while remaining > 0:
            if remaining >= 2 and rng.random() < self.pair_fraction:
                _place(layout, rng, lambda: _pair(rng), self._draw_labels(rng, 2), (0.4, 0.7))
                remaining -= 2
            else:
                _place(layout, rng, lambda: [_single(rng)], self._draw_labels(rng, 1), (0.25, 0.6))
                remaining -= 1
        return layout

    def _draw_labels(self, rng: np.random.Generator, count: int) -> list[int]:
        return (1 + rng.choice(len(self.categories), count, replace=False)).tolist()

    def _paint(self, layout: Layout, rng: np.random.Generator) -> np.ndarray:
        """Colour a layout over a background of its own, and average down to the size of the image."""
        canvas = _background(layout.owners.shape[0], layout.owners.shape[1], rng)
        side = min(layout.owners.shape)
        for owner, label in enumerate(layout.labels, start=1):
            hue, texture = self._looks[label - 1]
            colour, shade = _colours(hue, rng)
            mask = layout.owners == owner
            x1, y1, x2, y2 = _tight_box(mask)
            # About 18 periods a side: still resolved at 128 pixels, and several of them across a bar.
            period = side / 18 * rng.uniform(0.9, 1.15)
            angle, mirror = rng.uniform(-0.1, 0.1), float(rng.choice([-1.0, 1.0]))
            x = (np.arange(x1, x2, dtype=np.float32) / period + rng.random())[None, :]
            y = (np.arange(y1, y2, dtype=np.float32) / period + rng.random())[:, None]
            cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
            second = TEXTURES[texture](mirror * (cosine * x + sine * y), cosine * y - sine * x)
            inside = mask[y1:y2, x1:x2]
            canvas[y1:y2, x1:x2][inside] = np.where(second[inside][:, None], shade, colour)
        height, width = layout.owners.shape[0] // SUPERSAMPLING, layout.owners.shape[1] // SUPERSAMPLING
        image = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
        corners = 1 + 0.08 * rng.standard_normal((2, 2)).astype(np.float32)
        light = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(2, 7))
        return np.clip(image * light + noise, 0, 255).astype(np.uint8)


def _place(
    layout: Layout,
    rng: np.random.Generator,
    draw_outlines: Callable[[], list[Outline]],
    labels: list[int],
    size: tuple[float, float],
    is_crowd: bool = False,
) -> None:
    """Put one group of outlines where it and what is there already stay in sight, if such a place is found."""
    canvas_height, canvas_width = layout.owners.shape
    side = min(layout.owners.shape)
    areas = np.bincount(layout.owners.ravel(), minlength=len(layout.labels) + 1)
    for _ in range(NUM_ATTEMPTS):
        half_side = 0.5 * side * rng.uniform(*size)
        # One or two attempts in ten may reach over the border.
        margin = half_side * rng.choice([1.0, 0.75], p=[0.85, 0.15])
        centre = np.array([rng.uniform(margin, canvas_width - margin), rng.uniform(margin, canvas_height - margin)])
        drawn = [_draw(outline, centre, half_side, layout.owners.shape) for outline in draw_outlines()]
        full_areas = [int(np.count_nonzero(mask)) for mask in drawn]
        if len(drawn) == 2:
            first, second = drawn
            shown = full_areas[0] - int(np.count_nonzero(first & second))
            share = shown / (shown + full_areas[1])
            if not MIN_PAIR_SHARE <= share <= 1 - MIN_PAIR_SHARE or shown < MIN_VISIBLE_FRACTION * full_areas[0]:
                continue
            iou = _box_iou(_tight_box(first & ~second), _tight_box(second))
            if not PAIR_BOX_IOU[0] <= iou <= PAIR_BOX_IOU[1]:
                continue
        union = functools.reduce(np.logical_or, drawn)
        covered = np.bincount(layout.owners[union], minlength=len(areas))
        # An object that is overlaid a second time is measured against what was seen of it before: close enough.
        if np.any(covered[1:] > (1 - 2 * MIN_VISIBLE_FRACTION) * areas[1:]):
            continue
        for mask, label in zip(drawn, labels, strict=True):
            layout.labels.append(label)
            layout.is_crowd.append(is_crowd)
            layout.owners[mask] = len(layout.labels)
        return


def _draw(outline: Outline, centre: np.ndarray, half_side: float, shape: tuple[int, ...]) -> np.ndarray:
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


def _single(rng: np.random.Generator) -> Outline:
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


def _pair(rng: np.random.Generator) -> list[Outline]:
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


def _crowd(rng: np.random.Generator) -> Outline:
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


def _colours(hue: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the two shades of an object: the hue, jittered, and a darker one (a lighter one for dark hues)."""
    degrees, saturation, value = HUES[hue]
    colour = 255 * np.array(
        colorsys.hsv_to_rgb(
            (degrees + rng.uniform(-5, 5)) / 360 % 1,
            np.clip(saturation + rng.uniform(-0.06, 0.06), 0, 1),
            np.clip(value + rng.uniform(-0.06, 0.06), 0, 1),
        )
    )
    shade = colour * 0.42 if value > 0.6 else colour + (255 - colour) * 0.5
    return colour.astype(np.uint8), shade.astype(np.uint8)


def _background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw clouds of nearly grey and a few grey outlines that are no objects."""
    cells = np.clip(rng.uniform(70, 185, (5, 5, 1)) + rng.normal(0, 8, (5, 5, 3)), 0, 255).astype(np.uint8)
    canvas = cv2.resize(cells, (width, height), interpolation=cv2.INTER_LINEAR)
    for _ in range(rng.integers(0, 4)):
        centre = rng.uniform(0, 1, 2) * (width, height)
        mask = _draw(_single(rng), centre, min(height, width) * rng.uniform(0.1, 0.4), (height, width))
        canvas[mask] = np.clip(canvas[mask] + rng.uniform(-30, 30), 0, 255).astype(np.uint8)
    return canvas


def _visible_masks(layout: Layout) -> list[np.ndarray]:
    """Return for each object the pixels of the image that it covers by half or more; no pixel is in two masks."""
    masks: list[np.ndarray] = []
    free = np.ones([side // SUPERSAMPLING for side in layout.owners.shape], bool)
    half = SUPERSAMPLING**2 // 2
    for owner in range(len(layout.labels), 0, -1):
        seen = (layout.owners == owner).view(np.uint8)
        mask = (seen[::2, ::2] + seen[1::2, ::2] + seen[::2, 1::2] + seen[1::2, 1::2] >= half) & free
        free &= ~mask
        masks.append(mask)
    return masks[::-1]


def _tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return x1, y1, x2, y2 of the set pixels; zeros where none is set."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _box_iou(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> float:
    width = max(0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0, min(first[3], second[3]) - max(first[1], second[1]))
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return width * height / max(1, area - width * height)


def _run_lengths(mask: np.ndarray) -> list[int]:
    """Return COCO's uncompressed RLE: lengths of the runs in column order, zeros first."""
    pixels = np.concatenate([[False], mask.ravel(order="F"), [not mask[-1, -1]]])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    return np.diff(changes, prepend=0).tolist()
