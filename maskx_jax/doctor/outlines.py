"""What polygons and run lengths say by arithmetic alone: extent and area of many masks at once, without drawing any."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from maskx_jax.coco import rle

# Of annotations: what is made of their coordinates at one time stays small.
_PART = 20_000


@dataclasses.dataclass(frozen=True)
class Outlines:
    """Of each of n masks; NaN where arithmetic does not say it, and drawing or decoding has to.

    Attributes:
      frames: float64 `n 4`, x1, y1, x2, y2 around all points, or around the pixels of run lengths.
      areas: float64 `n`, the sum of the areas of its polygons by the shoelace formula, or its number of pixels.
      least: float64 `n`, what the union of its polygons has at least, if none crosses itself.
      lengths: float64 `n`, of its longest outline, along x and y; 0 for run lengths.
      crossed: bool `n`, whether a polygon of four points crosses itself.
    """

    frames: np.ndarray
    areas: np.ndarray
    least: np.ndarray
    lengths: np.ndarray
    crossed: np.ndarray

    @classmethod
    def unknown(cls, number: int) -> "Outlines":
        """Return the outlines of masks of which nothing is known."""
        areas, least, lengths = np.full((3, number), np.nan)
        return cls(np.full((number, 4), np.nan), areas, least, lengths, np.zeros(number, bool))

    def put(self, places: np.ndarray, others: "Outlines") -> None:
        """Take others over, at their places."""
        for field in dataclasses.fields(self):
            getattr(self, field.name)[places] = getattr(others, field.name)


def measure(segmentations: Sequence[Any], sizes: np.ndarray) -> Outlines:
    """Measure masks.

    Args:
      segmentations: out of somebody's file: anything.
      sizes: int64 `n 2`, height and width of their images.
    """
    found = Outlines.unknown(len(segmentations))
    for begin in range(0, len(segmentations), _PART):
        part = range(begin, min(begin + _PART, len(segmentations)))
        polygons = [index for index in part if isinstance(segmentations[index], list) and segmentations[index]]
        _put_polygons(found, polygons, segmentations)
        runs = [index for index in part if _is_compressed(segmentations[index], sizes[index])]
        _put_runs(found, runs, segmentations)
    return found


def _put_polygons(found: Outlines, places: list[int], segmentations: Sequence[Any]) -> None:
    """Measure those whose polygons all are lists of numbers, even and long enough."""
    places = [
        place
        for place in places
        if all(
            [type(polygon) is list and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentations[place]]
        )
    ]
    if not _only_numbers(itertools.chain.from_iterable(segmentations[place] for place in places)):
        places = [place for place in places if _only_numbers(segmentations[place])]
    if places:
        found.put(np.array(places), _measure_polygons([segmentations[place] for place in places]))


def _only_numbers(polygons: Any) -> bool:
    return set(map(type, itertools.chain.from_iterable(polygons))) <= {int, float}


def _measure_polygons(masks: Sequence[Sequence[Sequence[float]]]) -> Outlines:
    polygons = list(itertools.chain.from_iterable(masks))
    lengths = np.array([len(polygon) // 2 for polygon in polygons])
    try:
        flat = np.fromiter(itertools.chain.from_iterable(polygons), np.float64, 2 * int(lengths.sum()))
    except OverflowError:
        # A whole number of more than 308 digits.
        return Outlines.unknown(len(masks))
    points = flat.reshape(-1, 2)
    firsts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    lasts = firsts + lengths - 1
    masks_firsts = np.concatenate([[0], np.cumsum([len(mask) for mask in masks])[:-1]])
    following = np.arange(1, len(points) + 1)
    following[lasts] = firsts
    with np.errstate(invalid="ignore", over="ignore"):
        # From the first point on: coordinates may be large, and their products are inexact.
        local = points - np.repeat(points[firsts], lengths, axis=0)
        step = local[following]
        cross = local[:, 0] * step[:, 1] - step[:, 0] * local[:, 1]
        areas = np.abs(np.add.reduceat(cross, firsts)) / 2
        outlines = np.add.reduceat(np.abs(step - local).sum(axis=1), firsts)
        low, high = np.minimum.reduceat(points, firsts), np.maximum.reduceat(points, firsts)
        crossed = np.zeros(len(polygons), bool)
        four = np.flatnonzero(lengths == 4)
        crossed[four] = _crosses(local[firsts[four][:, None] + np.arange(4)])
        return Outlines(
            frames=np.concatenate(
                [np.minimum.reduceat(low, masks_firsts), np.maximum.reduceat(high, masks_firsts)], axis=1
            ),
            areas=np.add.reduceat(areas, masks_firsts),
            least=_least_union(areas, np.concatenate([low, high], axis=1), masks_firsts),
            lengths=np.maximum.reduceat(outlines, masks_firsts),
            crossed=np.logical_or.reduceat(crossed, masks_firsts),
        )


def _least_union(areas: np.ndarray, frames: np.ndarray, masks_firsts: np.ndarray) -> np.ndarray:
    """Return float64 `n`: the areas of the polygons of each mask, less what their frames share."""
    least = np.add.reduceat(areas, masks_firsts)
    ends = np.append(masks_firsts[1:], len(areas))
    for mask in np.flatnonzero(ends - masks_firsts > 1).tolist():
        part = slice(masks_firsts[mask], ends[mask])
        # Of many parts the matrix would be large; then the largest of them has to do.
        if ends[mask] - masks_firsts[mask] <= 64:
            low = np.maximum(frames[part, None, :2], frames[None, part, :2])
            high = np.minimum(frames[part, None, 2:], frames[None, part, 2:])
            shared = np.maximum(high - low, 0).prod(axis=-1)
            least[mask] -= np.triu(shared, 1).sum()
        else:
            least[mask] = 0
        least[mask] = max(least[mask], areas[part].max())
    return least


def _crosses(corners: np.ndarray) -> np.ndarray:
    """Return bool `n`: whether opposite sides of quadrilaterals `n 4 2` cross each other."""

    def side(a: np.ndarray, b: np.ndarray, point: np.ndarray) -> np.ndarray:
        return (b[:, 0] - a[:, 0]) * (point[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (point[:, 0] - a[:, 0])

    def cross(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
        return (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)

    first, second, third, fourth = corners.transpose(1, 0, 2)
    return cross(first, second, third, fourth) | cross(second, third, fourth, first)


def _is_compressed(segmentation: Any, size: np.ndarray) -> bool:
    return (
        isinstance(segmentation, dict)
        and isinstance(segmentation.get("counts"), str)
        and segmentation.get("size") == size.tolist()
    )


def _put_runs(found: Outlines, places: list[int], segmentations: Sequence[Any]) -> None:
    """Measure those whose runs fill their size."""
    masks = [segmentations[place] for place in places]
    totals = rle.totals([mask["counts"] for mask in masks]) if masks else np.zeros(0)
    kept = [
        (place, mask)
        for place, mask, total in zip(places, masks, totals.tolist(), strict=True)
        if total == mask["size"][0] * mask["size"][1]
    ]
    try:
        areas = np.array(rle.areas([mask for _, mask in kept]), np.float64)
        boxes = rle.tight_boxes([mask for _, mask in kept])
    except ValueError:
        return
    if kept:
        frames = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        rest = Outlines(frames, areas, areas, np.zeros(len(kept)), np.zeros(len(kept), bool))
        found.put(np.array([place for place, _ in kept]), rest)
