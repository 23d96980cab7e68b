"""The numbers of a report: scores, intervals, curves, kinds of error, confusion and calibration of each model."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import hotcoco
import numpy as np

from maskx_jax.coco.categories import Categories
from maskx_jax.evaluation import metrics
from maskx_jax.evaluation.checks import as_id
from maskx_jax.report import bootstrap, tide
from maskx_jax.report.inputs import Dataset, Model, most_detections
from maskx_jax.report.matches import IGNORED, OUTCOMES, Matches, Prepared, outcomes, read_matches

# Confusions are counted among the detections that have at least one of these scores.
CONFUSION_SCORES = (0.05, 0.3, 0.5, 0.7)
_NUM_BINS = 10
# AP at one IoU threshold, by its place among COCO's, and the mean over all.
_APS: Mapping[str, slice] = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}


@dataclasses.dataclass(frozen=True)
class Analysed:
    """What is known of one model.

    Attributes:
      model: the model.
      measured: of `metrics.score`.
      kinds: by kind, what stands in the report; fit for JSON.
      curves: by kind; see `curves`.
      matches: by kind.
      outcomes: by kind, int8 `n` of the detections of its matches.
      draws: by kind, float64 `10 1 + b k`, the first of all images once; see `bootstrap.average_precisions`.
    """

    model: Model
    measured: dict[str, Any]
    kinds: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    curves: dict[str, Any] = dataclasses.field(default_factory=dict)
    matches: dict[str, Matches] = dataclasses.field(default_factory=dict)
    outcomes: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    draws: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def analyse(dataset: Dataset, model: Model, prepared: Prepared, weights: np.ndarray) -> Analysed:
    """Return what is known of a model.

    Args:
      dataset: that its results are of.
      model: the model.
      prepared: the ground truth of the dataset.
      weights: `b images`, draws for the intervals; the same for all models, so that their differences have intervals.

    Raises:
      ValueError: results are malformed; one line that names the model and the entry.
    """
    try:
        measured = metrics.score(
            dataset.ground_truth, model.results, dataset.kinds, dataset.groups, max_detections=dataset.max_detections
        )
    except ValueError as error:
        raise ValueError(f"{model.where or model.title}: {error}") from None
    found = Analysed(model, measured)
    scored = prepared.scored(model.results)
    # The same objects: what LVIS leaves out is not in `scored`.
    place_of = {id(result): place for place, result in enumerate(model.results)}
    places = [place_of[id(result)] for result in scored]
    for kind in dataset.kinds:
        if kind != "boundary":
            _analyse_kind(found, kind, dataset, prepared, (scored, places), weights)
    return found


def _analyse_kind(
    found: Analysed,
    kind: str,
    dataset: Dataset,
    prepared: Prepared,
    results: tuple[list[dict], list[int]],
    weights: np.ndarray,
) -> None:
    scored, places = results
    groups = label_groups(dataset)
    datasets = prepared.datasets(scored, kind)
    evaluator = prepared.evaluator(datasets, kind)
    found.curves[kind] = curves(evaluator)
    found.kinds[kind] = {"errors": _errors(evaluator), "calibration": _calibration(evaluator)}
    matches, ids = read_matches(evaluator, datasets, places)
    del evaluator
    kinds, about = outcomes(matches, datasets, ids, kind)
    # Before the draws, all images once.
    draws = bootstrap.average_precisions(matches, np.vstack([np.ones_like(weights[:1]), weights]))
    found.matches[kind], found.outcomes[kind], found.draws[kind] = matches, kinds, draws
    found.kinds[kind] |= {
        "objects": np.bincount(matches.object_label, minlength=matches.num_classes).tolist(),
        "lost": _lost(matches, kinds, about, groups),
        "outcomes": _counts(matches, kinds, groups),
        "confusion": confusion(datasets, ids[kinds == IGNORED], kind, most_detections(dataset)),
        "intervals": _intervals(draws, groups, (0, 1)),
    }


def label_groups(dataset: Dataset) -> dict[str, list[int]]:
    """Return the classes of each group, "all" first, numbered from 0 in the order of their ids."""
    ids = sorted(as_id(category["id"]) for category in dataset.ground_truth["categories"])
    label_of_id = {category_id: label for label, category_id in enumerate(ids)}
    members = {group: sorted(label_of_id[i] for i in chosen) for group, chosen in dataset.groups.items()}
    return {"all": list(range(len(ids))), **members}


def class_names(dataset: Dataset) -> list[str]:
    """Return the names of the classes in the order of their ids."""
    categories = [{**c, "id": as_id(c["id"])} for c in dataset.ground_truth["categories"]]
    return list(Categories.from_coco(categories).names)


def difference(model: Analysed, first: Analysed, kind: str, groups: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return by how much AP of a model is above that of the first: of each group, with intervals."""
    return _intervals(model.draws[kind] - first.draws[kind], groups, (-1, 1))


