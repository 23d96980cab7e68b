"""Reads a file of COCO-style annotations and checks its structure, without looking at any object."""

import collections
import dataclasses
import itertools
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from maskx_jax import errors, files
from maskx_jax.coco.categories import Categories
from maskx_jax.data.coco.report import Report

SECTIONS = ("images", "annotations", "categories")

_LARGEST_ID = 2**63 - 1
# Beyond any image, and the square of it is still finite in float32.
_LARGEST = 1e15
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong with the structure of a file.

    Attributes:
      cause: its name.
      message: what was got and what was expected, in a line.
      entries: the categories, images or annotations that it is about.
    """

    cause: str
    message: str
    entries: Sequence[dict] = ()


@dataclasses.dataclass(frozen=True)
class Instances:
    """A COCO instances file whose structure is sound.

    Attributes:
      categories: the bijection between labels and category ids.
      images: the entries of `images`, in order, each with a `file_name`.
      annotations: for each image id its annotations, in order, each with `iscrowd`.
      header: the other top-level entries worth keeping: info, licenses, categories.
      with_keypoints: the ids of the categories of which an annotation has keypoints.
    """

    categories: Categories
    images: list[dict]
    annotations: Mapping[int, Sequence[dict]]
    header: dict[str, Any]
    with_keypoints: frozenset[int]

    def entries(self, images: range) -> Iterator[tuple[dict, Sequence[dict]]]:
        """Yield the images at some places, each with its annotations."""
        for index in images:
            image = self.images[index]
            yield image, self.annotations[image["id"]]

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
    content = files.read_json(path)
    _refuse(section_faults(content), path)
    _refuse(category_faults(content["categories"]), path)
    categories = Categories.from_coco(content["categories"])
    images, annotations = content["images"], content["annotations"]
    if not images:
        raise ValueError(f"{path}: 'images' is empty; expected at least one image")
    _refuse(id_faults(images, "images"), path)
    _refuse(id_faults(annotations, "annotations"), path)
    for image in images:
        _refuse(image_faults(image, allow_outside), path)
    annotations = _check_references(annotations, categories, images, path, report, drop_unknown)
    for annotation in annotations:
        _refuse(flag_faults(annotation), path)
        for reason in fill_flags(annotation):
            report.add(reason, annotation["id"])
    _refuse(box_format_faults(annotations, images), path)

    per_image: dict[int, list[dict]] = {image["id"]: [] for image in images}
    for annotation in annotations:
        per_image[annotation["image_id"]].append(annotation)
    header = {key: content[key] for key in ("info", "licenses", "categories") if key in content}
    with_keypoints = frozenset(entry["category_id"] for entry in annotations if entry.get("keypoints"))
    return Instances(categories, images, per_image, header, with_keypoints)


def boxes_of(annotations: Sequence[dict]) -> np.ndarray:
    """Return float64 `n 4`: the boxes as given, x, y, width, height; NaN for what `is_box` refuses."""
    given: list[Any] = [annotation.get("bbox") for annotation in annotations]
    fours = [index for index, box in enumerate(given) if type(box) is list and len(box) == 4]
    # Of a file with nothing but numbers there, which nearly all are, all at once.
    if not set(map(type, itertools.chain.from_iterable(given[index] for index in fours))) <= {int, float}:
        fours = [index for index in fours if is_box(given[index])]
    boxes = np.full((len(given), 4), np.nan)
    try:
        boxes[fours] = np.array([given[index] for index in fours], np.float64).reshape(-1, 4)
    except OverflowError:  # A whole number beyond float64.
        fours = [index for index in fours if is_box(given[index])]
        boxes[fours] = np.array([given[index] for index in fours], np.float64).reshape(-1, 4)
    # Neither holds for NaN.
    boxes[~(np.abs(boxes) <= _LARGEST).all(axis=1)] = np.nan
    return boxes


def is_box(box: object) -> TypeGuard[list[float]]:
    """Return whether a value out of somebody's file is a box: a list of 4 finite numbers."""
    return isinstance(box, list) and len(box) == 4 and all(map(is_number, box))


