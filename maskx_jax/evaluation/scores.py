"""What is scored and how it is reported: kinds, groups of classes, names of single numbers, tables."""

import os
import pathlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from absl import logging

from maskx_jax import files
from maskx_jax.coco import mask_classes
from maskx_jax.coco.categories import Categories
from maskx_jax.evaluation import metrics, results
from maskx_jax.evaluation.checks import FIELD_OF_KIND, as_id, check_ground_truth

# Groups of classes that an evaluation may have; which of them it has, the data decide.
GROUPS = ("all", "A", "B", "mixed")
_TITLES = {"bbox": "box", "segm": "mask", "boundary": "edge", "keypoints": "pose"}


def kinds(produces: Collection[str], boundary: bool = False) -> tuple[str, ...]:
    """Return what is scored of a detector: boxes, masks and their borders, keypoints.

    Args:
      produces: what the detector makes, of "boxes", "masks" and "keypoints".
      boundary: whether to score the borders of masks.
    """
    masks = ("segm", "boundary") if boundary else ("segm",)
    return ("bbox", *(masks if "masks" in produces else ()), *(("keypoints",) if "keypoints" in produces else ()))


def kinds_of(found: Iterable[Any]) -> tuple[str, ...]:
    """Return the kinds that results can be scored by: boxes, masks and keypoints where any entry has them."""
    present = [kind for kind, field in FIELD_OF_KIND.items() if any(isinstance(r, dict) and field in r for r in found)]
    return tuple(present) or ("bbox",)


def mask_groups(categories: Categories, allowed: np.ndarray) -> dict[str, list[int]]:
    """Return the category ids of A (masks allowed in training) and B, where both exist.

    Args:
      categories: of the dataset.
      allowed: bool `C + 1`; see `coco.mask_classes.mask_labels`.
    """
    return groups_of_roles(categories, np.where(allowed, "A", "B"))


def groups_of_roles(categories: Categories, role_of_label: np.ndarray) -> dict[str, list[int]]:
    """Return the category ids of A, B and mixed, where there is more than one of these.

    Args:
      categories: of the dataset.
      role_of_label: text `C + 1`; see `data.roles.class_roles`.
    """
    # No array of ids: they may have more than 64 bits.
    members = list(zip(categories.ids, role_of_label[1:].tolist(), strict=True))
    groups = {group: [i for i, role in members if role == group] for group in GROUPS[1:]}
    groups = {group: ids for group, ids in groups.items() if ids}
    return groups if len(groups) > 1 else {}


def metric_names(
    scored: Collection[str], groups: Collection[str], max_detections: int, has_frequencies: bool = False
) -> set[str]:
    """Return the names that `flatten` gives to what `metrics.score` returns, before anything is scored.

    Args:
      scored: the kinds.
      groups: the names of the groups besides "all".
      max_detections: detections an image that count.
      has_frequencies: whether the classes are rare, common or frequent (LVIS), which has numbers of its own.
    """
    names = set()
    for kind in scored:
        of_kind = metrics.groups_of(kind, ("all", *groups))
        numbers = metrics.definitions_of(kind, max_detections, has_frequencies)
        names |= {f"{kind}/{group}/{number}" for group in of_kind for number in numbers}
        if {"A", "B"} <= set(of_kind):
            names.add(f"{kind}/harmonic_mean")
    return names


