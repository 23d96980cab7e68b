"""What is made of metrics: groups of classes, names of single numbers, tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskx_jax.coco.categories import Categories

_TITLES = {"bbox": "box", "segm": "mask", "boundary": "edge"}


def kinds_of(results: Sequence[Any]) -> tuple[str, ...]:
    """Return the kinds that results can be scored by: boxes and masks where any entry has them."""
    fields = {"bbox": "bbox", "segm": "segmentation"}
    kinds = [kind for kind, field in fields.items() if any(isinstance(r, dict) and field in r for r in results)]
    return tuple(kinds) or ("bbox",)


def mask_groups(categories: Categories, allowed: np.ndarray) -> dict[str, list[int]]:
    """Return the category ids of A (masks allowed in training) and B, where both exist."""
    # No array of ids: they may have more than 64 bits.
    members = list(zip(categories.ids, allowed[1:].tolist(), strict=True))
    groups = {"A": [i for i, has_masks in members if has_masks], "B": [i for i, has_masks in members if not has_masks]}
    return groups if groups["A"] and groups["B"] else {}


def flatten(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the numbers of `coco_metrics.evaluate` under names such as "segm/A/AP", without those per class."""
    flat = {
        f"{kind}/{group}/{name}": value
        for kind in ("bbox", "segm", "boundary")
        for group, values in metrics.get(kind, {}).items()
        for name, value in values.items()
    }
    means = metrics.get("harmonic_mean", {})
    return flat | {f"{kind}/harmonic_mean": value for kind, value in means.items()}


def format_table(metrics: Mapping) -> str:
    """Return what `evaluate` found as plain text, in percent: a row per kind and group."""
    kinds = [kind for kind in _TITLES if kind in metrics]
    names = list(metrics[kinds[0]]["all"])
    group_width = max(5, *(len(group) for kind in kinds for group in metrics[kind]))
    lines = []
    usual = 300 if metrics["federated"] else 100
    if metrics["federated"]:
        lines.append("LVIS: detections of classes that an image was not searched for are left out")
    if metrics["max_detections"] != usual:
        lines.append(
            f"at most {metrics['max_detections']} detections an image count, where the usual number is {usual}"
        )
    lines.append(f"{'':5}{'':{group_width}}" + "".join(f"{name:>7}" for name in names))
    for kind in kinds:
        for group, values in metrics[kind].items():
            numbers = "".join(f"{_percent(values[name]):>7}" for name in names)
            lines.append(f"{_TITLES[kind]:5}{group:{group_width}}{numbers}")
    if "harmonic_mean" in metrics:
        means = ", ".join(f"{_TITLES[kind]} {_percent(metrics['harmonic_mean'][kind])}" for kind in kinds)
        lines.append(f"harmonic mean of AP of A and B: {means}")
    if metrics.get("num_ignored_without_mask"):
        lines.append(f"ground-truth objects without a mask, ignored for mask AP: {metrics['num_ignored_without_mask']}")
    if metrics["num_areas_replaced"]:
        lines.append(f"ground-truth areas that cannot be right, replaced: {metrics['num_areas_replaced']}")

    return "\n".join(lines)


def format_class_table(metrics: Mapping) -> str:
    """Return the AP of every class as plain text, in percent, with the groups it is in."""
    kinds = [kind for kind in _TITLES if kind in metrics]
    per_class = metrics["per_class"]
    groups = {name: ",".join(row["groups"]) or "-" for name, row in per_class.items()}
    group_width = max(5, *map(len, groups.values())) if groups else 5
    name_width = max(5, *map(len, per_class)) if per_class else 5
    titles = "".join(f"{_TITLES[kind] + ' AP':>9}" for kind in kinds)
    lines = [f"{'class':{name_width}} {'group':{group_width}}{titles}"]
    for name, row in per_class.items():
        numbers = "".join(f"{_percent(row[kind]):>9}" for kind in kinds)
        lines.append(f"{name:{name_width}} {groups[name]:{group_width}}{numbers}")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
