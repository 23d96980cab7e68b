"""Average precision and recall as COCO and LVIS define them, for all classes and for groups of classes.

The matching of detections with ground truth is done by hotcoco, by faster-coco-eval, or by pycocotools, the authority:
their recalls are the same to the last bit, their precisions within 2.2e-16, which pycocotools adds to a denominator. It
runs once for each kind, over all classes; what is reported for a group or a class is a mean over a slice of the same
array `precision[threshold, recall, class, area, number of detections]`. For a group this equals pycocotools with
`params.catIds` restricted to the group. The 100 detections an image are shared by all classes, because the detector
shares them before anything is scored.

Some things differ from handing the files to pycocotools as they are:

- Ground-truth objects without a mask cannot be scored as `segm`. They become regions to ignore, like crowds, with their
  box as the mask: a detection of the same class that lies in one is neither right nor wrong, and no detection is
  missed. Their number is reported. A mask without a single pixel is none.
- Images, categories and annotations are numbered anew, in the order of their ids: backends read ids through float64 or
  take no negative ones, and pycocotools takes a match with annotation id 0 for no match, and loses annotations that
  share an id.
- `"ignore": 1` makes a region to ignore, as `prepare` does; pycocotools reads `iscrowd` alone.
- An `area` that cannot be right (see `coco_checks.believed_area`) is replaced by that of the mask, or of the box.
- The area of a detection scored as `segm` is that of its mask, also where it comes with a box (pycocotools would take
  the box's).

LVIS (Gupta, Dollar and Girshick, 2019) says of each image which classes were looked for. What it asks for is brought
into a form that any matcher of COCO's scores by the same rules, with lvis-api's numbers: the best 300 detections of an
image are kept; those of classes that are neither in the image nor known to be absent (`neg_category_ids`), and those
without area, are left out; of a class that is not annotated exhaustively (`not_exhaustive_category_ids`) all of the
image is a region to ignore.
"""

import collections
import contextlib
import dataclasses
import gc
import importlib
import importlib.util
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from maskx_jax.coco import rle
from maskx_jax.evaluation.checks import (
    KINDS,
    as_id,
    believed_area,
    check_ground_truth,
    check_results,
    image_sizes,
)

# From the fastest to the slowest.
BACKENDS = ("hotcoco", "faster_coco_eval", "pycocotools")

_TITLES = {"bbox": "box", "segm": "mask", "boundary": "edge"}
_FREQUENCIES = ("r", "c", "f")
# Beyond any image: a region to ignore that holds every box.
_EVERYWHERE = [-1e6, -1e6, 2e6, 2e6]


class _Metric(NamedTuple):
    array: str
    threshold: float | None  # None: mean over all IoU thresholds.
    area: str
    num_detections: int
    frequency: str | None = None


def metric_definitions(max_detections: int = 100, has_frequencies: bool = False) -> dict[str, _Metric]:
    """Return what is reported of each kind and group, by name and in COCO's order.

    Args:
      max_detections: detections an image that count.
      has_frequencies: whether the categories are rare, common or frequent (LVIS).
    """
    most = max_detections
    metrics = {
        "AP": _Metric("precision", None, "all", most),
        "AP50": _Metric("precision", 0.5, "all", most),
        "AP75": _Metric("precision", 0.75, "all", most),
        "APs": _Metric("precision", None, "small", most),
        "APm": _Metric("precision", None, "medium", most),
        "APl": _Metric("precision", None, "large", most),
    }
    if has_frequencies:
        metrics |= {f"AP{letter}": _Metric("precision", None, "all", most, letter) for letter in _FREQUENCIES}
    metrics |= {f"AR{number}": _Metric("recall", None, "all", number) for number in _detection_counts(most)}
    return metrics | {
        "ARs": _Metric("recall", None, "small", most),
        "ARm": _Metric("recall", None, "medium", most),
        "ARl": _Metric("recall", None, "large", most),
    }


def has_frequencies(ground_truth: Mapping) -> bool:
    """Return whether the categories of a COCO instances dict are rare ("r"), common or frequent, as those of LVIS."""
    categories = ground_truth["categories"]
    return bool(categories) and all(category.get("frequency") in _FREQUENCIES for category in categories)


def is_federated(ground_truth: Mapping) -> bool:
    """Return whether the images of a COCO instances dict say which classes were looked for, as those of LVIS do."""
    fields = ("neg_category_ids", "not_exhaustive_category_ids")
    return any(field in image for image in ground_truth["images"] for field in fields)


