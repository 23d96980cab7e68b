"""The objects of a file of annotations that have boxes and no masks."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskx_jax.coco.boxes import clip
from maskx_jax.data.coco.annotations import Instances, is_box
from maskx_jax.data.coco.images import UnreadableImageError, check_header, read_image
from maskx_jax.data.coco.objects import is_usable_mask
from maskx_jax.data.coco.predicted import is_predicted
from maskx_jax.labelling.report import Report


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image with the objects in it that have only boxes.

    Attributes:
      image_id: the dataset's.
      file_name: below the folder of images.
      size: height and width.
      annotation_ids: of the objects; `category_ids` are their classes.
      category_ids: the dataset's.
      boxes: float64 `n 4`, xyxy, clipped to the image.
    """

    image_id: int
    file_name: str
    size: tuple[int, int]
    annotation_ids: tuple[int, ...]
    category_ids: tuple[int, ...]
    boxes: np.ndarray


def find(
    instances: Instances,
    folder: Path | None,
    report: Report,
    *,
    skip_bad_images: bool = False,
    kept_ids: Collection[int] | None = None,
) -> list[Picture]:
    """Return the images that have objects with only boxes.

    A predicted mask counts for none: it is predicted anew. So does a segmentation that `prepare` makes no mask of.

    Args:
      instances: the annotations.
      folder: of the images, whose headers are looked at; None where there are none.
      report: counts the objects.
      skip_bad_images: count the objects of images that cannot be read, instead of stopping.
      kept_ids: categories whose masks are known; None for all. Objects of the others count as having only boxes.

    Raises:
      UnreadableImageError: an image is missing or of another size, as far as it shows without its pixels.
      ValueError: the size of an image is not given, and neither is a folder.
    """
    name_of_id = dict(zip(instances.categories.ids, instances.categories.names, strict=True))
    pictures = []
    for image in instances.images:
        objects = [a for a in instances.annotations[image["id"]] if not a["iscrowd"]]
        report.num_objects += len(objects)
        size = _size_if_known(image, folder) if objects else None
        objects = [a for a in objects if not _has_known_mask(a, size, kept_ids)]
        for annotation in objects:
            report.add_object(annotation["id"], name_of_id[annotation["category_id"]])
            report.num_predicted_before += is_predicted(annotation)
            is_drawn = _has_known_mask(annotation, size)
            report.num_hidden += is_drawn
            report.num_unusable += _has_segmentation(annotation) and not is_drawn
        if not objects:
            continue
        try:
            size = _size(image, folder)
        except UnreadableImageError as error:
            if not skip_bad_images:
                raise UnreadableImageError(f"image {image['id']}: {error}. Use skip_bad_images to go on") from error
            report.leave("image_skipped", [a["id"] for a in objects])
            continue
        picture = _picture(image, size, objects, report)
        if picture.annotation_ids:
            pictures.append(picture)
    return pictures


def _has_known_mask(
    annotation: Mapping[str, Any], size: tuple[int, int] | None, kept_ids: Collection[int] | None = None
) -> bool:
    if kept_ids is not None and annotation["category_id"] not in kept_ids:
        return False
    # What cannot be judged is not thrown away.
    return _has_segmentation(annotation) and (size is None or is_usable_mask(annotation["segmentation"], size))


def _has_segmentation(annotation: Mapping[str, Any]) -> bool:
    return annotation.get("segmentation") not in (None, []) and not is_predicted(annotation)


def _size_if_known(image: Mapping[str, Any], folder: Path | None) -> tuple[int, int] | None:
    # No file is looked at for its size alone where the annotations say it.
    if image.get("height") is not None:
        return image["height"], image["width"]
    try:
        return _size(image, folder)
    except ValueError:
        return None


def _size(image: Mapping[str, Any], folder: Path | None) -> tuple[int, int]:
    if image.get("height") is not None:
        size = image["height"], image["width"]
        if folder is not None:
            check_header(folder / image["file_name"], size)
        return size
    if folder is None:
        raise ValueError(f"image {image['id']} has no height and width; expected them, or the folder of the images")
    return read_image(folder / image["file_name"], None)[1]


def _picture(
    image: Mapping[str, Any], size: tuple[int, int], objects: Sequence[Mapping[str, Any]], report: Report
) -> Picture:
    kept, boxes = [], []
    for annotation in objects:
        given = annotation.get("bbox")
        box = _corners(given, size) if is_box(given) else np.zeros(4)
        if (box[2:] > box[:2]).all():
            kept.append(annotation)
            boxes.append(box)
        else:
            report.leave("box_unusable", [annotation["id"]])
    return Picture(
        image["id"],
        image["file_name"],
        size,
        tuple(annotation["id"] for annotation in kept),
        tuple(annotation["category_id"] for annotation in kept),
        np.array(boxes, np.float64).reshape(-1, 4),
    )


def _corners(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    x, y, width, height = np.array(box, np.float64)
    return clip(np.array([x, y, x + width, y + height]), size)
