"""Predicted masks among annotations."""

from collections.abc import Collection, Mapping
from typing import Any

from maskx_jax.coco import rle
from maskx_jax.coco.polygons import outlines
from maskx_jax.data.coco.predicted import FIELD
from maskx_jax.labelling.quality import ObjectMask

SEGMENTATIONS = ("rle", "polygons")


def add_masks(
    content: dict[str, Any],
    boxes_only: Collection[int],
    masks: Mapping[int, ObjectMask],
    source: str,
    segmentation: str = "rle",
) -> None:
    """Give annotations of a COCO file their predicted masks, in place; all others stay as they are.

    Only `segmentation` changes, and the field `predicted.FIELD` comes to it.

    Args:
      content: of the file.
      boxes_only: ids of the annotations that count as having only boxes. A mask that one has all the same, such as an
        earlier run's, is taken away where none takes its place.
      masks: of some of these, by annotation id.
      source: where the masks come from.
      segmentation: "rle", compressed run lengths, or "polygons", outlines for tools that edit these; holes are filled.
    """
    for annotation in content["annotations"]:
        mask = masks.get(annotation["id"])
        if mask is not None:
            encoded = mask.segmentation
            annotation["segmentation"] = outlines(rle.decode(encoded)) if segmentation == "polygons" else encoded
            annotation[FIELD] = {
                "quality": round(mask.quality, 4),
                "certainty": round(mask.certainty, 4),
                "box_iou": round(mask.box_iou, 4),
                "source": source,
            }
        elif annotation["id"] in boxes_only and (annotation.get("segmentation") or FIELD in annotation):
            annotation["segmentation"] = []
            annotation.pop(FIELD, None)
