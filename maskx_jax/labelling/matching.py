"""Masks made elsewhere, SAM's say, for the boxes that they fit."""

import collections
import os
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from maskx_jax.coco import rle
from maskx_jax.coco.categories import Categories
from maskx_jax.evaluation.checks import as_id, check_segmentation
from maskx_jax.evaluation.results import read_results
from maskx_jax.labelling.objects import Picture
from maskx_jax.labelling.quality import ObjectMask, object_mask
from maskx_jax.labelling.report import Report

# Between the box around a mask and the given one, from which on the mask may be the object's.
LEAST_IOU = 0.5


class _Pair(NamedTuple):
    """An object, and a mask that may be its own; `entry` is the number of its entry in the results."""

    mask: ObjectMask
    annotation_id: int
    entry: int


def match(
    path: str | os.PathLike,
    pictures: Sequence[Picture],
    image_ids: Sequence[int],
    categories: Categories,
    report: Report,
    *,
    ignore_classes: bool = False,
) -> None:
    """Find a mask for each object with only a box among COCO results, and put it into the report.

    Of each image the pair of object and mask of the best quality (score times IoU of the boxes) is taken first; each
    mask is one object's.

    Args:
      path: of the results: entries with `image_id` and `segmentation` (run lengths or polygons), maybe with `score`
        from 0 to 1 and `category_id`, which then must be the object's.
      pictures: see `objects.find`.
      image_ids: of the annotations.
      categories: of the annotations.
      report: takes masks and counts.
      ignore_classes: whether `category_id` is passed over.

    Raises:
      OSError: the file cannot be read.
      ValueError: an entry is unsound, or of an unknown image or class.
    """
    known_images, known_classes = set(image_ids), set(categories.ids)
    picture_of_id = {picture.image_id: picture for picture in pictures}
    of_image: dict[int, list[tuple[int, dict[str, Any]]]] = collections.defaultdict(list)
    for number, entry in enumerate(read_results(path)):
        try:
            image_id = _check(entry, known_images, None if ignore_classes else known_classes)
            if image_id in picture_of_id:
                check_segmentation(entry["segmentation"], list(picture_of_id[image_id].size))
        except ValueError as error:
            raise ValueError(f"{path}: results[{number}]: {error}") from None
        of_image[image_id].append((number, entry))
    for picture in pictures:
        _match_image(picture, of_image[picture.image_id], report, ignore_classes, str(path))


def _match_image(
    picture: Picture, entries: Sequence[tuple[int, dict[str, Any]]], report: Report, ignore_classes: bool, path: str
) -> None:
    pairs = []
    for number, entry in entries:
        try:
            encoded = rle.of_segmentation(entry["segmentation"], picture.size)
        except ValueError as error:
            raise ValueError(f"{path}: results[{number}]: {error}") from None
        if encoded is None:
            continue
        if isinstance(encoded["counts"], bytes):
            # As JSON writes them.
            encoded = encoded | {"counts": encoded["counts"].decode()}
        for index, annotation_id in enumerate(picture.annotation_ids):
            same = ignore_classes or _class_of(entry) in (None, picture.category_ids[index])
            mask = object_mask(encoded, picture.boxes[index], float(entry.get("score", 1.0))) if same else None
            if mask is not None and mask.box_iou >= LEAST_IOU:
                pairs.append(_Pair(mask, annotation_id, number))
    # Of equal ones the first of the file.
    pairs.sort(key=lambda pair: (-pair.mask.quality, pair.entry))
    found: dict[int, ObjectMask] = {}
    used: set[int] = set()
    for mask, annotation_id, number in pairs:
        if annotation_id not in found and number not in used:
            found[annotation_id] = mask
            used.add(number)
    for annotation_id in picture.annotation_ids:
        if annotation_id in found:
            report.add_mask(annotation_id, found[annotation_id])
        else:
            report.leave("no_match", [annotation_id])


def _class_of(entry: Mapping[str, Any]) -> int | None:
    return as_id(entry.get("category_id"))


def _check(entry: Any, image_ids: set[int], category_ids: set[int] | None) -> int:
    """Check an entry but for its segmentation, and return its image id."""
    if not isinstance(entry, Mapping) or "segmentation" not in entry:
        raise ValueError(f"got {reprlib.repr(entry)}; expected an object with image_id and segmentation")
    image_id, score = as_id(entry.get("image_id")), entry.get("score", 1.0)
    if image_id not in image_ids:
        raise ValueError(f"image_id {reprlib.repr(entry.get('image_id'))}; expected one of the annotations' images")
    if category_ids is not None and entry.get("category_id") is not None and _class_of(entry) not in category_ids:
        raise ValueError(
            f"category_id {reprlib.repr(entry['category_id'])}; expected one of the annotations' {len(category_ids)}, "
            "or none (ignore_classes passes over them)"
        )
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise ValueError(f"score {reprlib.repr(score)}; expected a number from 0 to 1")
    return image_id