def section_faults(content: Any) -> Iterator[Fault]:
    """Yield what is wrong with the top of a file: the lists of images, annotations and categories."""
    if not isinstance(content, dict):
        found = f"got a {type(content).__name__} at the top; expected an object as of COCO instances"
        yield Fault("file_no_object", found)
        return
    for key in SECTIONS:
        if key not in content:
            yield Fault("section_missing", f"the key {key!r} is missing; it has {_short(sorted(content))}")
        elif not isinstance(content[key], list) or not all(isinstance(entry, dict) for entry in content[key]):
            yield Fault("section_invalid", f"{key!r} must be a list of objects")


def category_faults(entries: Sequence[dict]) -> Iterator[Fault]:
    """Yield what is wrong with the categories; that some repeat only where all are sound otherwise."""
    if not entries:
        yield Fault("categories_empty", "'categories' is empty; expected at least one category")
        return
    sound = True
    for place, entry in enumerate(entries):
        if not is_integer(entry.get("id")) or not isinstance(entry.get("name"), str):
            sound = False
            yield Fault(
                "category_invalid",
                f"categories[{place}] is {_short(entry)}; expected a whole number 'id' and a text 'name'",
                [entry],
            )
    if sound:
        try:
            Categories.from_coco(entries)
        except ValueError as error:
            yield Fault("category_repeated", str(error), entries)


def id_faults(entries: Sequence[dict], key: str) -> Iterator[Fault]:
    """Yield the ids of images or annotations that are no whole numbers, and those that repeat.

    Args:
      entries: of the section.
      key: "images" or "annotations".
    """
    ids = [entry.get("id") for entry in entries]
    if are_integers(ids) and len(set(ids)) == len(ids):
        return
    one = key.removesuffix("s")
    sound = []
    for place, entry in enumerate(entries):
        if is_integer(entry.get("id")):
            sound.append(entry)
        else:
            found = f"{key}[{place}] has id {_short(entry.get('id'))}; expected a whole number"
            yield Fault(f"{one}_id_invalid", found, [entry])
    times = collections.Counter(entry["id"] for entry in sound)
    if len(times) == len(sound):
        return
    repeated = [entry_id for entry_id, number in times.items() if number > 1]
    yield Fault(
        f"{one}_id_repeated",
        f"ids of {key} must be unique; {len(repeated)} are repeated: {errors.some(repeated)}",
        [entry for entry in sound if times[entry["id"]] > 1],
    )


def image_faults(image: dict, allow_outside: bool = False) -> Iterator[Fault]:
    """Yield what is wrong with the name and the size of an image with a sound id; `file_name` is filled in for LVIS."""
    where = f"image {image['id']}"
    if "file_name" not in image and isinstance(image.get("coco_url"), str):
        # LVIS names its images only by URL: .../train2017/000000391895.jpg, under the folder of all COCO images.
        image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
    name = image.get("file_name")
    if not isinstance(name, str) or not _is_file_name(name):
        found = f"{where} has file_name {_short(name)}; expected a path in the image folder"
        yield Fault("file_name_invalid", found, [image])
    elif not allow_outside and (name.startswith("/") or ".." in name.split("/")):
        yield Fault(
            "file_name_outside",
            f"{where} has file_name {_short(name)}, which leads out of the image folder. "
            "Use allow_outside to follow it",
            [image],
        )
    given = [image.get(key) for key in ("height", "width")]
    if given != [None, None] and not all(is_integer(value) and value > 0 for value in given):
        yield Fault(
            "image_size_invalid",
            f"{where} has height {_short(given[0])} and width {_short(given[1])}; expected whole numbers of pixels",
            [image],
        )


def reference_faults(annotations: Sequence[dict], key: str) -> Iterator[Fault]:
    """Yield the annotations whose "image_id" or "category_id" (`key`) is no whole number."""
    if are_integers([annotation.get(key) for annotation in annotations]):
        return
    for annotation in annotations:
        if not is_integer(annotation.get(key)):
            found = f"annotation {annotation['id']} has {key} {_short(annotation.get(key))}; expected a whole number"
            yield Fault("reference_invalid", found, [annotation])


def flag_faults(annotation: dict) -> Iterator[Fault]:
    """Yield which of the flags `iscrowd` and `ignore` is neither 0 nor 1."""
    for key in ("iscrowd", "ignore"):
        if annotation.get(key) not in (None, 0, 1):
            found = f"annotation {annotation['id']} has {key} {_short(annotation[key])}; expected 0 or 1"
            yield Fault(f"{key}_invalid", found, [annotation])


