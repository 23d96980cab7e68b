"""Reads a file of COCO-style annotations and checks its structure, without looking at any object."""

import collections
import dataclasses
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from maskx_jax import errors, files
from maskx_jax.coco.categories import Categories
from maskx_jax.data.coco.report import Report

_LARGEST_ID = 2**63 - 1
# Beyond any image, and the square of it is still finite in float32.
_LARGEST = 1e15
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


@dataclasses.dataclass(frozen=True)
class Instances:
    """A COCO instances file whose structure is sound.

    Attributes:
      categories: the bijection between labels and category ids.
      images: the entries of `images`, in order, each with a `file_name`.
      annotations: for each image id its annotations, in order, each with `iscrowd`.
      header: the other top-level entries worth keeping: info, licenses, categories.
    """

    categories: Categories
    images: list[dict]
    annotations: dict[int, list[dict]]
    header: dict[str, Any]

    def to_coco(self) -> dict[str, Any]:
        """Return it as a COCO instances dictionary again; its entries are the same objects."""
        annotations = [annotation for image in self.images for annotation in self.annotations[image["id"]]]
        return {**self.header, "images": self.images, "annotations": annotations}


def read_instances(path: Path, report: Report, drop_unknown: bool = False, allow_outside: bool = False) -> Instances:
    """Read a COCO instances file and check its structure, without looking at images, boxes or masks one by one.

    Args:
      path: the JSON file.
      report: takes the counts.
      drop_unknown: drop annotations of unknown categories and images instead of stopping.
      allow_outside: take file names that are absolute or go up by `..`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: its structure is unsound; the message names file, key and ids.
    """
    content = _read_instances_json(path)
    categories = _check_categories(content["categories"], path)
    images, annotations = content["images"], content["annotations"]
    if not images:
        raise ValueError(f"{path}: 'images' is empty; expected at least one image")
    _check_ids(images, "images", path)
    _check_ids(annotations, "annotations", path)
    for image in images:
        _check_image_entry(image, path, allow_outside)
    annotations = _check_references(annotations, categories, images, path, report, drop_unknown)
    for annotation in annotations:
        for key in ("iscrowd", "ignore"):
            if annotation.get(key) not in (None, 0, 1):
                raise ValueError(
                    f"{path}: annotation {annotation['id']} has {key} {_short(annotation[key])}; expected 0 or 1"
                )
        if annotation.get("iscrowd") is None:
            annotation["iscrowd"] = 0
            report.add("iscrowd_filled", annotation["id"])
        # COCO's evaluator knows no `ignore`: as a crowd region it is ignored there as in training.
        if annotation.get("ignore") and not annotation["iscrowd"]:
            annotation["iscrowd"] = 1
            report.add("ignore_as_crowd", annotation["id"])
    _check_box_format(annotations, images, path)

    per_image: dict[int, list[dict]] = {image["id"]: [] for image in images}
    for annotation in annotations:
        per_image[annotation["image_id"]].append(annotation)
    header = {key: content[key] for key in ("info", "licenses", "categories") if key in content}
    return Instances(categories, images, per_image, header)


def is_box(box: object) -> TypeGuard[list[float]]:
    """Return whether a value out of somebody's file is a box: a list of 4 finite numbers."""
    return isinstance(box, list) and len(box) == 4 and all(map(is_number, box))


def _read_instances_json(path: Path) -> dict:
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: got a {type(content).__name__} at the top; expected an object as of COCO instances")
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise ValueError(f"{path}: the key {key!r} is missing; it has {_short(sorted(content))}")
        if not isinstance(content[key], list) or not all(isinstance(entry, dict) for entry in content[key]):
            raise ValueError(f"{path}: {key!r} must be a list of objects")
    return content


def _check_categories(entries: list[dict], path: Path) -> Categories:
    if not entries:
        raise ValueError(f"{path}: 'categories' is empty; expected at least one category")
    for place, entry in enumerate(entries):
        if not _is_integer(entry.get("id")) or not isinstance(entry.get("name"), str):
            raise ValueError(
                f"{path}: categories[{place}] is {_short(entry)}; expected a whole number 'id' and a text 'name'"
            )
    try:
        return Categories.from_coco(entries)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_ids(entries: list[dict], key: str, path: Path) -> None:
    for place, entry in enumerate(entries):
        if not _is_integer(entry.get("id")):
            raise ValueError(f"{path}: {key}[{place}] has id {_short(entry.get('id'))}; expected a whole number")
    times = collections.Counter(entry["id"] for entry in entries)
    repeated = [entry_id for entry_id, number in times.items() if number > 1]
    if repeated:
        raise ValueError(f"{path}: ids of {key} must be unique; {len(repeated)} are repeated: {errors.some(repeated)}")


