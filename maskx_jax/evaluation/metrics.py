"""Average precision and recall as COCO and LVIS define them, for all classes and for groups of classes.

Detections are matched once for each kind, over all classes; what is reported for a group or a class is a mean over a
slice of the array `precision[threshold, recall, class, area, number of detections]`. For a group this equals
pycocotools with `params.catIds` restricted to the group. All classes share the 100 detections an image, because the
detector shares them before anything is scored.

Some things differ from handing the files to pycocotools as they are:

- Ground-truth objects without a mask cannot be scored as `segm`. They become regions to ignore, like crowds, with their
  box as the mask: a detection of the same class that lies in one is neither right nor wrong, and no detection is
  missed. Their number is reported. A mask without a single pixel is none.
- Images, categories and annotations are numbered anew, in the order of their ids: backends read ids through float64 or
  take no negative ones, and pycocotools takes a match with annotation id 0 for no match, and loses annotations that
  share an id.
- `"ignore": 1` makes a region to ignore, as `prepare` does; pycocotools reads only `iscrowd`.
- An `area` that cannot be right (see `coco.areas`) is replaced by that of the mask, or of the box.
- The area of a detection scored as `segm` is that of its mask, also where it comes with a box (pycocotools would take
  the box's).

LVIS (Gupta, Dollar and Girshick, 2019) says of each image which classes were looked for. What it asks for is brought
into a form that any matcher of COCO's scores by the same rules, with lvis-api's numbers: the best 300 detections of an
image are kept; those of classes that are neither in the image nor known to be absent (`neg_category_ids`), and those
without area, are left out; of a class that is not annotated exhaustively (`not_exhaustive_category_ids`) all of the
image is a region to ignore.
"""

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence

from maskx_jax.evaluation.checks import KINDS, as_id, check_ground_truth, check_results
from maskx_jax.evaluation.ground_truth import NumberedGroundTruth
from maskx_jax.evaluation.matching import Metric, check_backend, detection_counts, match

ALL_KINDS = (*KINDS, "boundary")
_FREQUENCIES = ("r", "c", "f")


def metric_definitions(max_detections: int = 100, has_frequencies: bool = False) -> dict[str, Metric]:
    """Return what is reported of each kind and group, by name and in COCO's order.

    Args:
      max_detections: detections an image that count.
      has_frequencies: whether the categories are rare, common or frequent (LVIS).
    """
    most = max_detections
    metrics = {
        "AP": Metric("precision", None, "all", most),
        "AP50": Metric("precision", 0.5, "all", most),
        "AP75": Metric("precision", 0.75, "all", most),
        "APs": Metric("precision", None, "small", most),
        "APm": Metric("precision", None, "medium", most),
        "APl": Metric("precision", None, "large", most),
    }
    if has_frequencies:
        metrics |= {f"AP{letter}": Metric("precision", None, "all", most, letter) for letter in _FREQUENCIES}
    metrics |= {f"AR{number}": Metric("recall", None, "all", number) for number in detection_counts(most)}
    return metrics | {
        "ARs": Metric("recall", None, "small", most),
        "ARm": Metric("recall", None, "medium", most),
        "ARl": Metric("recall", None, "large", most),
    }


def has_frequencies(ground_truth: Mapping) -> bool:
    """Return whether the categories of a COCO instances dict are rare ("r"), common or frequent, as those of LVIS."""
    categories = ground_truth["categories"]
    return bool(categories) and all(category.get("frequency") in _FREQUENCIES for category in categories)


def is_federated(ground_truth: Mapping) -> bool:
    """Return whether the images of a COCO instances dict say which classes were looked for, as those of LVIS do."""
    fields = ("neg_category_ids", "not_exhaustive_category_ids")
    return any(field in image for image in ground_truth["images"] for field in fields)


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
def score(
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
        faster-coco-eval, the only one that has it.
      groups: category ids by the name of the group, such as `{"A": [...], "B": [...]}`.
      backend: who matches detections with ground truth.
      max_detections: detections that count: the best of an image and class (COCO), or of an image (LVIS). None takes
        the usual number, 100 or 300.

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
      ValueError: ground truth or results that `checks` refuses; an unknown backend; a group named like another
        entry, without categories or with unknown ones.
      ModuleNotFoundError: the backend is not installed.
    """
    groups = dict(groups or {})
    check_backend(backend)
    if not kinds:
        raise ValueError(f"got no kinds; expected some of {', '.join(ALL_KINDS)}")
    checked_kinds = list(dict.fromkeys("segm" if kind == "boundary" else kind for kind in kinds))
    check_ground_truth(ground_truth, checked_kinds)
    check_results(results, ground_truth, checked_kinds)
    classes = _Classes(ground_truth, groups)
    federated = is_federated(ground_truth)
    if max_detections is None:
        max_detections = 300 if federated else 100
    if max_detections < 1:
        raise ValueError(f"got max_detections {max_detections}; expected at least 1")
    definitions = metric_definitions(max_detections, has_frequencies(ground_truth))

    data = NumberedGroundTruth(ground_truth, "segm" in checked_kinds)
    chosen = data.federated(results, max_detections) if federated else list(results)
    metrics: dict = {"max_detections": max_detections, "federated": federated}
    metrics["num_areas_replaced"] = data.num_areas_replaced
    if "segm" in checked_kinds:
        metrics["num_ignored_without_mask"] = data.num_without_mask
    per_class: dict[str, dict] = {
        name: {"groups": [group for group in groups if column in classes.groups[group]]}
        for column, name in enumerate(classes.names)
    }
    for kind in kinds:
        matcher = "faster_coco_eval" if kind == "boundary" else backend
        accumulated = match(data.entries(chosen, kind, federated), kind, matcher, max_detections)
        metrics[kind] = {
            group: {name: accumulated.mean(classes.columns(group, m), m) for name, m in definitions.items()}
            for group in classes.groups
        }
        for column, name in enumerate(classes.names):
            per_class[name][kind] = accumulated.mean([column], definitions["AP"])
    if "A" in groups and "B" in groups:
        metrics["harmonic_mean"] = {
            kind: _harmonic_mean(metrics[kind]["A"]["AP"], metrics[kind]["B"]["AP"]) for kind in kinds
        }
    return metrics | {"per_class": per_class}


class _Classes:
    """The classes of a ground truth as columns of a matcher's arrays: in the order of their ids.

    Attributes:
      names: by column.
      groups: the columns of each group; "all" comes first.
    """

    def __init__(self, ground_truth: Mapping, groups: Mapping[str, Sequence[int]]) -> None:
        categories = sorted(ground_truth["categories"], key=lambda category: as_id(category["id"]))
        self.names = [category["name"] for category in categories]
        column_of_id = {as_id(category["id"]): column for column, category in enumerate(categories)}
        self.groups = {"all": list(range(len(categories)))}
        for group, members in groups.items():
            if group == "all":
                raise ValueError("got a group named 'all'; that name stands for every category")
            if unknown := sorted(set(members) - set(column_of_id)):
                raise ValueError(
                    f"group {group!r}: {len(unknown)} category ids are not in the ground truth's {len(categories)}, "
                    f"the first {unknown[:5]}"
                )
            self.groups[group] = sorted({column_of_id[member] for member in members})
        self._frequencies = [category.get("frequency") for category in categories]

    def columns(self, group: str, metric: Metric) -> list[int]:
        """Return the columns of a group that a metric is a mean over."""
        return [i for i in self.groups[group] if metric.frequency in (None, self._frequencies[i])]


def _harmonic_mean(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return None
    return 2 * first * second / (first + second) if first + second > 0 else 0.0
