"""Looks at keypoints, where the annotations have any."""

from typing import Any

from maskx_jax.data.coco.annotations import is_number
from maskx_jax.doctor.structure import Split


def examine(split: Split) -> None:
    """Count what is wrong with keypoints in the findings of the split; `num_keypoints` is mended."""
    entries = {entry["id"]: entry for entry in split.category_entries}
    numbers = {category_id: _number_of_keypoints(entry) for category_id, entry in entries.items()}
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in split.images}
    unnamed: set[int] = set()
    for annotation in split.annotations:
        if not annotation.get("keypoints"):
            continue
        category_id = annotation["category_id"]
        if numbers[category_id] is None and category_id not in unnamed:
            unnamed.add(category_id)
            split.findings.add("keypoints_unnamed", category_id, category=entries[category_id]["name"])
        _examine_one(split, annotation, entries[category_id], numbers[category_id], sizes[annotation["image_id"]])
    for entry in split.category_entries:
        _examine_category(split, entry)


def _number_of_keypoints(entry: dict) -> int | None:
    names = entry.get("keypoints")
    return len(names) if isinstance(names, list) and names else None


def _examine_one(split: Split, annotation: dict, entry: dict, number: int | None, size: tuple[Any, Any]) -> None:
    def count(cause: str, found: str = "") -> None:
        split.findings.add(cause, annotation["id"], found, entry["name"])

    points = annotation["keypoints"]
    if not isinstance(points, list) or len(points) % 3 or (number is not None and len(points) != 3 * number):
        got = len(points) if isinstance(points, list) else type(points).__name__
        count("keypoints_number", f"{got} numbers; expected 3 times {number}")
        return
    if not all(map(is_number, points)) or not set(points[2::3]) <= {0, 1, 2}:
        count("keypoints_invalid")
        return
    labelled = [(x, y) for x, y, v in zip(points[0::3], points[1::3], points[2::3], strict=True) if v]
    height, width = size
    if height and any(not (0 <= x <= width and 0 <= y <= height) for x, y in labelled):
        count("keypoints_outside")
    if annotation.get("num_keypoints") != len(labelled):
        count("keypoints_count", f"{annotation.get('num_keypoints')}; {len(labelled)} have a visibility above 0")
        split.change("annotations", annotation, "keypoints_count", num_keypoints=len(labelled))


def _examine_category(split: Split, entry: dict) -> None:
    names = entry.get("keypoints")
    if not isinstance(names, list):
        return
    known = {name for name in names if isinstance(name, str)}
    for name in sorted(known):
        other = name.replace("left", "right")
        if other != name and other not in known:
            split.findings.add("keypoints_unpaired", entry["id"], f"{name!r}, and no {other!r}", entry["name"])
    edges = entry.get("skeleton") or []
    edges = edges if isinstance(edges, list) else [edges]
    ends = [end for edge in edges for end in (edge if isinstance(edge, list) else [edge])]
    # COCO counts from 1.
    if wrong := [end for end in ends if not (isinstance(end, int) and 1 <= end <= len(names))]:
        split.findings.add(
            "keypoints_skeleton", entry["id"], f"{wrong[0]!r}; expected 1 to {len(names)}", entry["name"]
        )
