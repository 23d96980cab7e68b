"""Average precision and recall as COCO defines them, for all classes and for groups of classes.

The matching of detections with ground truth is done by pycocotools, the authority, or by faster-coco-eval, whose
recalls are the same to the last bit and whose precisions differ by 2.2e-16 at most: pycocotools adds that much to the
denominator. It runs once for each kind, over all classes; what is reported for a group or a class is a mean over a
slice of the same array `precision[threshold, recall, class, area, number of detections]`. For a group this equals
pycocotools with `params.catIds` restricted to the group. The 100 detections an image are shared by all classes, because
the detector shares them before anything is scored.

Three things differ from handing the files to pycocotools as they are:

- Ground-truth objects without a mask cannot be scored as `segm`. They become regions to ignore, like crowds, with their
  box as the mask: a detection of the same class that lies in one is neither right nor wrong, and no detection is
  missed. Their number is reported.
- Annotations are numbered anew: pycocotools takes a match with annotation id 0 for no match, and loses annotations that
  share an id.
- The area of a detection scored as `segm` is that of its mask, also where it comes with a box (pycocotools would take
  the box's).
"""

import contextlib
import gc
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import faster_coco_eval
import numpy as np
from faster_coco_eval import mask as mask_coder
from pycocotools import coco, cocoeval

from maskx_jax.evaluation.coco_results import KINDS, check_results

Backend = Literal["faster_coco_eval", "pycocotools", "hotcoco"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

# The twelve numbers in COCO's order: array, IoU threshold (None: mean over all), area, most detections an image.
_TITLES = {"bbox": "box", "segm": "mask", "boundary": "edge"}
_METRICS: dict[str, tuple[str, float | None, str, int]] = {
    "AP": ("precision", None, "all", 100),
    "AP50": ("precision", 0.5, "all", 100),
    "AP75": ("precision", 0.75, "all", 100),
    "APs": ("precision", None, "small", 100),
    "APm": ("precision", None, "medium", 100),
    "APl": ("precision", None, "large", 100),
    "AR1": ("recall", None, "all", 1),
    "AR10": ("recall", None, "all", 10),
    "AR100": ("recall", None, "all", 100),
    "ARs": ("recall", None, "small", 100),
    "ARm": ("recall", None, "medium", 100),
    "ARl": ("recall", None, "large", 100),
}


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
    backend: Backend = "faster_coco_eval",
) -> dict:
    """Score COCO results against a COCO ground truth.

    Args:
      ground_truth: a COCO instances dict. It is not changed.
      results: COCO results entries. They are not changed.
      kinds: what to compare, of "bbox", "segm" and "boundary": masks again, with the smaller of their IoU and the IoU
        of their borders, bands of 2 % of the image's diagonal (Boundary IoU, Cheng et al. 2021). Only the backend
        "faster_coco_eval" has it.
      groups: category ids by the name of the group, such as `{"A": [...], "B": [...]}`.
      backend: who matches detections with ground truth. "hotcoco" is by far the fastest and young; it is a package of
        its own.

    Returns:
      A dict fit for JSON; numbers are fractions in 0..1, or None where there is no ground truth to take a mean over:

      - for each kind, `{"all": {...}, "A": {...}, ...}` with the twelve numbers AP, AP50, AP75, APs, APm, APl, AR1,
        AR10, AR100, ARs, ARm, ARl;
      - `"per_class"`: by category name, `{"groups": [...], "bbox": AP, "segm": AP}`;
      - `"harmonic_mean"`: by kind, the harmonic mean of AP of A and AP of B; only if there are groups A and B;
      - `"num_ignored_without_mask"`: objects of the ground truth not scored as segm; only if segm is asked for.

    Raises:
      ValueError: results that `check_results` refuses; an unknown backend; a group named like another entry, without
        categories or with unknown ones; ground truth that lacks what is needed or repeats category names.
      ModuleNotFoundError: hotcoco is asked for and not installed.
    """
    groups = dict(groups or {})
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; expected one of {sorted(BACKENDS)}")
    if not kinds:
        raise ValueError(f"got no kinds; expected some of {list(_TITLES)}")
    if "boundary" in kinds and backend != "faster_coco_eval":
        raise ValueError(f"{backend} has no boundary AP; expected backend 'faster_coco_eval'")
    check_results(results, ground_truth, list(dict.fromkeys("segm" if kind == "boundary" else kind for kind in kinds)))
    name_of_id = _category_names(ground_truth)
    category_ids = sorted(name_of_id)
    _check_groups(groups, name_of_id)

    columns_of_group = {"all": list(range(len(category_ids)))}
    for group, members in groups.items():
        columns_of_group[group] = sorted(category_ids.index(member) for member in set(members))
    metrics: dict = {}
    per_class: dict[str, dict] = {
        name_of_id[i]: {"groups": [group for group, members in groups.items() if i in members]} for i in category_ids
    }
    for kind in kinds:
        objects, num_without_mask = _ground_truth_objects(ground_truth, kind)
        if kind == "segm":
            metrics["num_ignored_without_mask"] = num_without_mask
        evaluator = _match(ground_truth, objects, _detected_objects(results, kind, backend), kind, backend)
        metrics[kind] = {
            group: {name: _mean(evaluator, columns, name) for name in _METRICS}
            for group, columns in columns_of_group.items()
        }
        for column, category_id in enumerate(category_ids):
            per_class[name_of_id[category_id]][kind] = _mean(evaluator, [column], "AP")
    if "A" in groups and "B" in groups:
        metrics["harmonic_mean"] = {
            kind: _harmonic_mean(metrics[kind]["A"]["AP"], metrics[kind]["B"]["AP"]) for kind in kinds
        }
    metrics["per_class"] = per_class
    return metrics


