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
- A boundary whose width ends on half a pixel gets the even number of pixels, as in the code of its authors;
  faster-coco-eval alone takes a pixel less in some images, those of 225 x 300 for instance.

Keypoints are matched by OKS, the similarity of the labelled keypoints of an object to those of a detection: the mean of
`exp(-distance**2 / (2 * area * (2 * sigma)**2))`. The best 20 detections of an image and class count. Objects of which
no keypoint is labelled are ignored, as regions that their doubled box bounds; classes without keypoints have no number.

LVIS (Gupta, Dollar and Girshick, 2019) says of each image which classes were looked for. What it asks for is brought
into a form that any matcher of COCO's scores by the same rules, with lvis-api's numbers: the best 300 detections of an
image are kept; those of classes that are neither in the image nor known to be absent (`neg_category_ids`), and those
without area, are left out; of a class that is not annotated exhaustively (`not_exhaustive_category_ids`) all of the
image is a region to ignore.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from maskx_jax.coco.garbage import no_garbage_collection
from maskx_jax.evaluation.checks import KINDS, as_id, check_ground_truth, check_results, keypoint_sigmas
from maskx_jax.evaluation.ground_truth import NumberedGroundTruth
from maskx_jax.evaluation.matching import Metric, check_backend, detection_counts, match

ALL_KINDS = (*KINDS, "boundary", "keypoints")
_FREQUENCIES = ("r", "c", "f")
_MAX_POSES = 20


def metric_definitions(max_detections: int = 100, has_frequencies: bool = False) -> dict[str, Metric]:
    """Return what is reported of boxes, masks and boundaries in each group, by name and in COCO's order.

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


def keypoint_definitions() -> dict[str, Metric]:
    """Return what is reported of keypoints, by name and in COCO's order."""
    return {
        f"{letters}{suffix}": Metric(array, threshold, area, _MAX_POSES)
        for letters, array in (("AP", "precision"), ("AR", "recall"))
        for suffix, threshold, area in (
            *(("", None, "all"), ("50", 0.5, "all"), ("75", 0.75, "all")),
            *(("m", None, "medium"), ("l", None, "large")),
        )
    }


def definitions_of(kind: str, max_detections: int = 100, has_frequencies: bool = False) -> dict[str, Metric]:
    """Return what is reported of one kind; see `metric_definitions`."""
    return keypoint_definitions() if kind == "keypoints" else metric_definitions(max_detections, has_frequencies)


def groups_of(kind: str, groups: Collection[str]) -> list[str]:
    """Return the groups of classes that a kind is reported for. Others than "all" are about who had masks."""
    return ["all"] if kind == "keypoints" else list(groups)


def has_frequencies(ground_truth: Mapping) -> bool:
    """Return whether the categories of a COCO instances dict are rare ("r"), common or frequent, as those of LVIS."""
    categories = ground_truth["categories"]
    return bool(categories) and all(category.get("frequency") in _FREQUENCIES for category in categories)


def is_federated(ground_truth: Mapping) -> bool:
    """Return whether the images of a COCO instances dict say which classes were looked for, as those of LVIS do."""
    fields = ("neg_category_ids", "not_exhaustive_category_ids")
    return any(field in image for image in ground_truth["images"] for field in fields)


def usual_max_detections(federated: bool) -> int:
    """Return the number of detections that count by LVIS' rules, or by COCO's."""
    return 300 if federated else 100