def check_backend(backend: str) -> None:
    """Check that a backend is known and installed.

    Raises:
      ValueError: it is unknown.
      ModuleNotFoundError: its package is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; expected one of {', '.join(BACKENDS)}")
    if importlib.util.find_spec(backend) is None:
        raise ModuleNotFoundError(f"backend {backend!r} needs a package: pip install {backend.replace('_', '-')}")


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    # It would walk over the entries of all detections again and again while more are made, and find nothing.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_no_garbage_collection()
def evaluate(
    ground_truth: Mapping,
    results: Sequence[dict],
    kinds: Sequence[str] = KINDS,
    groups: Mapping[str, Sequence[int]] | None = None,
    backend: str = "hotcoco",
    max_detections: int | None = None,
) -> dict:
    """Score COCO results against a COCO or LVIS ground truth.

    Args:
      ground_truth: a COCO instances dict. It is not changed.
      results: COCO results entries. They are not changed.
      kinds: what to compare, of "bbox", "segm" and "boundary": masks again, with the smaller of their IoU and the IoU
        of their borders, bands of 2 % of the image's diagonal (Boundary IoU, Cheng et al. 2021), always matched by
        faster-coco-eval, which alone has it.
      groups: category ids by the name of the group, such as `{"A": [...], "B": [...]}`.
      backend: who matches detections with ground truth.
      max_detections: detections that count: the best of an image and class (COCO), or of an image (LVIS). None is
        their own number, 100 or 300.

    Returns:
      A dict fit for JSON; numbers are fractions in 0..1, or None where there is no ground truth to take a mean over:

      - for each kind, `{"all": {...}, "A": {...}, ...}` with the numbers of `metric_definitions`: AP, AP50, AP75, APs,
        APm, APl, AR1, AR10, AR100 (or the number of detections that count), ARs, ARm, ARl, and APr, APc, APf of LVIS;
      - `"per_class"`: by category name, `{"groups": [...], "bbox": AP, "segm": AP}`;
      - `"harmonic_mean"`: by kind, the harmonic mean of AP of A and AP of B; only if there are groups A and B;
      - `"num_ignored_without_mask"`: objects of the ground truth not scored as segm; only if segm is asked for;
      - `"num_areas_replaced"`: objects of the ground truth whose area cannot be right;
      - `"max_detections"`, and `"federated"`: whether LVIS' rules hold.

    Raises:
      ValueError: ground truth or results that `coco_checks` refuses; an unknown backend; a group named like another
        entry, without categories or with unknown ones.
      ModuleNotFoundError: the backend is not installed.
    """
    groups = dict(groups or {})
    check_backend(backend)
    if not kinds:
        raise ValueError(f"got no kinds; expected some of {list(_TITLES)}")
    checked_kinds = list(dict.fromkeys("segm" if kind == "boundary" else kind for kind in kinds))
    check_ground_truth(ground_truth, checked_kinds)
    check_results(results, ground_truth, checked_kinds)
    name_of_id = {as_id(category["id"]): category["name"] for category in ground_truth["categories"]}
    category_ids = sorted(name_of_id)
    _check_groups(groups, name_of_id)
    federated = is_federated(ground_truth)
    if max_detections is None:
        max_detections = 300 if federated else 100
    if max_detections < 1:
        raise ValueError(f"got max_detections {max_detections}; expected at least 1")

    columns = {"all": list(range(len(category_ids)))}
    for group, members in groups.items():
        columns[group] = sorted(category_ids.index(member) for member in set(members))
    columns_of_frequency: dict[str | None, set[int]] = collections.defaultdict(set)
    columns_of_frequency[None] = set(columns["all"])
    for category in ground_truth["categories"]:
        columns_of_frequency[category.get("frequency")].add(category_ids.index(as_id(category["id"])))
    definitions = metric_definitions(max_detections, has_frequencies(ground_truth))

    data = _Data(ground_truth, "segm" in checked_kinds)
    chosen = list(results)
    if federated:
        chosen = data.federated(chosen, max_detections)
    metrics: dict = {"max_detections": max_detections, "federated": federated}
    metrics["num_areas_replaced"] = data.num_areas_replaced
    if "segm" in checked_kinds:
        metrics["num_ignored_without_mask"] = data.num_without_mask
    per_class: dict[str, dict] = {
        name_of_id[i]: {"groups": [group for group, members in groups.items() if i in members]} for i in category_ids
    }
    for kind in kinds:
        matcher = "faster_coco_eval" if kind == "boundary" else backend
        scores = _match(data.entries(chosen, kind, federated), kind, matcher, max_detections)
        metrics[kind] = {
            group: {
                name: scores.mean([i for i in members if i in columns_of_frequency[metric.frequency]], metric)
                for name, metric in definitions.items()
            }
            for group, members in columns.items()
        }
        for column, category_id in enumerate(category_ids):
            per_class[name_of_id[category_id]][kind] = scores.mean([column], definitions["AP"])
    if "A" in groups and "B" in groups:
        metrics["harmonic_mean"] = {
            kind: _harmonic_mean(metrics[kind]["A"]["AP"], metrics[kind]["B"]["AP"]) for kind in kinds
        }
    metrics["per_class"] = per_class
    return metrics


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


def _detection_counts(max_detections: int) -> list[int]:
    return sorted({number for number in (1, 10) if number < max_detections} | {max_detections})


def _check_groups(groups: Mapping[str, Sequence[int]], name_of_id: Mapping[int, str]) -> None:
    for group, members in groups.items():
        if group == "all":
            raise ValueError("got a group named 'all'; that name stands for every category")
        if unknown := sorted(set(members) - set(name_of_id)):
            raise ValueError(
                f"group {group!r}: {len(unknown)} category ids are not in the ground truth's {len(name_of_id)}, "
                f"the first {unknown[:5]}"
            )


class _Data:
    """A ground truth that was checked, in numbers that every backend takes."""

    def __init__(self, ground_truth: Mapping, with_masks: bool) -> None:
        sizes = image_sizes(ground_truth)
        category_ids = sorted(as_id(category["id"]) for category in ground_truth["categories"])
        # Results may give an id as 7 or as 7.0: equal keys.
        self._image = {image_id: number for number, image_id in enumerate(sorted(sizes), start=1)}
        self._category = {category_id: number for number, category_id in enumerate(category_ids, start=1)}
        self._sizes = {self._image[image_id]: size for image_id, size in sizes.items()}
        annotations = ground_truth["annotations"]
        self._objects: list[dict] = [
            {
                "id": number,
                "image_id": self._image[as_id(annotation["image_id"])],
                "category_id": self._category[as_id(annotation["category_id"])],
                "bbox": list(annotation["bbox"]),
                "iscrowd": int(annotation.get("iscrowd") or annotation.get("ignore") or 0),
            }
            for number, annotation in enumerate(annotations, start=1)
        ]
        # Drawn once, for all kinds. A mask without a pixel is none.
        self._masks: list[dict | None] = [None] * len(annotations)
        if with_masks:
            drawn = [
                rle.of_segmentation(annotation.get("segmentation"), self._sizes[entry["image_id"]])
                or self._full(entry["image_id"], 0)
                for annotation, entry in zip(annotations, self._objects, strict=True)
            ]
            num_pixels = rle.areas(drawn, "ground truth, annotations")
            self._masks = [mask if number else None for mask, number in zip(drawn, num_pixels, strict=True)]
        else:
            num_pixels = [0] * len(annotations)
        self.num_without_mask = self._masks.count(None)
        self.num_areas_replaced = 0
        for annotation, entry, number in zip(annotations, self._objects, num_pixels, strict=True):
            entry["area"], is_given = believed_area(annotation, number)
            # A crowd is ignored at any size.
            self.num_areas_replaced += not is_given and not entry["iscrowd"]
        # Of LVIS, by image: the classes that were looked for, and those of which there may be more.
        present = collections.defaultdict(set)
        for entry in self._objects:
            present[entry["image_id"]].add(entry["category_id"])
        self._searched: dict[int, set[int]] = {}
        self._inexhaustive: set[tuple[int, int]] = set()
        for image_entry in ground_truth["images"]:
            image = self._image[as_id(image_entry["id"])]
            absent, more = (
                {self._category[i] for i in map(as_id, image_entry.get(field, ())) if i in self._category}
                for field in ("neg_category_ids", "not_exhaustive_category_ids")
            )
            self._searched[image] = present[image] | absent
            self._inexhaustive |= {(image, category) for category in more}

    def federated(self, results: Sequence[dict], max_detections: int) -> list[dict]:
        """Return the results that LVIS scores: the best of each image, of classes that it was searched for."""
        of_image = collections.defaultdict(list)
        for result in results:
            of_image[self._image[result["image_id"]]].append(result)
        return [
            result
            for image, own in of_image.items()
            for result in sorted(own, key=lambda entry: entry["score"], reverse=True)[:max_detections]
            if self._category[result["category_id"]] in self._searched[image]
        ]

    def entries(self, results: Sequence[dict], kind: str, federated: bool) -> tuple[dict, dict]:
        """Return ground truth and detections of one kind as COCO datasets, with only what an evaluator reads."""
        images = [{"id": image, "height": size[0], "width": size[1]} for image, size in self._sizes.items()]
        categories = [{"id": number, "name": str(number)} for number in self._category.values()]
        objects = self._objects
        if kind != "bbox":
            objects = [
                entry | ({"segmentation": mask} if mask is not None else self._without_mask(entry))
                for entry, mask in zip(self._objects, self._masks, strict=True)
            ]
        field = "bbox" if kind == "bbox" else "segmentation"
        shapes = [result[field] for result in results]
        areas = [box[2] * box[3] for box in shapes] if kind == "bbox" else rle.areas(shapes)
        detected = [
            {
                "id": number,
                "image_id": self._image[result["image_id"]],
                "category_id": self._category[result["category_id"]],
                "score": result["score"],
                "iscrowd": 0,
                field: shape,
                "area": area,
            }
            for number, (result, shape, area) in enumerate(zip(results, shapes, areas, strict=True), start=1)
        ]
        if federated:
            objects = objects + self._regions_to_ignore(kind, len(objects))
            # As lvis-api does. What has no area also lies in no region.
            detected = [entry for entry in detected if entry["area"]]
        shared = {"images": images, "categories": categories}
        return {**shared, "annotations": objects}, {**shared, "annotations": detected}

    def _without_mask(self, entry: dict) -> dict:
        x, y, w, h = entry["bbox"]
        polygon = [x, y, x, y + h, x + w, y + h, x + w, y]
        return {"segmentation": rle.of_segmentation([polygon], self._sizes[entry["image_id"]]), "iscrowd": 1}

    def _regions_to_ignore(self, kind: str, num_objects: int) -> list[dict]:
        return [
            {
                "id": num_objects + number,
                "image_id": image,
                "category_id": category,
                "bbox": _EVERYWHERE,
                "area": 1.0,
                "iscrowd": 1,
                **({} if kind == "bbox" else {"segmentation": self._full(image)}),
            }
            for number, (image, category) in enumerate(sorted(self._inexhaustive), start=1)
        ]

    def _full(self, image: int, value: int = 1) -> dict:
        """Return the mask with all of an image in it, or with nothing."""
        height, width = self._sizes[image]
        counts = [0, height * width] if value else [height * width]
        return rle.of_segmentation({"size": [height, width], "counts": counts}, (height, width)) or {}


@dataclasses.dataclass(frozen=True)
class _Scores:
    """What a backend accumulated.

    Attributes:
      arrays: "precision" and "recall".
      thresholds: IoU thresholds.
      areas: names of the ranges of area.
      counts: numbers of detections.
    """

    arrays: Mapping[str, np.ndarray]
    thresholds: np.ndarray
    areas: Sequence[str]
    counts: Sequence[int]

    def mean(self, columns: Sequence[int], metric: _Metric) -> float | None:
        """Return a number over some classes, as `COCOeval.summarize` does; None without ground truth."""
        values = self.arrays[metric.array]
        values = values[..., columns, self.areas.index(metric.area), self.counts.index(metric.num_detections)]
        if metric.threshold is not None:
            values = values[np.isclose(self.thresholds, metric.threshold)]
        # -1 stands for a class without ground truth.
        values = values[values > -1]
        return float(np.mean(values)) if len(values) else None


def _match(datasets: Sequence[dict], kind: str, backend: str, max_detections: int) -> _Scores:
    """Run an evaluator up to its precision and recall arrays."""
    # pycocotools prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = _evaluator(datasets, kind, backend)
        evaluator.params.maxDets = _detection_counts(max_detections)
        evaluator.evaluate()
        evaluator.accumulate()
    params = evaluator.params
    accumulated = evaluator.eval
    arrays = {name: np.asarray(accumulated[name]) for name in ("precision", "recall")}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise FloatingPointError(f"{backend} found a {kind} precision or recall that is not finite")
    return _Scores(arrays, np.asarray(params.iouThrs), list(params.areaRngLbl), list(params.maxDets))


def _evaluator(datasets: Sequence[dict], kind: str, backend: str) -> Any:
    """Return a backend's evaluator of ground truth and detections; all have pycocotools' interface."""
    if backend == "hotcoco":
        hotcoco = importlib.import_module(backend)
        truth, detected = map(hotcoco.COCO, datasets)
        return hotcoco.COCOeval(truth, detected, kind)
    coco, evaluator_class = {
        "faster_coco_eval": ("faster_coco_eval", "faster_coco_eval.COCOeval_faster"),
        "pycocotools": ("pycocotools.coco", "pycocotools.cocoeval.COCOeval"),
    }[backend]
    package, _, name = evaluator_class.rpartition(".")
    sources = []
    for dataset in datasets:
        source = importlib.import_module(coco).COCO()
        # Its own copies: pycocotools writes into the entries.
        source.dataset = {key: [dict(entry) for entry in entries] for key, entries in dataset.items()}
        source.createIndex()
        sources.append(source)
    return getattr(importlib.import_module(package), name)(*sources, iouType=kind)


def _harmonic_mean(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return None
    return 2 * first * second / (first + second) if first + second > 0 else 0.0


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
