"""Checks the annotations of one image and brings them into the form of a record.

Nothing is dropped silently: every repair has a name in `report.REASONS` and is counted in a `Report` with examples.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maskx_jax.coco import rle
from maskx_jax.coco.areas import is_plausible
from maskx_jax.coco.boxes import area as box_area
from maskx_jax.coco.boxes import clip, iou
from maskx_jax.coco.categories import Categories
from maskx_jax.data.coco.annotations import is_box, is_number
from maskx_jax.data.coco.predicted import is_predicted, quality_of, without_prediction
from maskx_jax.data.coco.report import Report
from maskx_jax.data.records import PACKED_SHAPE, crop_bitmap, rasterize_polygons, unpack_bitmap

# The outline of a polygon in sides of its image: what is longer was never drawn, and takes seconds to draw.
_LONGEST_OUTLINE = 100
# So much of a mask's frame is set, or more, where the mask is nothing but its box.
_RECTANGLE_SHARE = 0.99


def check_objects(
    annotations: Sequence[dict],
    size: tuple[int, int],
    categories: Categories,
    report: Report,
    use_predicted_masks: bool = False,
) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Check the annotations of one image and bring them into the form of a record.

    Args:
      annotations: of one image, as `read_instances` leaves them.
      size: height and width of the image.
      categories: the bijection between labels and category ids.
      report: takes the counts.
      use_predicted_masks: whether masks marked as predicted count, see `predicted`; else their objects have none.

    Returns:
      The arrays of `records.Record` by name, those on predicted masks only where these count, with `annotation_ids`
      int64 `n`; and the annotations kept, fit for evaluation: boxes and masks as they were, but invalid polygons and
      masks removed (`segmentation` is `[]` where nothing is left), `bbox` and `area` filled in or repaired.
    """
    label_of_id = categories.label_of_id()
    checked = [
        _check_object(annotation, label_of_id[annotation["category_id"]], size, categories, report, use_predicted_masks)
        for annotation in annotations
    ]
    kept = [entry for entry in checked if entry is not None]
    objects = [found for found, _ in kept]
    arrays = _arrays(objects)
    if use_predicted_masks:
        arrays |= {
            "mask_weight": np.array([1 if one.quality is None else one.quality for one in objects], np.float32),
            "is_predicted": np.array([one.quality is not None for one in objects], bool),
        }
    return arrays, [annotation for _, annotation in kept]


def is_usable_mask(segmentation: Any, size: tuple[int, int]) -> bool:
    """Return whether `check_objects` makes a mask of a segmentation, in an image of this height and width."""
    return _check_segmentation(segmentation, size, lambda _: None)[1] is not None


@dataclasses.dataclass(frozen=True)
class _Object:
    """One object of a record; `mask` is None where there is none to train on, `quality` where it is not predicted."""

    annotation_id: int
    box: np.ndarray
    label: int
    mask: np.ndarray | None
    frame: np.ndarray
    is_crowd: bool
    quality: float | None


def _check_object(
    annotation: dict,
    label: int,
    size: tuple[int, int],
    categories: Categories,
    report: Report,
    use_predicted_masks: bool,
) -> tuple[_Object, dict] | None:
    """Return an object and its annotation as it is kept, or None where it is dropped."""

    def count(reason: str) -> None:
        report.add(reason, annotation["id"])

    # Of an annotation that is dropped for its box nothing more is counted.
    mask_reasons: list[str] = []
    quality = None
    if is_predicted(annotation):
        mask_reasons.append("predicted_used" if use_predicted_masks else "predicted_dropped")
        if use_predicted_masks:
            quality = quality_of(annotation)
            if quality is None:
                mask_reasons.append("predicted_unrated")
                quality = 1.0
        else:
            annotation = without_prediction(annotation)
    segmentation, mask, frame, areas = _check_segmentation(annotation.get("segmentation"), size, mask_reasons.append)
    given = annotation.get("bbox")
    if given is None and mask is not None:
        count("box_filled")
        given = [*frame[:2].tolist(), *(frame[2:] - frame[:2]).tolist()]
    box = _check_box(given, size, count)
    if given is None or box is None:
        return None
    for reason in mask_reasons:
        count(reason)
    is_crowd = bool(annotation["iscrowd"])
    area = _check_area(annotation.get("area"), given, box, areas, is_crowd, count)
    # The mask of a crowd is of many objects: never one to train on.
    if is_crowd:
        mask = None
    if mask is not None:
        overlap = iou(clip(frame, size), box)
        if overlap < 0.5:
            count("mask_box_differ")
        is_rectangle = bool(overlap >= 0.9 and unpack_bitmap(mask).mean() >= _RECTANGLE_SHARE)
        if is_rectangle:
            count("mask_rectangle")
        report.add_mask(categories.names[label - 1], is_rectangle)
    checked = {"bbox": given, "iscrowd": int(is_crowd), "area": area, "segmentation": segmentation}
    quality = None if mask is None else quality
    found = _Object(annotation["id"], box, label, mask, box if mask is None else frame, is_crowd, quality)
    return found, {**annotation, **checked}


