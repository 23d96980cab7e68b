"""Reads COCO-style annotations and checks them: what is wrong stops with an error or is repaired, counted and named.

Nothing is dropped silently: every repair has a name in `REASONS` and is counted in a `Report` with examples.
"""

import collections
import dataclasses
import json
import os
import reprlib
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from faster_coco_eval import mask as coco_mask

from maskx_jax import errors
from maskx_jax.coco.categories import Categories
from maskx_jax.data.records import PACKED_SHAPE, crop_bitmap, rasterize_polygons, unpack_bitmap

NUM_EXAMPLES = 5

_LARGEST_ID = 2**63 - 1
# Beyond any image, and the square of it is still finite in float32.
_LARGEST = 1e15
# The outline of a polygon in sides of its image: what is longer was never drawn, and takes seconds to draw.
_LONGEST_OUTLINE = 100
# So much of a mask's frame is set, or more, where the mask is nothing but its box.
_RECTANGLE_SHARE = 0.99
# What the annotations of a large data set fill, and not yet the memory of a computer.
_LARGEST_JSON_BYTES = 2**33

# Every reason for which something is dropped, repaired or worth knowing. The first word says what was counted; the
# examples are its ids.
REASONS = {
    "image_skipped": "images skipped with their annotations: file missing, empty, corrupt or too large",
    "image_other_size": "images skipped with their annotations: of another size than the JSON says",
    "image_size_filled": "images without width and height in the JSON: taken from the file",
    "image_converted": "images converted to 8-bit RGB, stored as PNG",
    "image_turned": "images turned by their EXIF orientation, as the size in the JSON asks",
    "image_turn_ambiguous": "images turned by their EXIF orientation, which leaves the size as it is",
    "image_turn_ignored": "images whose EXIF orientation is ignored, as the size in the JSON asks",
    "image_negative": "images without annotations: kept as negatives",
    "image_all_dropped": "images all of whose annotations were dropped: kept as negatives",
    "image_crowd_only": "images with crowd regions only: kept",
    "annotation_image_skipped": "annotations dropped: their image was skipped",
    "unknown_category": "annotations dropped: unknown category_id",
    "unknown_image": "annotations dropped: unknown image_id",
    "box_invalid": "annotations dropped: bbox is not 4 finite numbers",
    "box_empty": "annotations dropped: bbox of zero or negative size",
    "box_outside": "annotations dropped: bbox wholly outside the image",
    "box_filled": "annotations without bbox: taken from the mask",
    "box_clipped": "annotations with a bbox partly outside the image: clipped",
    "iscrowd_filled": "annotations without iscrowd: taken as 0",
    "ignore_as_crowd": "annotations with ignore = 1: kept as crowd regions, neither trained on nor scored",
    "area_filled": "annotations without a usable area: computed",
    "area_repaired": "annotations whose area fits neither mask nor bbox (0, another formula): computed",
    "mask_missing": "annotations without segmentation: box only",
    "mask_malformed": "annotations whose segmentation is neither polygons nor RLE: box only",
    "polygon_flat": "annotations with one polygon that is not in a list: taken as one",
    "polygon_dropped": "annotations with invalid polygons (fewer than 3 points, odd count, not finite, endless): "
    "these dropped",
    "polygon_none_left": "annotations without a valid polygon: box only",
    "rle_other_size": "annotations with an RLE of another size than the image: box only",
    "rle_corrupt": "annotations with a corrupt RLE: box only",
    "mask_empty": "annotations whose mask has no pixel in the image: box only",
    "mask_box_differ": "annotations whose mask and bbox differ grossly (IoU below 0.5): kept, please check",
    "mask_rectangle": "annotations whose mask is just the rectangle of its bbox: kept, please check",
    "rle_compressed": "annotations with a compressed RLE",
    "rle_uncompressed": "annotations with an uncompressed RLE",
}


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