def fill_flags(annotation: dict) -> list[str]:
    """Give an annotation its `iscrowd`; return what was done, as named in `report.REASONS`."""
    reasons = []
    if annotation.get("iscrowd") is None:
        annotation["iscrowd"] = 0
        reasons.append("iscrowd_filled")
    # COCO's evaluator knows no `ignore`: as a crowd region it is ignored there as in training.
    if annotation.get("ignore") and not annotation["iscrowd"]:
        annotation["iscrowd"] = 1
        reasons.append("ignore_as_crowd")
    return reasons


def box_format_faults(annotations: Sequence[dict], images: Sequence[dict]) -> Iterator[Fault]:
    """Yield whether most boxes are written in another way than COCO's: as fractions of the image, or as corners."""
    image_sizes = {image["id"]: (image["width"], image["height"]) for image in images if image.get("width")}
    with_sizes = [annotation for annotation in annotations if annotation["image_id"] in image_sizes]
    boxes = boxes_of(with_sizes)
    sound = ~np.isnan(boxes[:, 0])
    if not sound.any():
        return
    kept, boxes = [with_sizes[index] for index in np.flatnonzero(sound).tolist()], boxes[sound]
    sizes = np.array([image_sizes[annotation["image_id"]] for annotation in kept], np.float64)
    number = int(are_fractions(boxes, sizes).sum())
    if 2 * number > len(boxes):
        yield Fault(
            "boxes_fractions",
            f"'bbox' looks like fractions of the image: {number} of {len(boxes)} boxes lie in 0..1; COCO "
            "expects pixels, multiply x and width by the image's width, y and height by its height",
            kept,
        )
    number = int(are_corners(boxes, sizes).sum())
    if 2 * number > len(boxes):
        yield Fault(
            "boxes_corners",
            f"'bbox' looks like x1, y1, x2, y2: {number} of {len(boxes)} boxes would reach outside their "
            f"image as x, y, width, height, which COCO expects, and fit as x1, y1, x2, y2; convert them first",
            kept,
        )


def are_fractions(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return bool `n`: which boxes `n 4`, as given, lie in 0..1; `sizes` `n 2` are (width, height) of their images."""
    # Of images of more than a few pixels.
    return np.logical_and(((boxes >= 0) & (boxes <= 1)).all(axis=1), (sizes > 4).all(axis=1))


def are_corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return bool `n`: which boxes `n 4`, as given, fit their images only if read as x1, y1, x2, y2."""
    # One pixel of slack: many tools round.
    outside = (boxes[:, :2] + boxes[:, 2:] > sizes + 1).any(axis=1)
    return outside & ((boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= sizes + 1)).all(axis=1)


def _refuse(faults: Iterable[Fault], path: Path) -> None:
    for fault in faults:
        raise ValueError(f"{path}: {fault.message}")


def _check_references(
    annotations: list[dict], categories: Categories, images: list[dict], path: Path, report: Report, drop_unknown: bool
) -> list[dict]:
    known_ids: dict[str, Sequence[int]] = {
        "category_id": categories.ids,
        "image_id": [image["id"] for image in images],
    }
    for key, known in known_ids.items():
        _refuse(reference_faults(annotations, key), path)
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


def _is_file_name(name: str) -> bool:
    try:
        return bool(name.encode()) and "\0" not in name
    except UnicodeEncodeError:
        # Half of a surrogate pair, which JSON can write.
        return False


def is_integer(value: object) -> TypeGuard[int]:
    """Return whether a value out of somebody's file is a whole number that an id can be."""
    return isinstance(value, int) and not isinstance(value, bool) and -_LARGEST_ID <= value <= _LARGEST_ID


def are_integers(values: Sequence[Any]) -> bool:
    """Return whether `is_integer` holds for all values: at once, of a million."""
    return set(map(type, values)) <= {int} and (not values or -_LARGEST_ID <= min(values) <= max(values) <= _LARGEST_ID)


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value out of somebody's file is a number that a coordinate can have."""
    # Neither holds for NaN.
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST


def _short(value: object) -> str:
    """Return a value out of somebody's file shortened to what a line of text bears."""
    return _SHORT.repr(value)