def flatten(measured: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the numbers of `metrics.score` under names such as "segm/A/AP", without those per class."""
    flat = {
        f"{kind}/{group}/{name}": value
        for kind in metrics.ALL_KINDS
        for group, values in measured.get(kind, {}).items()
        for name, value in values.items()
    }
    means = measured.get("harmonic_mean", {})
    return flat | {f"{kind}/harmonic_mean": value for kind, value in means.items()}


def score_file(
    results_path: str | os.PathLike,
    annotations_path: str | os.PathLike,
    with_masks: str = "all",
    *,
    boundary: bool = False,
    backend: str = "hotcoco",
    max_detections: int | None = None,
) -> dict[str, Any]:
    """Return the metrics of a COCO results file on a file of COCO annotations.

    Args:
      results_path: boxes, masks, keypoints or several of these; what one entry has, all need (of keypoints, all of
        classes that have some). Beside other kinds, keypoints that the annotations know nothing of are not scored.
      annotations_path: COCO instances, or LVIS'.
      with_masks: the classes of A; see `coco.mask_classes.mask_labels`.
      boundary: score the boundaries of masks too.
      backend: see `metrics.score`.
      max_detections: see `metrics.score`.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is malformed; one line that names it and the entry.
    """
    metrics.check_backend(backend)
    ground_truth = files.read_json(annotations_path)
    found = results.read_results(results_path)
    try:
        scored = _checked(kinds_of(found), ground_truth)
    except ValueError as error:
        raise ValueError(f"{annotations_path}: {error}") from None
    categories = Categories.from_coco(
        [{**category, "id": as_id(category["id"])} for category in ground_truth["categories"]]
    )
    groups = mask_groups(categories, mask_classes.mask_labels(with_masks, categories))
    if boundary and "segm" in scored:
        scored = (*scored, "boundary")
    try:
        return metrics.score(ground_truth, found, scored, groups, backend, max_detections)
    except ValueError as error:
        raise ValueError(f"{results_path}: {error}") from None


def _checked(kinds: tuple[str, ...], ground_truth: Any) -> tuple[str, ...]:
    """Return the kinds that a ground truth was checked for. Keypoints that it has none of stay away beside others."""
    others = tuple(kind for kind in kinds if kind != "keypoints")
    check_ground_truth(ground_truth, others)
    if others == kinds:
        return kinds
    if others and not any(category.get("keypoints") for category in ground_truth["categories"]):
        logging.warning("the annotations have no keypoints: those of the results are not scored")
        return others
    check_ground_truth(ground_truth, ("keypoints",))
    return kinds


def write(measured: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Write metrics.json and table.txt into a folder."""
    files.write_json(folder / "metrics.json", measured)
    files.write_text(folder / "table.txt", f"{format_table(measured)}\n\n{format_class_table(measured)}\n")


def titled_table(measured: Mapping) -> str:
    """Return the table under a line of explanation."""
    return f"AP in percent; A: classes with masks in training, B: without\n{format_table(measured)}"


def format_table(measured: Mapping) -> str:
    """Return what `metrics.score` measured as plain text, in percent: a row per kind and group."""
    scored = [kind for kind in _TITLES if kind in measured]
    names: list[str] = []
    group_width = max(5, *(len(group) for kind in scored for group in measured[kind]))
    lines = []
    usual = metrics.usual_max_detections(measured["federated"])
    if measured["federated"]:
        lines.append("LVIS: detections of classes that an image was not searched for are left out")
    if measured["max_detections"] != usual:
        lines.append(
            f"at most {measured['max_detections']} detections an image count, where the usual number is {usual}"
        )
    for kind in scored:
        if names != (names := list(measured[kind]["all"])):
            lines.append(f"{'':5}{'':{group_width}}" + "".join(f"{name:>7}" for name in names))
        for group, values in measured[kind].items():
            numbers = "".join(f"{_percent(values[name]):>7}" for name in names)
            lines.append(f"{_TITLES[kind]:5}{group:{group_width}}{numbers}")
    if "harmonic_mean" in measured:
        means = ", ".join(f"{_TITLES[kind]} {_percent(mean)}" for kind, mean in measured["harmonic_mean"].items())
        lines.append(f"harmonic mean of AP of A and B: {means}")
    if number := measured.get("num_ignored_without_mask"):
        lines.append(f"ground-truth objects without a mask, ignored for mask AP: {number}")
    if number := measured.get("num_ignored_without_keypoints"):
        lines.append(f"ground-truth objects without keypoints, ignored for pose AP: {number}")
    if measured["num_areas_replaced"]:
        lines.append(f"ground-truth areas that cannot be right, replaced: {measured['num_areas_replaced']}")

    return "\n".join(lines)


def format_class_table(measured: Mapping) -> str:
    """Return the AP of every class as plain text, in percent, with the groups it is in."""
    scored = [kind for kind in _TITLES if kind in measured]
    per_class = measured["per_class"]
    groups = {name: ",".join(row["groups"]) or "-" for name, row in per_class.items()}
    group_width = max(5, *map(len, groups.values())) if groups else 5
    name_width = max(5, *map(len, per_class)) if per_class else 5
    titles = "".join(f"{_TITLES[kind] + ' AP':>9}" for kind in scored)
    lines = [f"{'class':{name_width}} {'group':{group_width}}{titles}"]
    for name, row in per_class.items():
        numbers = "".join(f"{_percent(row[kind]):>9}" for kind in scored)
        lines.append(f"{name:{name_width}} {groups[name]:{group_width}}{numbers}")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