@dataclasses.dataclass
class Report:
    """What was found in a split and what became of it.

    Attributes:
      split: its name.
      num_images: images kept.
      num_objects: objects kept that are no crowd; `num_masks` of them have a mask.
      num_masks: objects with a mask.
      num_crowds: crowd regions kept.
      counts: number of cases of each reason of `REASONS` that occurred.
      examples: up to `NUM_EXAMPLES` ids for each.
      class_masks: for each class with masks their number, and how many of them are just a rectangle.
    """

    split: str
    num_images: int = 0
    num_objects: int = 0
    num_masks: int = 0
    num_crowds: int = 0
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    class_masks: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def add(self, reason: str, example: int) -> None:
        """Count one case of a reason, the image or annotation with id `example`."""
        if reason not in REASONS:
            raise ValueError(f"unknown reason {reason!r}; expected one of {sorted(REASONS)}")
        self.counts[reason] = self.counts.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < NUM_EXAMPLES:
            examples.append(example)

    def add_mask(self, category: str, is_rectangle: bool) -> None:
        """Count the mask of an object of a class."""
        numbers = self.class_masks.setdefault(category, [0, 0])
        numbers[0] += 1
        numbers[1] += is_rectangle

    def to_json(self) -> dict:
        """Return what `report_<split>.json` holds."""
        reasons = {
            reason: {"meaning": meaning, "count": self.counts[reason], "examples": self.examples[reason]}
            for reason, meaning in REASONS.items()
            if reason in self.counts
        }
        kept = {name: getattr(self, name) for name in ("num_images", "num_objects", "num_masks", "num_crowds")}
        masks = {name: {"masks": total, "rectangles": part} for name, (total, part) in self.class_masks.items()}
        return {"split": self.split, **kept, "reasons": reasons, "classes": masks}

    def table(self) -> str:
        """Return the report as text, one line for each reason that occurred."""
        lines = [
            f"split {self.split}: {self.num_images} images, {self.num_objects} objects ({self.num_masks} with mask), "
            f"{self.num_crowds} crowd regions"
        ]
        for reason, meaning in REASONS.items():
            if reason in self.counts:
                ids = ", ".join(map(str, self.examples[reason]))
                more = ", ..." if self.counts[reason] > len(self.examples[reason]) else ""
                lines.append(f"{self.counts[reason]:>9}  {meaning} [{reason}; ids {ids}{more}]")
                if reason == "mask_rectangle":
                    lines.append(" " * 11 + f"by class: {self._rectangles()}")
        if self.num_objects == 0:
            crowds = ", all annotations are crowd regions" if self.num_crowds else ""
            lines.append(f"  warning  there is no object to learn from{crowds}")
        return "\n".join(lines)

    def _rectangles(self) -> str:
        classes = [(part / total, name, part, total) for name, (total, part) in self.class_masks.items() if part]
        return errors.some(
            (
                f"{name} {part} of {total}"
                for _, name, part, total in sorted(classes, key=lambda row: (-row[0], row[1]))
            ),
            most=10,
        )


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

    of_image: dict[int, list[dict]] = {image["id"]: [] for image in images}
    for annotation in annotations:
        of_image[annotation["image_id"]].append(annotation)
    header = {key: content[key] for key in ("info", "licenses", "categories") if key in content}
    return Instances(categories, images, of_image, header)


def is_box(box: object) -> TypeGuard[list[float]]:
    """Return whether a value out of somebody's file is a box: a list of 4 finite numbers."""
    return isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))


