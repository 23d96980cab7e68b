"""Masks of annotations that no person has drawn: how they are marked."""

from collections.abc import Mapping
from typing import Any

from maskx_jax.data.coco.annotations import is_number

# The field of an annotation that holds `quality`, `certainty`, `box_iou` and `source` of its predicted mask. Tools that
# do not know it leave it out: a mask that a person has looked at comes back as any other.
FIELD = "predicted_mask"


def is_predicted(annotation: Mapping[str, Any]) -> bool:
    """Return whether the mask of an annotation is marked as predicted."""
    return bool(annotation.get(FIELD))


def quality_of(annotation: Mapping[str, Any]) -> float | None:
    """Return how good a predicted mask is said to be, 0 to 1; None where it is not said so."""
    prediction = annotation[FIELD]
    quality = prediction.get("quality") if isinstance(prediction, Mapping) else None
    return float(quality) if is_number(quality) and 0 <= quality <= 1 else None


def without_prediction(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """Return an annotation as it was before its mask was predicted: with its box only."""
    return {name: value for name, value in annotation.items() if name != FIELD} | {"segmentation": []}