def _arrays(objects: Sequence[_Object]) -> dict[str, np.ndarray]:
    no_mask = np.zeros(PACKED_SHAPE, np.uint8)
    masks = [no_mask if one.mask is None else one.mask for one in objects]
    return {
        "boxes": np.array([one.box for one in objects], np.float32).reshape(-1, 4),
        "labels": np.array([one.label for one in objects], np.int32),
        "masks": np.array(masks, np.uint8).reshape(-1, *PACKED_SHAPE),
        "mask_frames": np.array([one.frame for one in objects], np.float32).reshape(-1, 4),
        "has_mask": np.array([one.mask is not None for one in objects], bool),
        "is_crowd": np.array([one.is_crowd for one in objects], bool),
        "annotation_ids": np.array([one.annotation_id for one in objects], np.int64),
    }


def _check_box(box: object, size: tuple[int, int], count: Callable[[str], None]) -> np.ndarray | None:
    """Return the clipped xyxy box, or None where it is to be dropped."""
    if not is_box(box):
        count("box_invalid")
        return None
    x, y, width, height = np.array(box, np.float64)
    corners = np.array([x, y, x + width, y + height])
    # In float32, as stored: a width can vanish there.
    if (corners[2:].astype(np.float32) <= corners[:2].astype(np.float32)).any():
        count("box_empty")
        return None
    clipped = clip(corners, size).astype(np.float32)
    if (clipped[2:] <= clipped[:2]).any():
        count("box_outside")
        return None
    if (clipped != corners.astype(np.float32)).any():
        count("box_clipped")
    return clipped


def _check_area(
    area: object,
    given: Sequence[float],
    box: np.ndarray,
    mask: Sequence[float] | None,
    crowd: bool,
    count: Callable[[str], None],
) -> float:
    """Return the area of an annotation: as given where it can be right, else that of the mask or of the box.

    Args:
      area: as given.
      given: the box as given: x, y, width, height.
      box: the clipped box.
      mask: smallest and largest of the areas that the mask has by one formula or another, or None.
      crowd: whether it is a crowd region, whose area COCO gives by another rule, and which is ignored at any size.
      count: takes the reasons.
    """
    computed = float(box_area(box)) if mask is None else mask[1]
    if not is_number(area) or area < 0:
        count("area_filled")
        return computed
    if crowd:
        return float(area)
    if not is_plausible(area, given[2] * given[3], mask or ()):
        count("area_repaired")
        return computed
    return float(area)


def _check_segmentation(
    segmentation: Any, size: tuple[int, int], count: Callable[[str], None]
) -> tuple[Any, np.ndarray | None, np.ndarray, tuple[float, float] | None]:
    """Return the segmentation without its invalid parts, and the packed mask (or None) with its frame and its areas.

    The areas are the smallest and the largest by the formulas in use: pixels in the image, and all of the outline.
    """
    nothing: tuple[list, None, np.ndarray, None] = ([], None, np.zeros(4, np.float32), None)
    if segmentation is None or segmentation == []:
        count("mask_missing")
        return nothing
    if isinstance(segmentation, dict):
        bitmap = _check_runs(segmentation, size, count)
        if bitmap is None:
            return nothing
        if not bitmap.any():
            count("mask_empty")
            return nothing
        return (segmentation, *crop_bitmap(bitmap), (float(bitmap.sum()), float(bitmap.sum())))
    if not isinstance(segmentation, list):
        count("mask_malformed")
        return nothing
    if _is_polygon(segmentation):
        count("polygon_flat")
        segmentation = [segmentation]
    longest = _LONGEST_OUTLINE * sum(size)
    polygons = [polygon for polygon in segmentation if _is_polygon(polygon) and _outline(polygon) <= longest]
    if len(polygons) < len(segmentation):
        count("polygon_dropped" if polygons else "polygon_none_left")
    if not polygons:
        return nothing
    mask, frame = rasterize_polygons(polygons)
    # As the evaluator draws them: where no pixel is drawn there is no mask, in this form as in RLE.
    num_pixels = float(rle.areas([rle.draw(polygons, size)])[0])
    if not mask.any() or num_pixels == 0:
        count("mask_empty")
        return nothing
    return polygons, mask, frame, (num_pixels, float(box_area(frame)) * float(unpack_bitmap(mask).mean()))


def _outline(polygon: list[float]) -> float:
    points = np.array(polygon, np.float64).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).sum())


def _check_runs(segmentation: dict, size: tuple[int, int], count: Callable[[str], None]) -> np.ndarray | None:
    counts = segmentation.get("counts")
    if not isinstance(counts, str | list) or "size" not in segmentation:
        count("mask_malformed")
        return None
    count("rle_compressed" if isinstance(counts, str) else "rle_uncompressed")
    if segmentation["size"] != list(size):
        count("rle_other_size")
        return None
    try:
        return rle.decode(segmentation)
    except ValueError:
        count("rle_corrupt")
        return None


def _is_polygon(polygon: object) -> bool:
    return isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 and all(map(is_number, polygon))
