"""Looks at keypoints, where the annotations have any; the rules are those of `prepare`."""

from collections.abc import Sequence
from typing import Any

from maskx_jax.coco.keypoints import Skeleton, same_skeletons, skeletons_of
from maskx_jax.data.coco.keypoints import is_count_right, read_keypoints, unnamed
from maskx_jax.doctor.structure import Split


def examine(split: Split) -> None:
    """Count what is wrong with keypoints in the findings of the split; `num_keypoints` is mended."""
    entries = {entry["id"]: entry for entry in split.category_entries}
    numbers = {category_id: _number_of_keypoints(entry) for category_id, entry in entries.items()}
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in split.images}
    for category_id in unnamed(split.annotations, {key: number for key, number in numbers.items() if number}):
        split.findings.add("keypoints_unnamed", category_id, category=entries[category_id]["name"])
    for annotation in split.annotations:
        if annotation.get("keypoints"):
            category_id = annotation["category_id"]
            _examine_one(split, annotation, entries[category_id], numbers[category_id], sizes[annotation["image_id"]])
    _examine_categories(split)


def _number_of_keypoints(entry: dict) -> int | None:
    names = entry.get("keypoints")
    return len(names) if isinstance(names, list) and names else None


def _examine_one(split: Split, annotation: dict, entry: dict, number: int | None, size: tuple[Any, Any]) -> None:
    def count(cause: str, found: str = "") -> None:
        split.findings.add(cause, annotation["id"], found, entry["name"])

    given = annotation["keypoints"]
    if number is None and isinstance(given, list):
        number = len(given) // 3
    _, reasons = read_keypoints(given, number or 0, (size[0], size[1]) if size[0] else None)
    for reason in reasons:
        got = len(given) if isinstance(given, list) else type(given).__name__
        count(reason, f"{got} numbers; expected 3 times {number}" if reason == "keypoints_number" else "")
    if not {"keypoints_number", "keypoints_invalid"} & set(reasons) and not is_count_right(annotation):
        labelled = sum(visibility > 0 for visibility in given[2::3])
        count("keypoints_count", f"{annotation.get('num_keypoints')}; {labelled} have a visibility above 0")
        split.change("annotations", annotation, "keypoints_count", num_keypoints=labelled)


def compare(splits: Sequence[Split]) -> None:
    """Compare the keypoints of the first split with those of the others, where their categories are sound."""
    first, *others = splits
    for other in others:
        try:
            known, found = skeletons_of(first.category_entries), skeletons_of(other.category_entries)
        except ValueError:
            # Counted already, by category.
            continue
        try:
            same_skeletons(known, found, f"splits {first.name!r} and {other.name!r}")
        except ValueError as error:
            other.findings.add("keypoints_differ_in_split", other.name, str(error))


def _examine_categories(split: Split) -> None:
    first = None
    for entry in split.category_entries:
        try:
            skeleton = Skeleton.from_coco(entry)
        except ValueError as error:
            split.findings.add("keypoints_skeleton", entry["id"], str(error), entry["name"])
            continue
        if skeleton is None:
            continue
        first = first or (entry["name"], skeleton)
        if skeleton != first[1]:
            split.findings.add("keypoints_differ", entry["id"], f"others than those of {first[0]!r}", entry["name"])
        for place, name in enumerate(skeleton.names):
            if "left" in name and skeleton.flip[place] == place:
                other = name.replace("left", "right")
                split.findings.add("keypoints_unpaired", entry["id"], f"{name!r}, and no {other!r}", entry["name"])
