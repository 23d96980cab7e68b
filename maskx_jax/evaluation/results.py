"""Detections as COCO results: making the entries, and the JSON file."""

import math
import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from maskx_jax import files
from maskx_jax.coco import rle
from maskx_jax.coco.boxes import clip
from maskx_jax.evaluation import keypoints, paste_masks

if TYPE_CHECKING:
    # It would bring flax and jax, which reading and scoring results do without.
    from maskx_jax.structures import Detections


def entries(
    found: "Detections",
    *,
    image_id: int,
    image_size: tuple[int, int],
    scale: float,
    id_of_label: np.ndarray,
    mask_threshold: float = 0.5,
    grid: paste_masks.Grid = "continuous",
    keypoint_grid: keypoints.Grid = "image",
    keypoint_score: keypoints.Score = "probability",
) -> list[dict]:
    """Return the COCO results entries of one image.

    Boxes are divided by `scale` and clipped to the original image; a detection of which nothing is left is no entry.
    Its mask is pasted into the box as it was before clipping, for which it was predicted; so are its keypoints found.

    Args:
      found: in pixels of the canvas, NumPy arrays without the axis of the batch. Where its masks are None, the entries
        have no `segmentation`; without keypoint maps they have no `keypoints`.
      image_id: the dataset's id.
      image_size: height and width of the original image.
      scale: canvas pixels per pixel of the original image.
      id_of_label: `C + 1`, the category id of each label; entry 0 is background.
      mask_threshold: see `paste_masks.paste_mask`.
      grid: see `paste_masks.paste_mask`.
      keypoint_grid: whether keypoints are found to a pixel of the original "image" (Detectron), or of the "canvas"
        (detectron2, torchvision); see `keypoints.decode`.
      keypoint_score: see `keypoints.decode`.

    Raises:
      ValueError: a valid detection has a label outside of 1..C, or a box, score, mask or map that is not finite.
    """
    height, width = (int(side) for side in image_size)
    keypoint_scale = scale if keypoint_grid == "canvas" else 1.0
    made = []
    for index, box, clipped in boxes_in_image(found, image_id, image_size, scale):
        where = f"image {image_id}, detection {index}"
        label = int(found.labels[index])
        if not 1 <= label < len(id_of_label):
            raise ValueError(f"{where}: label {label} is not in 1..{len(id_of_label) - 1}")
        encoded = None
        if found.masks is not None:
            mask = found.masks[index]
            if not np.isfinite(mask).all():
                raise ValueError(f"{where}: its mask is not finite")
            encoded = paste_masks.paste_and_encode(mask, box, height, width, mask_threshold, grid)
        points = None
        if found.keypoint_maps is not None:
            try:
                points = points_of(found.keypoint_maps[index], box, keypoint_scale, keypoint_score)
            except ValueError as error:
                raise ValueError(f"{where}: its keypoints: {error}") from None
        made.append(entry(image_id, int(id_of_label[label]), clipped, found.scores[index], encoded, points))
    return made


def points_of(maps: np.ndarray, box: np.ndarray, scale: float, score: keypoints.Score) -> np.ndarray:
    """Return the keypoints of one box, float32 `k 3` of (x, y, score), in continuous pixels of the box.

    Args:
      maps: `k m m`, of the box.
      box: `4`, xyxy.
      scale: pixels of the grid that a point is found on, per pixel of the box.
      score: see `keypoints.decode`.

    Raises: as `keypoints.decode`.
    """
    # In float32, as others compute: a side of 20 is not to become 20.000001, which takes one cell more.
    points = keypoints.decode(maps[None], np.asarray(box * scale, np.float32)[None], score)[0]
    points[:, :2] /= np.float32(scale)
    return points


def entry(
    image_id: int,
    category_id: int,
    box: Sequence[float],
    score: float,
    mask: dict | None,
    points: np.ndarray | None = None,
) -> dict:
    """Return one COCO results entry.

    Args:
      image_id: the dataset's id.
      category_id: likewise.
      box: x1 y1 x2 y2, in pixels of the image.
      score: of the detection, a float32.
      mask: compressed run-length encoding, or None.
      points: `k 3` of (x, y, score) in continuous pixels, or None. COCO's keypoints are numbers of pixels, whose
        centres lie half a pixel further.
    """
    x1, y1, x2, y2 = box
    made = {
        "image_id": int(image_id),
        "category_id": category_id,
        "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
        # The shortest digits that give back the float32: rounding would make ties, and ties change AP.
        "score": float(str(np.float32(score))),
    }
    if mask is not None:
        made["segmentation"] = mask
    if points is not None:
        moved = np.asarray(points, np.float64) - [0.5, 0.5, 0]
        made["keypoints"] = [round(value, 3) for value in moved.reshape(-1).tolist()]
    return made


def boxes_in_image(
    found: "Detections", image_id: int | str, image_size: tuple[int, int], scale: float
) -> Iterator[tuple[int, np.ndarray, list[float]]]:
    """Yield for each detection its index, its box in the original image, and what of the box lies inside the image.

    A detection of which nothing lies inside is left out. Arguments and errors are those of `entries`.
    """
    if not scale > 0:
        raise ValueError(f"image {image_id}: got scale {scale}; expected a positive number")
    for index in np.flatnonzero(found.valid).tolist():
        box = np.asarray(found.boxes[index], np.float64) / float(scale)
        score = float(found.scores[index])
        if not (np.isfinite(box).all() and math.isfinite(score)):
            raise ValueError(f"image {image_id}, detection {index}: not finite: box {box.tolist()}, score {score}")
        x1, y1, x2, y2 = clip(box, image_size).tolist()
        if x2 > x1 and y2 > y1:
            yield index, box, [x1, y1, x2, y2]


def encode(entries: Sequence[dict]) -> bytes:
    """Return the entries of one image as `EncodedResults` hold them."""
    # A third of the time that JSON takes.
    return pickle.dumps(entries, pickle.HIGHEST_PROTOCOL)


class EncodedResults:
    """COCO results entries of many images, decoded each time that they are gone through.

    As dicts they would take almost three times the memory.
    """

    def __init__(self, images: Iterable[bytes]) -> None:
        """Hold the entries of images.

        Args:
          images: each by `encode`.
        """
        self._images = list(images)

    def __iter__(self) -> Iterator[dict]:
        for image in self._images:
            yield from pickle.loads(image)


def write_results(path: str | os.PathLike, results: Iterable[dict]) -> None:
    """Write a COCO results file. An interrupted write leaves no half a file under the name."""
    files.write_json_list(path, results)


def read_results(path: str | os.PathLike) -> list[dict]:
    """Read a COCO results file.

    Raises:
      OSError: it cannot be read.
      ValueError: it is not JSON, not a list of entries, or has a mask whose runs do not fill its size.
    """
    results = files.read_json(path)
    if not isinstance(results, list):
        keys = f" with keys {sorted(results)[:5]}" if isinstance(results, dict) else ""
        raise ValueError(f"{path}: got a {type(results).__name__}{keys}; expected a list of COCO results entries")
    try:
        rle.check_totals(results)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return results