def curves(evaluator: Any) -> dict[str, Any]:
    """Return precision in thousandths at 101 recalls: by "AP", "AP50" and "AP75", `k 101`; None for classes without."""
    precision = np.asarray(evaluator.eval["precision"])[:, :, :, 0, -1]
    result = {}
    for name, part in _APS.items():
        # -1 stands for a class without ground truth.
        mean = precision[part].mean(axis=0).T
        result[name] = [None if row[0] < 0 else np.rint(1000 * row).astype(int).tolist() for row in mean]
    return result


def confusion(datasets: Sequence[dict], ignored: np.ndarray, kind: str, max_detections: int) -> list[dict[str, Any]]:
    """Return which classes are taken for which: for each of `CONFUSION_SCORES` the cells that are not 0.

    In an image each detection, the best first, takes the object of any class with which its IoU is largest and 0.5 or
    more. Objects that do not count, and detections on them, are left out; hotcoco would count these as wrong.

    Args:
      datasets: ground truth and detections as they were matched.
      ignored: ids of the detections that do not count.
      kind: "bbox" or "segm".
      max_detections: of an image that count.

    Returns:
      For each score a dict with it and "cells": lists of true class, predicted class and number. As a class, the number
      of classes stands for the background.
    """
    dropped = set(ignored.tolist())
    truth, found = (dict(dataset) for dataset in datasets)
    truth["annotations"] = [entry for entry in truth["annotations"] if not entry["iscrowd"]]
    found["annotations"] = [entry for entry in found["annotations"] if entry["id"] not in dropped]
    evaluator = hotcoco.COCOeval(hotcoco.COCO(truth), hotcoco.COCO(found), kind)
    result = []
    for score in CONFUSION_SCORES:
        matrix = evaluator.confusion_matrix(iou_thr=0.5, max_det=max_detections, min_score=score)["matrix"]
        rows, columns = np.nonzero(matrix)
        cells = np.stack([rows, columns, matrix[rows, columns]], axis=1).astype(int).tolist()
        result.append({"score": score, "cells": cells})
    return result


def _errors(evaluator: Any) -> dict[str, Any]:
    """Return what TIDE says over all classes: how many errors of each kind, and the AP50 that each side costs."""
    found = evaluator.tide_errors(pos_thr=0.5, bg_thr=0.1)
    sides = {name: found["delta_ap"][name] for name in ("FP", "FN")}
    return {"sides": sides, "counts": found["counts"], "AP50": found["ap_base"]}


def _lost(
    matches: Matches, kinds: np.ndarray, about: np.ndarray, groups: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, float | None]]:
    """Return by group the AP50 that each kind of error costs it; None for a group without objects."""
    per_class = tide.lost(matches, kinds, about)
    means = {
        group: {name: bootstrap.group_means(values, labels).item() for name, values in per_class.items()}
        for group, labels in groups.items()
    }
    return {
        group: {name: None if np.isnan(value) else value for name, value in values.items()}
        for group, values in means.items()
    }


def _counts(matches: Matches, kinds: np.ndarray, groups: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return how many detections of each outcome each group has, and how many objects were missed."""
    result = {}
    for group, labels in groups.items():
        inside = np.isin(matches.label, labels)
        numbers = np.bincount(kinds[inside], minlength=len(OUTCOMES)).tolist()
        objects = np.isin(matches.object_label, labels)
        result[group] = {
            **dict(zip(OUTCOMES, numbers, strict=True)),
            "missed": int(matches.missed[objects].sum()),
            "objects": int(objects.sum()),
        }
    return result


def _calibration(evaluator: Any) -> dict[str, Any]:
    found = evaluator.calibration(n_bins=_NUM_BINS, iou_threshold=0.5)
    bins = [
        [bin_["bin_lower"], bin_["bin_upper"], bin_["avg_confidence"], bin_["avg_accuracy"], bin_["count"]]
        for bin_ in found["bins"]
    ]
    return {"ece": found["ece"], "mce": found["mce"], "bins": bins, "detections": found["num_detections"]}


def _intervals(draws: np.ndarray, groups: Mapping[str, Sequence[int]], within: tuple[float, float]) -> dict[str, Any]:
    """Return intervals by group and name, and under "classes" those of AP of each class.

    Args:
      draws: `10 1 + b k`, or differences of such; the first is what was measured.
      groups: of `label_groups`.
      within: the smallest and the largest number that there can be.
    """

    def interval(values: np.ndarray) -> list[float] | None:
        found = bootstrap.interval(values[1:], values[0])
        return None if found is None else [float(np.clip(end, *within)) for end in found]

    result: dict[str, Any] = {}
    for group, labels in groups.items():
        # Mean over thresholds and classes: each class has all thresholds or none.
        result[group] = {
            name: interval(bootstrap.group_means(draws[part].mean(axis=0), labels)) for name, part in _APS.items()
        }
    result["classes"] = [interval(column) for column in draws.mean(axis=0).T]
    return result
