"""Detections as COCO results: making the entries, the JSON file, and the checks before they are scored."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from maskx_jax import files
from maskx_jax.evaluation import paste_masks

KINDS = ("bbox", "segm")
_FIELD_OF_KIND = {"bbox": "bbox", "segm": "segmentation"}


def detections_to_results(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    valid: np.ndarray,
    masks: np.ndarray | None = None,
    *,
    image_id: int,
    image_size: tuple[int, int],
    scale: float,
    id_of_label: np.ndarray,
    mask_threshold: float = 0.5,
    grid: paste_masks.Grid = "continuous",
) -> list[dict]:
    """Return the COCO results entries of one image.

    Boxes are divided by `scale` and clipped to the original image; a detection of which nothing is left is no entry.
    Its mask is pasted into the box as it was before clipping, for which it was predicted.

    Args:
      boxes: `d 4`, xyxy in pixels of the canvas.
      scores: `d`, probabilities.
      labels: `d`, 1..C.
      valid: `d` bool.
      masks: `d m m`, probabilities, or None for a detector of boxes: the entries then have no `segmentation`.
      image_id: the dataset's id.
      image_size: height and width of the original image.
      scale: canvas pixels per pixel of the original image.
      id_of_label: `C + 1`, the category id of each label; entry 0 is background.
      mask_threshold: see `paste_masks.paste_mask`.
      grid: see `paste_masks.paste_mask`.

    Raises:
      ValueError: a valid detection has a label outside of 1..C, or a box or score that is not finite.
    """
    height, width = (int(side) for side in image_size)
    if not scale > 0:
        raise ValueError(f"image {image_id}: got scale {scale}; expected a positive number")
    results = []
    for index in np.flatnonzero(valid):
        box = np.asarray(boxes[index], np.float64) / float(scale)
        score, label = float(scores[index]), int(labels[index])
        if not (np.isfinite(box).all() and math.isfinite(score)):
            raise ValueError(f"image {image_id}, detection {index}: not finite: box {box.tolist()}, score {score}")
        if not 1 <= label < len(id_of_label):
            raise ValueError(f"image {image_id}, detection {index}: label {label} is not in 1..{len(id_of_label) - 1}")
        x1, x2 = np.clip(box[0::2], 0, width)
        y1, y2 = np.clip(box[1::2], 0, height)
        if x2 <= x1 or y2 <= y1:
            continue
        result = {
            "image_id": int(image_id),
            "category_id": int(id_of_label[label]),
            "bbox": [round(float(value), 3) for value in (x1, y1, x2 - x1, y2 - y1)],
            # The shortest digits that give back the float32: rounding would make ties, and ties change AP.
            "score": float(str(np.float32(score))),
        }
        if masks is not None:
            result["segmentation"] = paste_masks.paste_and_encode(
                masks[index], box, height, width, mask_threshold, grid
            )
        results.append(result)
    return results


def write_results(path: str | os.PathLike, results: Sequence[dict]) -> None:
    """Write a COCO results file. An interrupted write leaves no half a file under the name."""
    files.write_json(path, list(results), indent=None, separators=(",", ":"))


def read_results(path: str | os.PathLike) -> list[dict]:
    """Read a COCO results file.

    Raises:
      ValueError: it is not JSON, or not a list of entries.
    """
    with open(path) as file:
        try:
            results = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(results, list):
        keys = f" with keys {sorted(results)[:5]}" if isinstance(results, dict) else ""
        raise ValueError(f"{path}: got a {type(results).__name__}{keys}; expected a list of COCO results entries")
    return results


def check_results(results: Sequence[dict], ground_truth: Mapping, kinds: Sequence[str] = KINDS) -> None:
    """Check that results can be scored against a ground truth. An empty list can: it scores zero.

    Args:
      results: the entries.
      ground_truth: a COCO instances dict; its `images` and `categories` are looked at.
      kinds: what is to be scored, of "bbox" and "segm".

    Raises:
      ValueError: at the first entry that is wrong; one line with its index, what was got and what was expected.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"unknown kinds {unknown}; expected some of {list(KINDS)}")
    size_of_image = {int(image["id"]): [image.get("height"), image.get("width")] for image in ground_truth["images"]}
    category_ids = {category["id"] for category in ground_truth["categories"]}
    needed = {"image_id", "category_id", "score", *(_FIELD_OF_KIND[kind] for kind in kinds)}
    for index, result in enumerate(results):
        try:
            _check_result(result, needed, size_of_image, category_ids)
        except ValueError as error:
            raise ValueError(f"results[{index}]: {error}") from None


def _check_result(result: dict, needed: set[str], size_of_image: dict[int, list], category_ids: set[int]) -> None:
    if not isinstance(result, dict):
        raise ValueError(f"got a {type(result).__name__}; expected a dict with {sorted(needed)}")
    if not needed <= result.keys():
        raise ValueError(f"missing {sorted(needed - result.keys())}; it has {sorted(result)}")
    image_id, category_id, score = result["image_id"], result["category_id"], result["score"]
    if image_id not in size_of_image:
        raise ValueError(f"image_id {image_id!r} is not in the ground truth: {_summary(size_of_image, 'image')}")
    if category_id not in category_ids:
        raise ValueError(
            f"category_id {category_id!r} is not in the ground truth: {_summary(category_ids, 'category')} "
            "(a label 1..C where the dataset's id was expected?)"
        )
    if not _all_finite((score,)):
        raise ValueError(f"image_id {image_id}: score {score!r}; expected a finite number")
    if "bbox" in needed:
        box = result["bbox"]
        if not (isinstance(box, (list, tuple)) and len(box) == 4 and _all_finite(box) and box[2] >= 0 and box[3] >= 0):
            raise ValueError(f"image_id {image_id}: bbox {box!r}; expected [x, y, width, height], finite, sides >= 0")
    if "segmentation" in needed:
        encoding = result["segmentation"]
        if not (isinstance(encoding, dict) and isinstance(encoding.get("counts"), (str, bytes))):
            raise ValueError(
                f"image_id {image_id}: segmentation {str(encoding)[:40]!r}; expected a compressed RLE "
                "{'size': [height, width], 'counts': str}"
            )
        if list(encoding.get("size", [])) != size_of_image[image_id]:
            raise ValueError(
                f"image_id {image_id}: segmentation of size {encoding.get('size')}; expected the image's "
                f"[height, width] {size_of_image[image_id]}"
            )


def _all_finite(values: Sequence[Any]) -> bool:
    try:
        return all(map(math.isfinite, values))
    except TypeError:  # One is no number.
        return False


def _summary(ids: Iterable[int], what: str) -> str:
    ordered = sorted(ids)
    examples = ", ".join(map(str, ordered[:3])) + (", ..." if len(ordered) > 3 else "")
    return f"{len(ordered)} {what} ids ({examples})"
