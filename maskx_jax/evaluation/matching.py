"""The back ends that match detections with ground truth: hotcoco, faster-coco-eval, and pycocotools, the authority.

Their recalls are the same to the last bit, their precisions within 2.2e-16, which pycocotools adds to a denominator.
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# From the fastest to the slowest.
BACKENDS = ("hotcoco", "faster_coco_eval", "pycocotools")

# Pairs of image and class at a time: faster-coco-eval keeps 1.8 kB for each, hotcoco 0.1 kB, also where nothing is.
_MOST_PAIRS = 500_000


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


class Metric(NamedTuple):
    """A number that is a mean over a slice of one of the arrays; see `Scores.mean`."""

    array: str
    threshold: float | None  # None: mean over all IoU thresholds.
    area: str
    num_detections: int
    frequency: str | None = None


# Of the arrays below.
_CLASS_AXIS = -3


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a backend accumulated.

    Attributes:
      arrays: "precision" `t r c a d` and "recall" `t c a d`: by threshold, recall, class, area, number of detections.
      thresholds: IoU thresholds.
      areas: names of the ranges of area.
      counts: numbers of detections.
    """

    arrays: Mapping[str, np.ndarray]
    thresholds: np.ndarray
    areas: Sequence[str]
    counts: Sequence[int]

    def mean(self, columns: Sequence[int], metric: Metric) -> float | None:
        """Return a number over some classes, as `COCOeval.summarize` does; None without ground truth."""
        values = self.arrays[metric.array]
        values = values[..., columns, self.areas.index(metric.area), self.counts.index(metric.num_detections)]
        if metric.threshold is not None:
            values = values[np.isclose(self.thresholds, metric.threshold)]
        # -1 stands for a class without ground truth.
        values = values[values > -1]
        return float(np.mean(values)) if len(values) else None


def match(
    datasets: Sequence[dict],
    kind: str,
    backend: str,
    max_detections: int,
    sigmas: Sequence[float] | None = None,
    most_pairs: int = _MOST_PAIRS,
) -> Scores:
    """Match detections with ground truth; return precision and recall.

    Classes are matched apart from each other, so some of them at a time give the numbers of all at once.

    Args:
      datasets: ground truth and detections; see `NumberedGroundTruth.entries`.
      kind: "bbox", "segm", "boundary" or "keypoints".
      backend: one of `BACKENDS`; of boundaries, "faster_coco_eval", the only one that takes overlaps made elsewhere.
      max_detections: detections an image and class that count.
      sigmas: constants of OKS, of keypoints.
      most_pairs: pairs of image and class matched at a time, which bounds the memory.

    Raises:
      FloatingPointError: a precision or recall is not finite.
    """
    num_classes = max(1, most_pairs // max(1, len(datasets[0]["images"])))
    parts = [
        _match_at_once(part, kind, backend, max_detections, sigmas) for part in _split_classes(datasets, num_classes)
    ]
    arrays = {name: np.concatenate([part.arrays[name] for part in parts], _CLASS_AXIS) for name in parts[0].arrays}
    return dataclasses.replace(parts[0], arrays=arrays)


def _split_classes(datasets: Sequence[dict], num_classes: int) -> Iterator[Sequence[dict]]:
    """Yield the datasets with `num_classes` of their classes at a time, in order."""
    categories = datasets[0]["categories"]
    if len(categories) <= num_classes:
        yield datasets
        return
    starts = range(0, len(categories), num_classes)
    part_of_id = {category["id"]: place // num_classes for place, category in enumerate(categories)}
    annotations: list[list[list[dict]]] = [[[] for _ in starts] for _ in datasets]
    for split, dataset in zip(annotations, datasets, strict=True):
        for annotation in dataset["annotations"]:
            split[part_of_id[annotation["category_id"]]].append(annotation)
    for start, *split in zip(starts, *annotations, strict=True):
        shared = {"images": datasets[0]["images"], "categories": categories[start : start + num_classes]}
        yield [{**shared, "annotations": chosen} for chosen in split]


def _match_at_once(
    datasets: Sequence[dict], kind: str, backend: str, max_detections: int, sigmas: Sequence[float] | None
) -> Scores:
    # pycocotools prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        if kind == "boundary":
            # Areas are given, so only the overlaps tell boundaries from boxes.
            evaluator = _evaluator(datasets, "bbox", backend)
            evaluator.computeIoU = functools.partial(
                _boundary_ious, evaluator.gt_dataset, evaluator.dt_dataset, evaluator.params
            )
        else:
            evaluator = _evaluator(datasets, kind, backend)
        evaluator.params.maxDets = detection_counts(max_detections)
        if sigmas is not None:
            # pycocotools computes with an array; hotcoco takes a list.
            evaluator.params.kpt_oks_sigmas = list(sigmas) if backend == "hotcoco" else np.array(sigmas)
            # faster-coco-eval would leave out classes without objects.
            evaluator.params.catIds = [category["id"] for category in datasets[0]["categories"]]
        evaluator.evaluate()
        evaluator.accumulate()
    params = evaluator.params
    accumulated = evaluator.eval
    arrays = {name: np.asarray(accumulated[name]) for name in ("precision", "recall")}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise FloatingPointError(f"{backend} found a {kind} precision or recall that is not finite")
    return Scores(arrays, np.asarray(params.iouThrs), list(params.areaRngLbl), list(params.maxDets))


def _boundary_ious(truth: Any, detections: Any, params: Any, image_id: int, category_id: int) -> np.ndarray:
    """Return what `computeIoU` of faster-coco-eval's evaluator would, of its two datasets and its parameters."""
    # It needs OpenCV, which scoring other kinds does without.
    from maskx_jax.evaluation import boundary_iou

    objects, detected = (dataset.get(image_id, category_id) for dataset in (truth, detections))
    best = sorted(detected, key=lambda entry: entry["score"], reverse=True)[: params.maxDets[-1]]
    return boundary_iou.ious(
        [entry["segmentation"] for entry in best],
        [entry["segmentation"] for entry in objects],
        [entry["iscrowd"] for entry in objects],
        # What is below all thresholds matches at none.
        least=params.iouThrs[0],
    )


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


def detection_counts(max_detections: int) -> list[int]:
    """Return the numbers of detections an image that recall is reported at: 1, 10 and all that count."""
    return sorted({number for number in (1, 10) if number < max_detections} | {max_detections})