def format_table(metrics: Mapping) -> str:
    """Return what `evaluate` found as plain text, in percent: a row per kind and group."""
    kinds = [kind for kind in _TITLES if kind in metrics]
    group_width = max(5, *(len(group) for kind in kinds for group in metrics[kind]))
    lines = [f"{'':5}{'':{group_width}}" + "".join(f"{name:>7}" for name in _METRICS)]
    for kind in kinds:
        for group, values in metrics[kind].items():
            numbers = "".join(f"{_percent(values[name]):>7}" for name in _METRICS)
            lines.append(f"{_TITLES[kind]:5}{group:{group_width}}{numbers}")
    if "harmonic_mean" in metrics:
        means = ", ".join(f"{_TITLES[kind]} {_percent(metrics['harmonic_mean'][kind])}" for kind in kinds)
        lines.append(f"harmonic mean of AP of A and B: {means}")
    if metrics.get("num_ignored_without_mask"):
        lines.append(f"ground-truth objects without a mask, ignored for mask AP: {metrics['num_ignored_without_mask']}")

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


def _category_names(ground_truth: Mapping) -> dict[int, str]:
    categories = ground_truth["categories"]
    name_of_id = {category["id"]: str(category["name"]) for category in categories}
    if len(name_of_id) != len(categories) or len(set(name_of_id.values())) != len(categories):
        raise ValueError(
            f"ground truth: got {len(categories)} categories with {len(name_of_id)} different ids and "
            f"{len(set(name_of_id.values()))} different names; expected as many of each"
        )
    return name_of_id


def _check_groups(groups: Mapping[str, Sequence[int]], name_of_id: Mapping[int, str]) -> None:
    for group, members in groups.items():
        if group == "all":
            raise ValueError("got a group named 'all'; that name stands for every category")
        if unknown := sorted(set(members) - set(name_of_id)):
            raise ValueError(
                f"group {group!r}: {len(unknown)} category ids are not in the ground truth's {len(name_of_id)}, "
                f"the first {unknown[:5]}"
            )


def _ground_truth_objects(ground_truth: Mapping, kind: str) -> tuple[list[dict], int]:
    """Return annotations that hold only what an evaluator reads, and how many are ignored for having no mask."""
    size_of_image = {int(image["id"]): (image.get("height"), image.get("width")) for image in ground_truth["images"]}
    category_ids = {category["id"] for category in ground_truth["categories"]}
    objects, num_without_mask = [], 0
    for number, annotation in enumerate(ground_truth["annotations"], start=1):
        where = f"ground truth, annotation id {annotation.get('id')}"
        if missing := [key for key in ("image_id", "category_id", "bbox", "area") if annotation.get(key) is None]:
            raise ValueError(f"{where}: missing {missing}")
        entry = {
            "id": number,
            "image_id": int(annotation["image_id"]),
            "category_id": annotation["category_id"],
            "bbox": annotation["bbox"],
            "area": annotation["area"],
            "iscrowd": int(annotation.get("iscrowd", 0)),
        }
        if entry["image_id"] not in size_of_image or entry["category_id"] not in category_ids:
            raise ValueError(
                f"{where}: image_id {entry['image_id']} or category_id {entry['category_id']} is unknown to the file"
            )
        if kind != "bbox":
            height, width = size_of_image[entry["image_id"]]
            segmentation = _usable_mask(annotation)
            if segmentation is None:
                num_without_mask += 1
                entry["iscrowd"] = 1
                x, y, w, h = annotation["bbox"]
                segmentation = [[x, y, x, y + h, x + w, y + h, x + w, y]]
            elif isinstance(segmentation, dict) and list(segmentation["size"]) != [height, width]:
                raise ValueError(
                    f"{where}: segmentation of size {segmentation['size']}; expected the image's {[height, width]}"
                )
            entry["segmentation"] = segmentation
        objects.append(entry)
    return objects, num_without_mask


