"""Checks the keypoints of annotations and brings them into the form of a record.

Nothing is dropped silently: what is wrong is not labelled any more, and is counted as named in `report.REASONS`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from maskx_jax.coco.keypoints import Skeleton
from maskx_jax.data.coco.annotations import is_number
from maskx_jax.data.coco.report import Report


def check_keypoints(
    annotations: Sequence[dict], size: tuple[int, int], skeletons: Mapping[int, Skeleton], report: Report
) -> tuple[np.ndarray, list[dict]]:
    """Check the keypoints of the annotations of one image.

    Args:
      annotations: as `objects.check_objects` keeps them.
      size: height and width of the image.
      skeletons: by category id, as of `coco.keypoints.skeletons_of`; at least one.
      report: takes the counts.

    Returns:
      float32 `n k 3`: of each keypoint (x, y) in continuous pixels and COCO's visibility, zeros where it is not
      labelled; a crowd has none. And the annotations, fit for evaluation: `keypoints` as they were, but zeros for what
      is wrong or missing, and `num_keypoints` repaired.
    """
    number = len(next(iter(skeletons.values())).names)
    points = np.zeros((len(annotations), number, 3), np.float32)
    kept = []
    for row, annotation in enumerate(annotations):
        reasons: list[str] = []
        given = annotation.get("keypoints")
        flat = [0] * (3 * number)
        if annotation["category_id"] in skeletons and given:
            flat, reasons = read_keypoints(given, number, size)
        labelled = np.array(flat[2::3]) > 0
        if annotation["category_id"] in skeletons and not annotation["iscrowd"]:
            if not labelled.any():
                reasons.append("keypoints_missing")
            # By half a pixel from the number of a pixel to its centre; one on the border stays on it.
            moved = np.array(flat, np.float64).reshape(-1, 3) + np.array([0.5, 0.5, 0])
            points[row, labelled] = np.clip(moved, 0, (size[1], size[0], 2))[labelled]
        for reason in reasons:
            report.add(reason, annotation["id"])
        if given and not is_count_right(annotation):
            report.add("keypoints_count", annotation["id"])
        kept.append({**annotation, "keypoints": flat, "num_keypoints": int(labelled.sum())})
    return points, kept


def read_keypoints(given: Any, number: int, size: tuple[int, int] | None) -> tuple[list, list[str]]:
    """Return the keypoints of an annotation, x, y and visibility of each, with zeros for those that are wrong.

    Args:
      given: as it stands in the file.
      number: of keypoints that the category names.
      size: height and width of the image, or None where they are not known.

    Returns:
      The numbers, and what was wrong, as named in `report.REASONS`.
    """
    if not isinstance(given, list) or len(given) != 3 * number:
        return [0] * (3 * number), ["keypoints_number"]
    flat, reasons = list(given), []
    for place in range(0, 3 * number, 3):
        x, y, visibility = given[place : place + 3]
        reason = None
        if not all(map(is_number, (x, y, visibility))) or visibility not in (0, 1, 2):
            reason = "keypoints_invalid"
        # Numbers of pixels end half a pixel before the image's border, coordinates on it: both are inside.
        elif visibility and size and not (-0.5 <= x <= size[1] and -0.5 <= y <= size[0]):
            reason = "keypoints_outside"
        if reason:
            flat[place : place + 3] = 0, 0, 0
            if reason not in reasons:
                reasons.append(reason)
    return flat, reasons


def is_count_right(annotation: Mapping[str, Any]) -> bool:
    """Return whether `num_keypoints` is the number of keypoints that are labelled, right or wrong."""
    given = annotation["keypoints"]
    visibilities = given[2::3] if isinstance(given, list) else ()
    labelled = sum(is_number(visibility) and visibility > 0 for visibility in visibilities)
    return annotation.get("num_keypoints") == labelled


def unnamed(annotations: Iterable[Mapping[str, Any]], skeletons: Mapping[int, Any]) -> list[int]:
    """Return the ids of the categories that do not name the keypoints that annotations of them have."""
    with_keypoints = {annotation["category_id"] for annotation in annotations if annotation.get("keypoints")}
    return sorted(with_keypoints - set(skeletons))