@no_garbage_collection()
def score(
    ground_truth: Mapping,
    results: Iterable[dict],
    kinds: Sequence[str] = KINDS,
    groups: Mapping[str, Sequence[int]] | None = None,
    backend: str = "hotcoco",
    max_detections: int | None = None,
) -> dict:
    """Score COCO results against a COCO or LVIS ground truth.

    Args:
      ground_truth: a COCO instances dict. It is not changed.
      results: COCO results entries, gone through several times. They are not changed.
      kinds: of "bbox", "segm", "keypoints" and "boundary": masks by the smaller of their IoU and that of their
        boundaries, bands of 2 % of the image's diagonal (see `boundary_iou`), which faster-coco-eval matches for any
        backend.
      groups: category ids by the name of the group, such as `{"A": [...], "B": [...]}`.
      backend: who matches detections with ground truth.
      max_detections: that count: of an image and class (COCO), or of an image (LVIS). None takes the usual 100 or 300.
        Of keypoints 20 count.

    Returns:
      A dict fit for JSON; numbers are fractions in 0..1, or None where there is no ground truth to take a mean over:

      - for each kind, `{"all": {...}, "A": {...}, ...}` with the numbers that `definitions_of` names; of keypoints
        only "all";
      - `"per_class"`: by category name, `{"groups": [...], "bbox": AP, "segm": AP}`;
      - `"harmonic_mean"`: by kind, the harmonic mean of AP of A and AP of B; only if there are groups A and B;
      - `"num_ignored_without_mask"`: objects of the ground truth not scored as segm; only if segm is asked for;
      - `"num_ignored_without_keypoints"`: objects of classes with keypoints not scored as keypoints, likewise;
      - `"num_areas_replaced"`: objects of the ground truth whose area cannot be right;
      - `"max_detections"`, and `"federated"`: whether LVIS' rules hold.

    Raises:
      ValueError: ground truth or results that `checks` refuses; an unknown backend; a group named like another
        entry, without categories or with unknown ones.
      ModuleNotFoundError: the backend is not installed.
    """
    check_backend(backend)
    checked_kinds = _checked_kinds(kinds)
    if isinstance(results, Iterator):
        results = list(results)
    check_ground_truth(ground_truth, checked_kinds)
    check_results(results, ground_truth, checked_kinds)
    classes = _Classes(ground_truth, groups or {})
    federated = is_federated(ground_truth)
    most = usual_max_detections(federated) if max_detections is None else max_detections
    if most < 1:
        raise ValueError(f"got max_detections {most}; expected at least 1")
    numbered = NumberedGroundTruth(ground_truth, "segm" in checked_kinds)
    chosen = numbered.federated(results, most) if federated else results
    metrics: dict = {"max_detections": most, "federated": federated, "num_areas_replaced": numbered.num_areas_replaced}
    if "segm" in checked_kinds:
        metrics["num_ignored_without_mask"] = numbered.num_without_mask
    sigmas = None
    if "keypoints" in checked_kinds:
        sigmas = keypoint_sigmas(ground_truth)
        metrics["num_ignored_without_keypoints"] = numbered.num_without_keypoints
    per_class: dict[str, dict] = {name: {"groups": classes.groups_of(i)} for i, name in enumerate(classes.names)}
    for kind in kinds:
        matcher = "faster_coco_eval" if kind == "boundary" else backend
        definitions = definitions_of(kind, most, has_frequencies(ground_truth))
        count, constants = (_MAX_POSES, sigmas) if kind == "keypoints" else (most, None)
        accumulated = match(numbered.entries(chosen, kind, federated), kind, matcher, count, constants)
        metrics[kind] = {
            group: {name: accumulated.mean(classes.columns(group, m), m) for name, m in definitions.items()}
            for group in groups_of(kind, classes.groups)
        }
        for column, name in enumerate(classes.names):
            per_class[name][kind] = accumulated.mean([column], definitions["AP"])
    return metrics | _harmonic_means(metrics, kinds) | {"per_class": per_class}


def _checked_kinds(kinds: Sequence[str]) -> list[str]:
    """Return what has to be sound for these kinds: boundaries are those of masks."""
    if not kinds:
        raise ValueError(f"got no kinds; expected some of {', '.join(ALL_KINDS)}")
    return list(dict.fromkeys("segm" if kind == "boundary" else kind for kind in kinds))


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

    def groups_of(self, column: int) -> list[str]:
        """Return the groups that a class is in, besides "all"."""
        return [group for group, columns in self.groups.items() if group != "all" and column in columns]

    def columns(self, group: str, metric: Metric) -> list[int]:
        """Return the columns of a group that a metric is a mean over."""
        return [i for i in self.groups[group] if metric.frequency in (None, self._frequencies[i])]


def _harmonic_means(metrics: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, dict]:
    """Return the harmonic means of AP of A and AP of B, where both are groups."""
    means = {
        kind: _harmonic_mean(*(metrics[kind][group]["AP"] for group in "AB"))
        for kind in kinds
        if {"A", "B"} <= metrics[kind].keys()
    }
    return {"harmonic_mean": means} if means else {}


def _harmonic_mean(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return None
    return 2 * first * second / (first + second) if first + second > 0 else 0.0