def check_objects(
    annotations: Sequence[dict], size: tuple[int, int], categories: Categories, report: Report
) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Check the annotations of one image and bring them into the form of a record.

    Args:
      annotations: of one image, as `read_instances` leaves them.
      size: height and width of the image.
      categories: the bijection between labels and category ids.
      report: takes the counts.

    Returns:
      objects: the arrays of `records.Record` by name, and `annotation_ids` int64 `n`.
      ground_truth: the annotations kept, fit for evaluation: boxes and masks as they were, but invalid polygons and
        masks removed (`segmentation` is `[]` where nothing is left), `bbox` and `area` filled in or repaired.
    """
    label_of_id = categories.label_of_id()
    boxes, labels, masks, frames, has_mask, is_crowd, ids = [], [], [], [], [], [], []
    ground_truth = []
    for annotation in annotations:

        def count(reason: str, annotation_id: int = annotation["id"]) -> None:
            report.add(reason, annotation_id)

        # Of an annotation that is dropped for its box nothing more is counted.
        mask_reasons: list[str] = []
        segmentation, mask, frame, areas = _check_segmentation(
            annotation.get("segmentation"), size, mask_reasons.append
        )
        given = annotation.get("bbox")
        if given is None and mask is not None:
            count("box_filled")
            given = [*frame[:2].tolist(), *(frame[2:] - frame[:2]).tolist()]
        box = _check_box(given, size, count)
        if given is None or box is None:
            continue
        for reason in mask_reasons:
            count(reason)
        crowd = bool(annotation["iscrowd"])
        area = _check_area(annotation.get("area"), given, box, areas, crowd, count)
        # The mask of a crowd is of many objects: never one to train on.
        if crowd:
            mask = None
        if mask is not None:
            iou = _box_iou(_clip(frame, size), box)
            if iou < 0.5:
                count("mask_box_differ")
            is_rectangle = bool(iou >= 0.9 and unpack_bitmap(mask).mean() >= _RECTANGLE_SHARE)
            if is_rectangle:
                count("mask_rectangle")
            report.add_mask(categories.names[label_of_id[annotation["category_id"]] - 1], is_rectangle)

        boxes.append(box)
        labels.append(label_of_id[annotation["category_id"]])
        masks.append(np.zeros(PACKED_SHAPE, np.uint8) if mask is None else mask)
        frames.append(box if mask is None else frame)
        has_mask.append(mask is not None)
        is_crowd.append(crowd)
        ids.append(annotation["id"])
        checked = {"bbox": given, "iscrowd": int(crowd), "area": area, "segmentation": segmentation}
        ground_truth.append({**annotation, **checked})
    objects: dict[str, np.ndarray] = {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "labels": np.array(labels, np.int32),
        "masks": np.array(masks, np.uint8).reshape(-1, *PACKED_SHAPE),
        "mask_frames": np.array(frames, np.float32).reshape(-1, 4),
        "has_mask": np.array(has_mask, bool),
        "is_crowd": np.array(is_crowd, bool),
        "annotation_ids": np.array(ids, np.int64),
    }
    return objects, ground_truth


def decode_runs(counts: str | Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Decode the counts of an RLE into a bool bitmap `h w`.

    pycocotools reads past the end of corrupt counts, so this neither trusts them nor uses it.

    Args:
      counts: compressed (text) or not (numbers): lengths of runs of 0, 1, 0, ... down the columns.
      size: height and width.

    Raises:
      ValueError: the counts are corrupt or do not add up to the size.
    """
    runs = _decompress_counts(counts) if isinstance(counts, str) else counts
    if not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError("RLE counts must be whole numbers of at least 0")
    height, width = size
    if sum(runs) != height * width:
        raise ValueError(f"RLE counts add up to {sum(runs)}; expected {height} x {width} = {height * width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _decompress_counts(counts: str) -> list[int]:
    # The format of rleToString in the COCO API: base 32 from the least digit on, 0x20 says that more digits follow,
    # 0x10 of the last is the sign; from the fourth number on, the difference to the number two places before.
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            raise ValueError(f"compressed RLE counts contain {character!r}")
        if shift > 60:
            raise ValueError("compressed RLE counts contain a number of more than 64 bits")
        value |= (digit & 0x1F) << shift
        shift += 5
        if digit & 0x20:
            continue
        if digit & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError("compressed RLE counts end in the middle of a number")
    return runs


def read_json(path: Path) -> Any:
    """Read a JSON file that somebody else wrote.

    Raises:
      OSError: it cannot be read.
      ValueError: it is no regular file, too large or not valid JSON; the message names it.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: expected a JSON file; it is a folder, a device, a pipe or a socket")
    if status.st_size > _LARGEST_JSON_BYTES:
        raise ValueError(
            f"{path}: the file has {status.st_size / 2**30:.1f} GiB; expected at most "
            f"{_LARGEST_JSON_BYTES / 2**30:.0f} GiB of JSON"
        )
    try:
        # Bytes, not text: json finds out the encoding itself, a byte order mark included.
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError(f"{path}: not usable JSON: nested too deeply") from error
    # Also a number of more digits than Python takes.
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error


def _read_instances_json(path: Path) -> dict:
    content = read_json(path)
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
        raise ValueError(f"{path}: ids of {key} must be unique; {len(repeated)} are repeated: {_some(repeated)}")


def _check_image_entry(image: dict, path: Path, allow_outside: bool) -> None:
    where = f"{path}: image {image['id']}"
    if "file_name" not in image and isinstance(image.get("coco_url"), str):
        # LVIS names its images by URL alone: .../train2017/000000391895.jpg, under the folder of all COCO images.
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
                f"{_some(sorted({annotation[key] for annotation in unknown}))}, "
                f"for example in the annotations {_some([annotation['id'] for annotation in unknown])}; "
                f"known are {_some(known)}. Use drop_unknown to leave them out"
            )
        for annotation in unknown:
            report.add("unknown_category" if key == "category_id" else "unknown_image", annotation["id"])
        annotations = [annotation for annotation in annotations if annotation[key] in known_set]
    return annotations


def _check_box_format(annotations: list[dict], images: list[dict], path: Path) -> None:
    size_of_image = {image["id"]: (image["width"], image["height"]) for image in images if image.get("width")}
    pairs = [
        (annotation["bbox"], size_of_image[annotation["image_id"]])
        for annotation in annotations
        if annotation["image_id"] in size_of_image and is_box(annotation.get("bbox"))
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
    clipped = _clip(corners, size)
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
    """Return the area of an annotation: as given where it can be that of the mask, or of any mask in the box.

    Args:
      area: as given.
      given: the box as given: x, y, width, height.
      box: the clipped box.
      mask: smallest and largest of the areas that the mask has by one formula or another, or None.
      crowd: whether it is a crowd region, whose area COCO gives by another rule, and which is ignored at any size.
      count: takes the reasons.
    """
    computed = _area(box) if mask is None else mask[1]
    if not _is_number(area) or area < 0:
        count("area_filled")
        return computed
    if crowd:
        return float(area)
    smallest, largest = mask or (0.0, given[2] * given[3])
    # COCO's areas are those of the polygons, within 2 % of ours; one that counts pixels is off by part of the outline.
    slack = 0.1 * largest + given[2] + given[3]
    if area == 0 or not smallest - slack <= area <= largest + slack:
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
    num_pixels = float(coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(polygons, *size))))
    if not mask.any() or num_pixels == 0:
        count("mask_empty")
        return nothing
    return polygons, mask, frame, (num_pixels, _area(frame) * float(unpack_bitmap(mask).mean()))


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
        return decode_runs(counts, size)
    except ValueError:
        count("rle_corrupt")
        return None


def _is_file_name(name: str) -> bool:
    try:
        return bool(name.encode()) and "\0" not in name
    except UnicodeEncodeError:
        # Half of a surrogate pair, which JSON can write.
        return False


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and -_LARGEST_ID <= value <= _LARGEST_ID


def _is_number(value: object) -> TypeGuard[int | float]:
    # Neither holds for NaN.
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST


def _is_polygon(polygon: object) -> bool:
    return isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 and all(map(_is_number, polygon))


def _clip(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    return np.clip(box, 0, [width, height, width, height]).astype(np.float32)


def _area(box: np.ndarray) -> float:
    return float(np.prod(np.maximum(box[2:] - box[:2], 0)))


def _box_iou(first: np.ndarray, second: np.ndarray) -> float:
    shared = _area(np.concatenate([np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])]))
    return shared / (_area(first) + _area(second) - shared)


def _short(value: object) -> str:
    """Return a value out of somebody's file in so many letters as a line of text bears."""
    return _SHORT.repr(value)


def _some(ids: Iterable[int]) -> str:
    listed = list(ids)
    return ", ".join(map(str, listed[:NUM_EXAMPLES])) + (", ..." if len(listed) > NUM_EXAMPLES else "")
