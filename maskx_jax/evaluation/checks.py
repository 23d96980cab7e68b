"""Checks a ground truth and results before they are scored, so that no matcher meets what it cannot handle.

Every error is a ValueError of one line that names the entry, what was got and what was expected. The coding of masks
is left to hotcoco, which checks each run; pycocotools and faster-coco-eval read and write past the end of corrupt ones.
"""

import collections
import math
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from maskx_jax.coco import areas, rle
from maskx_jax.coco.keypoints import Skeleton, skeletons_of

KINDS = ("bbox", "segm")
# Numbers that a matcher can multiply are smaller.
_LARGEST = 1e15
# What a results entry has for each kind.
FIELD_OF_KIND = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


def as_id(value: Any) -> Any:
    """Return an id as an int, also where a file has it as text or as 7.0; None if it is no whole number."""
    if isinstance(value, str) and len(value) <= 40 and value.lstrip("-").isdecimal():
        return int(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    try:
        return int(value) if value == int(value) else None
    except (TypeError, ValueError, OverflowError):
        return None


def check_ground_truth(ground_truth: Mapping, kinds: Sequence[str] = KINDS) -> None:
    """Check that a COCO instances dict can be scored against: its structure, ids, sizes and boxes, and mask structure.

    Args:
      ground_truth: the dict.
      kinds: what will be scored, of "bbox", "segm" and "keypoints".

    Raises:
      ValueError: at the first entry that is wrong.
    """
    if not isinstance(ground_truth, Mapping):
        raise ValueError(f"ground truth: got a {type(ground_truth).__name__}; expected a COCO instances dict")
    for key in ("images", "categories", "annotations"):
        entries = ground_truth.get(key)
        if not isinstance(entries, list | tuple):
            raise ValueError(f"ground truth: {key} is {reprlib.repr(entries)}; expected a list")
        for index, entry in enumerate(entries):
            if not isinstance(entry, Mapping):
                raise ValueError(f"ground truth, {key}[{index}]: got {reprlib.repr(entry)}; expected a dict")
            if key != "annotations" and as_id(entry.get("id")) is None:
                raise ValueError(
                    f"ground truth, {key}[{index}]: id {reprlib.repr(entry.get('id'))}; expected a whole number"
                )
        if key != "annotations" and (doubled := _doubled(as_id(entry["id"]) for entry in entries)):
            raise ValueError(f"ground truth: {len(doubled)} ids of {key} are repeated, the first {doubled[:5]}")
    for index, category in enumerate(ground_truth["categories"]):
        if not isinstance(category.get("name"), str):
            raise ValueError(
                f"ground truth, categories[{index}]: name {reprlib.repr(category.get('name'))}; expected text"
            )
    if doubled := _doubled(category["name"] for category in ground_truth["categories"]):
        raise ValueError(f"ground truth: {len(doubled)} names of categories are repeated, the first {doubled[:5]}")
    sizes = image_sizes(ground_truth)
    for index, image in enumerate(ground_truth["images"]):
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            ids = image.get(key, ())
            if not isinstance(ids, list | tuple) or any(as_id(value) is None for value in ids):
                raise ValueError(f"ground truth, images[{index}]: {key} {reprlib.repr(ids)}; expected a list of ids")
        if "segm" in kinds and not rle.is_size(sizes[as_id(image["id"])]):
            raise ValueError(
                f"ground truth, images[{index}]: height {reprlib.repr(image.get('height'))} and width "
                f"{reprlib.repr(image.get('width'))}; expected whole numbers of pixels, fewer than 2**32 in all"
            )
    category_ids = {as_id(category["id"]) for category in ground_truth["categories"]}
    skeletons = {}
    if "keypoints" in kinds:
        keypoint_sigmas(ground_truth)
        skeletons = _skeletons(ground_truth)
    for index, annotation in enumerate(ground_truth["annotations"]):
        where = f"ground truth, annotations[{index}]"
        if (annotation_id := annotation.get("id")) is not None:
            where += f", id {reprlib.repr(annotation_id)}"
        try:
            _check_annotation(annotation, sizes, category_ids, kinds)
            if annotation.get("keypoints") and (skeleton := skeletons.get(as_id(annotation["category_id"]))):
                _check_keypoints(annotation["keypoints"], skeleton)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if "segm" in kinds:
        rle.check_totals(ground_truth["annotations"], "ground truth, annotations")


def check_results(results: Iterable[dict], ground_truth: Mapping, kinds: Sequence[str] = KINDS) -> None:
    """Check that results can be scored against a sound ground truth. An empty iterable can: it scores zero.

    Args:
      results: the entries.
      ground_truth: a COCO instances dict; only its `images` and `categories` are read.
      kinds: what is to be scored, of "bbox", "segm" and "keypoints". Results of a class without keypoints need none.

    Raises:
      ValueError: at the first entry that is wrong; one line with its index, what was got and what was expected.
    """
    if unknown := [kind for kind in kinds if kind not in FIELD_OF_KIND]:
        raise ValueError(f"unknown kinds {unknown}; expected some of {list(FIELD_OF_KIND)}")
    sizes = image_sizes(ground_truth)
    category_ids = {as_id(category["id"]) for category in ground_truth["categories"]}
    needed = {"image_id", "category_id", "score", *(FIELD_OF_KIND[kind] for kind in kinds if kind != "keypoints")}
    skeletons = _skeletons(ground_truth) if "keypoints" in kinds else {}
    for index, result in enumerate(results):
        try:
            _check_result(result, needed, sizes, category_ids)
            if skeleton := skeletons.get(result["category_id"]):
                _check_keypoints(result.get("keypoints"), skeleton)
        except ValueError as error:
            raise ValueError(f"results[{index}]: {error}") from None


def keypoint_sigmas(ground_truth: Mapping) -> tuple[float, ...]:
    """Return the constants of OKS of the keypoints of a COCO instances dict.

    Raises:
      ValueError: no class has keypoints, what one says of them is wrong, two differ, or they have no sigmas.
    """
    skeletons = _skeletons(ground_truth)
    if not skeletons:
        raise ValueError("ground truth: no category has keypoints; expected the names of one's under 'keypoints'")
    skeleton = next(iter(skeletons.values()))
    if skeleton.sigmas is None:
        raise ValueError(
            f"ground truth: the keypoints {skeleton.names[0]!r}, ... have no sigmas, without which OKS is not defined; "
            f"expected {len(skeleton.names)} numbers as 'keypoint_sigmas' of their categories"
        )
    return skeleton.sigmas


def believed_area(annotation: Mapping, num_pixels: int) -> tuple[float, bool]:
    """Return the area of an object, and whether it is the one that the annotation gives; see `coco.areas`.

    Args:
      annotation: with a sound `bbox`.
      num_pixels: of the mask; 0 for an object without.
    """
    *_, width, height = annotation["bbox"]
    given: Any = annotation.get("area")
    if areas.is_plausible(given, width * height, [num_pixels] if num_pixels else []):
        return float(given), True
    return float(num_pixels or width * height), False


def image_sizes(ground_truth: Mapping) -> dict[int, list]:
    """Return `[height, width]` by image id."""
    return {as_id(image["id"]): [image.get("height"), image.get("width")] for image in ground_truth["images"]}


def are_finite(values: Sequence[Any]) -> bool:
    """Return whether all are finite numbers."""
    try:
        return all(map(math.isfinite, values))
    except (TypeError, OverflowError):  # One is no number, or beyond float64.
        return False


def is_box(box: Any) -> bool:
    """Return whether this is `[x, y, width, height]` with numbers that a matcher can multiply."""
    return (
        isinstance(box, (list, tuple))
        and len(box) == 4
        and are_finite(box)
        and box[2] >= 0
        and box[3] >= 0
        and max(map(abs, box)) < _LARGEST
    )


def _check_annotation(
    annotation: Mapping, sizes: Mapping[int, list], category_ids: Collection[int | None], kinds: Sequence[str]
) -> None:
    image_id, category_id = as_id(annotation.get("image_id")), as_id(annotation.get("category_id"))
    if image_id not in sizes or category_id not in category_ids:
        raise ValueError(
            f"image_id {reprlib.repr(annotation.get('image_id'))} or category_id "
            f"{reprlib.repr(annotation.get('category_id'))} is unknown to the file"
        )
    if not is_box(annotation.get("bbox")):
        raise ValueError(
            f"bbox {reprlib.repr(annotation.get('bbox'))}; expected [x, y, width, height], finite, sides >= 0"
        )
    for key in ("iscrowd", "ignore"):
        if annotation.get(key) not in (0, 1, None):
            raise ValueError(f"{key} {reprlib.repr(annotation[key])}; expected 0 or 1")
    if "segm" in kinds:
        check_segmentation(annotation.get("segmentation"), sizes[image_id])


def check_segmentation(segmentation: Any, size: list) -> None:
    """Check the structure of an annotation's mask, which may be missing.

    Args:
      segmentation: polygons or run lengths; how these are compressed is left to `rle.check_totals`.
      size: height and width of the image.

    Raises:
      ValueError: it is neither, or of another size.
    """
    if segmentation is None:
        return
    if isinstance(segmentation, Mapping):
        if segmentation.get("size") not in (size, tuple(size)):
            raise ValueError(
                f"segmentation of size {reprlib.repr(segmentation.get('size'))}; expected the image's {size}"
            )
        counts = segmentation.get("counts")
        if isinstance(counts, str | bytes):
            return  # See `rle.check_totals`.
        if not (isinstance(counts, list) and all(isinstance(run, int) and run >= 0 for run in counts)):
            raise ValueError(f"counts {reprlib.repr(counts)} of segmentation; expected text or whole numbers >= 0")
        if counts:
            rle.check_total(sum(counts), size)
        return
    if not isinstance(segmentation, list | tuple):
        raise ValueError(f"segmentation {reprlib.repr(segmentation)}; expected a list of polygons or run lengths")
    for polygon in segmentation:
        if not isinstance(polygon, list | tuple):
            raise ValueError(
                f"segmentation {reprlib.repr(segmentation)}; expected a list of polygons, each [x1, y1, x2, y2, ...]"
            )
        if not are_finite(polygon):
            raise ValueError(f"polygon {reprlib.repr(polygon)}; expected finite numbers [x1, y1, x2, y2, ...]")
        if len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers; expected pairs [x1, y1, x2, y2, ...]")


def _skeletons(ground_truth: Mapping) -> dict[Any, Skeleton]:
    try:
        skeletons = skeletons_of(ground_truth["categories"])
    except ValueError as error:
        raise ValueError(f"ground truth: {error}") from None
    return {as_id(category_id): skeleton for category_id, skeleton in skeletons.items()}


def _check_keypoints(keypoints: Any, skeleton: Skeleton) -> None:
    count = 3 * len(skeleton.names)
    is_sound = isinstance(keypoints, list | tuple) and len(keypoints) == count and are_finite(keypoints)
    if not is_sound or max(map(abs, keypoints)) >= _LARGEST:
        number = f", {len(keypoints)} values" if isinstance(keypoints, list | tuple) else ""
        raise ValueError(
            f"keypoints {reprlib.repr(keypoints)}{number}; expected {count} finite numbers [x1, y1, v1, ...]"
        )


def _check_result(result: dict, needed: set[str], sizes: Mapping[int, list], category_ids: Collection) -> None:
    if not isinstance(result, dict):
        raise ValueError(f"got a {type(result).__name__}; expected a dict with {sorted(needed)}")
    if not needed <= result.keys():
        raise ValueError(f"missing {sorted(needed - result.keys())}; it has {sorted(map(str, result))}")
    image_id, category_id, score = result["image_id"], result["category_id"], result["score"]
    if not _is_among(image_id, sizes):
        raise ValueError(f"image_id {reprlib.repr(image_id)} is not in the ground truth: {_summary(sizes, 'image')}")
    if not _is_among(category_id, category_ids):
        raise ValueError(
            f"category_id {reprlib.repr(category_id)} is not in the ground truth: {_summary(category_ids, 'category')} "
            "(a label 1..C where the dataset's id was expected?)"
        )
    if not are_finite((score,)):
        raise ValueError(f"image_id {image_id}: score {reprlib.repr(score)}; expected a finite number")
    if "bbox" in needed and not is_box(result["bbox"]):
        raise ValueError(
            f"image_id {image_id}: bbox {reprlib.repr(result['bbox'])}; expected [x, y, width, height], finite, "
            "sides >= 0"
        )
    if "segmentation" in needed:
        encoding = result["segmentation"]
        if not (isinstance(encoding, dict) and isinstance(encoding.get("counts"), (str, bytes))):
            raise ValueError(
                f"image_id {image_id}: segmentation {reprlib.repr(encoding)}; expected a compressed RLE "
                "{'size': [height, width], 'counts': str}"
            )
        if encoding.get("size") not in (sizes[image_id], tuple(sizes[image_id])):
            raise ValueError(
                f"image_id {image_id}: segmentation of size {reprlib.repr(encoding.get('size'))}; expected the image's "
                f"[height, width] {sizes[image_id]}"
            )


def _is_among(value: Any, known: Collection) -> bool:
    try:
        return value in known
    except TypeError:  # An unhashable value, such as a list.
        return False


def _doubled(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in collections.Counter(values).items() if count > 1]


def _summary(ids: Iterable[Any], what: str) -> str:
    ordered = sorted(ids)
    examples = ", ".join(map(str, ordered[:3])) + (", ..." if len(ordered) > 3 else "")
    return f"{len(ordered)} {what} ids ({examples})"