def _usable_mask(annotation: Mapping) -> dict | list | None:
    """Return the run lengths or the polygons of 3 points and more, or None if there are none."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return segmentation if segmentation.get("counts") else None
    # pycocotools would read "polygons" of 2 points as boxes, and fail on empty ones.
    return [polygon for polygon in segmentation or [] if len(polygon) >= 6] or None


def _detected_objects(results: Sequence[dict], kind: str, backend: Backend) -> list[dict]:
    """Return what `COCO.loadRes` makes of results of one kind, in new dicts; an empty list is no error."""
    field = "bbox" if kind == "bbox" else "segmentation"
    shapes = [result[field] for result in results]
    areas = [box[2] * box[3] for box in shapes] if kind == "bbox" else _mask_areas(shapes, backend)
    return [
        {
            "id": number,
            "image_id": result["image_id"],
            "category_id": result["category_id"],
            "score": result["score"],
            "iscrowd": 0,
            field: shape,
            "area": area,
        }
        for number, (result, shape, area) in enumerate(zip(results, shapes, areas, strict=True), start=1)
    ]


def _mask_areas(masks: list[dict], backend: Backend) -> list[int]:
    # Not by pycocotools 2.0.11: with NumPy 2 its `area` fails on lists of more than 255 masks.
    coder = _hotcoco().mask if backend == "hotcoco" else mask_coder
    areas: list[int] = coder.area(masks).tolist() if masks else []
    return areas


def _match(ground_truth: Mapping, objects: list[dict], detected: list[dict], kind: str, backend: Backend) -> Any:
    """Run an evaluator up to its precision and recall arrays, and return it."""
    datasets = [
        {
            "images": [{**image, "id": int(image["id"])} for image in ground_truth["images"]],
            "categories": [dict(category) for category in ground_truth["categories"]],
            "annotations": annotations,
        }
        for annotations in (objects, detected)
    ]
    # pycocotools prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = _evaluator(datasets, kind, backend)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def _evaluator(datasets: Sequence[dict], kind: str, backend: Backend) -> Any:
    """Return a backend's evaluator of ground truth and detections; all have pycocotools' interface."""
    if backend == "hotcoco":
        hotcoco = _hotcoco()
        truth, detected = map(hotcoco.COCO, datasets)
        return hotcoco.COCOeval(truth, detected, kind)
    module, evaluator_class = {
        "faster_coco_eval": (faster_coco_eval, faster_coco_eval.COCOeval_faster),
        "pycocotools": (coco, cocoeval.COCOeval),
    }[backend]
    sources = []
    for dataset in datasets:
        source = module.COCO()
        source.dataset = dataset
        source.createIndex()
        sources.append(source)
    return evaluator_class(*sources, iouType=kind)


def _hotcoco() -> Any:
    try:
        import hotcoco
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("backend 'hotcoco' needs a package: pip install hotcoco") from error
    return hotcoco


def _mean(evaluator: Any, columns: Sequence[int], name: str) -> float | None:
    """Return one of the twelve numbers over some classes, as `COCOeval.summarize` does; None without ground truth."""
    array, threshold, area, num_detections = _METRICS[name]
    params = evaluator.params
    values = np.asarray(evaluator.eval[array])
    values = values[..., columns, params.areaRngLbl.index(area), list(params.maxDets).index(num_detections)]
    if threshold is not None:
        values = values[np.isclose(params.iouThrs, threshold)]
    # -1 stands for a class without ground truth.
    values = values[values > -1]
    return float(np.mean(values)) if len(values) else None


def _harmonic_mean(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return None
    return 2 * first * second / (first + second) if first + second > 0 else 0.0


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
