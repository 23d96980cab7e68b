"""Masks of annotations that no person has drawn: how they are marked."""

from collections.abc import Mapping
from typing import Any

# The field of an annotation that holds `quality`, `certainty`, `box_iou` and `source` of its predicted mask. Tools that
# do not know it leave it out: a mask that a person has looked at comes back as any other.
FIELD = "predicted_mask"


def is_predicted(annotation: Mapping[str, Any]) -> bool:
    """Return whether the mask of an annotation is marked as predicted."""
    return bool(annotation.get(FIELD))


def without_prediction(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """Return an annotation as it was before its mask was predicted: with its box only."""
    return {name: value for name, value in annotation.items() if name != FIELD} | {"segmentation": []}