def _check_image_entry(image: dict, path: Path, allow_outside: bool) -> None:
    where = f"{path}: image {image['id']}"
    if "file_name" not in image and isinstance(image.get("coco_url"), str):
        # LVIS names its images only by URL: .../train2017/000000391895.jpg, under the folder of all COCO images.
        image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
    name = image.get("file_name")
    if not isinstance(name, str) or not _is_file_name(name):
        raise ValueError(f"{where} has file_name {_short(name)}; expected a path in the image folder")
    if not allow_outside and (name.startswith("/") or ".." in name.split("/")):
        raise ValueError(
            f"{where} has file_name {_short(name)}, which leads out of the image folder. Use allow_outside to follow it"
        )
    given = [image.get(key) for key in ("height", "width")]
    if given != [None, None] and not all(_is_integer(value) and value > 0 for value in given):
        raise ValueError(
            f"{where} has height {_short(given[0])} and width {_short(given[1])}; expected whole numbers of pixels"
        )


def _check_references(
    annotations: list[dict], categories: Categories, images: list[dict], path: Path, report: Report, drop_unknown: bool
) -> list[dict]:
    known_ids: dict[str, Sequence[int]] = {
        "category_id": categories.ids,
        "image_id": [image["id"] for image in images],
    }
    for key, known in known_ids.items():
        wrong = [annotation for annotation in annotations if not _is_integer(annotation.get(key))]
        if wrong:
            raise ValueError(
                f"{path}: annotation {wrong[0]['id']} has {key} {_short(wrong[0].get(key))}; expected a whole number"
            )
        known_set = set(known)
        unknown = [annotation for annotation in annotations if annotation[key] not in known_set]
        if unknown and not drop_unknown:
            raise ValueError(
                f"{path}: {len(unknown)} annotations have an unknown {key}: "
                f"{errors.some(sorted({annotation[key] for annotation in unknown}))}, "
                f"for example in the annotations {errors.some([annotation['id'] for annotation in unknown])}; "
                f"known are {errors.some(known)}. Use drop_unknown to leave them out"
            )
        for annotation in unknown:
            report.add("unknown_category" if key == "category_id" else "unknown_image", annotation["id"])
        annotations = [annotation for annotation in annotations if annotation[key] in known_set]
    return annotations


def _check_box_format(annotations: list[dict], images: list[dict], path: Path) -> None:
    image_sizes = {image["id"]: (image["width"], image["height"]) for image in images if image.get("width")}
    pairs = [
        (annotation["bbox"], image_sizes[annotation["image_id"]])
        for annotation in annotations
        if annotation["image_id"] in image_sizes and is_box(annotation.get("bbox"))
    ]
    if not pairs:
        return
    boxes, sizes = (np.array(values, np.float64) for values in zip(*pairs, strict=True))
    # Of images of more than a few pixels.
    normalized = ((boxes >= 0) & (boxes <= 1)).all(axis=1) & (sizes > 4).all(axis=1)
    number = int(normalized.sum())
    if 2 * number > len(boxes):
        raise ValueError(
            f"{path}: 'bbox' looks like fractions of the image: {number} of {len(boxes)} boxes lie in 0..1; COCO "
            "expects pixels, multiply x and width by the image's width, y and height by its height"
        )
    # One pixel of slack: many tools round.
    outside = (boxes[:, :2] + boxes[:, 2:] > sizes + 1).any(axis=1)
    fits = ((boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= sizes + 1)).all(axis=1)
    number = int((outside & fits).sum())
    if 2 * number > len(boxes):
        raise ValueError(
            f"{path}: 'bbox' looks like x1, y1, x2, y2: {number} of {len(boxes)} boxes would reach outside their "
            f"image as x, y, width, height, which COCO expects, and fit as x1, y1, x2, y2; convert them first"
        )


def _is_file_name(name: str) -> bool:
    try:
        return bool(name.encode()) and "\0" not in name
    except UnicodeEncodeError:
        # Half of a surrogate pair, which JSON can write.
        return False


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and -_LARGEST_ID <= value <= _LARGEST_ID


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value out of somebody's file is a number that a coordinate can have."""
    # Neither holds for NaN.
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST


def _short(value: object) -> str:
    """Return a value out of somebody's file shortened to what a line of text bears."""
    return _SHORT.repr(value)
