"""Large pictures in overlapping tiles: what to cut out, and one list of objects from what was found in the parts."""

import dataclasses

import jax
import numpy as np

from maskx_jax.coco import boxes
from maskx_jax.structures import Detections

# Two objects of a class in different parts are one if the smaller lies by this share in the larger.
_SAME_OBJECT = 0.5


@dataclasses.dataclass(frozen=True)
class Part:
    """A rectangle of a picture: its first row and column, and its height and width."""

    top: int
    left: int
    size: tuple[int, int]


def parts_of(size: tuple[int, int], tile: int | None, overlap: float = 0.25) -> list[Part]:
    """Return what to detect in: the whole picture first, then the tiles of one that is larger than a tile.

    Args:
      size: height and width of the picture.
      tile: side of a tile in pixels of the picture, or None for the whole picture only.
      overlap: share of a tile, below 1, that its neighbour has too. Objects up to this size are whole in one of them.
    """
    whole = Part(0, 0, size)
    if tile is None:
        return [whole]
    if max(size) <= tile:
        return [whole]
    rows, columns = (_starts(length, tile, overlap) for length in size)
    sides = (min(size[0], tile), min(size[1], tile))
    return [whole, *(Part(top, left, sides) for top in rows for left in columns)]


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """Return where tiles begin along an axis: evenly spread, and overlapping at least as much as they should."""
    if length <= tile:
        return [0]
    step = max(tile * (1 - overlap), 1)
    count = int(np.ceil((length - tile) / step)) + 1
    return np.round(np.linspace(0, length - tile, count)).astype(int).tolist()


def in_picture(found: Detections, scale: float, part: Part, size: tuple[int, int], *, tiled: bool) -> Detections:
    """Move detections of a part into the picture; those that the inner border of a tile cuts are not valid any more.

    Args:
      found: in pixels of the part's canvas, NumPy arrays without the axis of the batch.
      scale: canvas pixels per pixel of the picture.
      part: of the picture.
      size: height and width of the picture.
      tiled: whether the part is a tile. Of the whole picture nothing is cut.
    """
    offset = np.array([part.left, part.top, part.left, part.top], np.float64)
    moved = np.asarray(found.boxes, np.float64) / scale + offset
    valid = np.asarray(found.valid, bool)
    if tiled:
        bottom, right = part.top + part.size[0], part.left + part.size[1]
        # Within a pixel of the canvas, and of the picture.
        near = max(1.0, 1.0 / scale)
        cut = (
            ((moved[:, 0] < part.left + near) & (part.left > 0))
            | ((moved[:, 1] < part.top + near) & (part.top > 0))
            | ((moved[:, 2] > right - near) & (right < size[1]))
            | ((moved[:, 3] > bottom - near) & (bottom < size[0]))
        )
        valid &= ~cut
    return dataclasses.replace(found, boxes=moved, valid=valid)


def merge(parts: list[Detections]) -> Detections:
    """Return the objects of all parts of a picture, best first, each once.

    What was found in one part stays as it is: the model has compared these with each other. Of two objects of a class
    from different parts, of which the smaller lies by half in the larger, the better stays.

    Args:
      parts: in pixels of the picture; see `in_picture`.
    """
    if len(parts) == 1:
        return parts[0]
    # The form of all parts is one: where one has no masks, none has.
    present = [jax.tree.map(lambda array, part=part: array[part.valid], part) for part in parts]
    joined: Detections = jax.tree.map(lambda *arrays: np.concatenate(arrays), *present)
    owner = np.concatenate([np.full(len(part.scores), number) for number, part in enumerate(present)])
    kept = _best(joined, owner)
    return jax.tree.map(lambda array: array[kept], joined)


def _best(found: Detections, owner: np.ndarray) -> np.ndarray:
    """Return the indices of the objects that stay, best first; `owner` is the number of each one's part."""
    labels, area = found.labels, boxes.area(found.boxes)
    kept: list[int] = []
    for index in np.argsort(-found.scores, kind="stable"):
        better = np.array(kept, int)
        better = better[(labels[better] == labels[index]) & (owner[better] != owner[index])]
        shared = boxes.intersection(found.boxes[better], found.boxes[index])
        if not (shared > _SAME_OBJECT * np.minimum(area[better], area[index])).any():
            kept.append(int(index))
    return np.array(kept, int)
