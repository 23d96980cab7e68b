"""The detections of one model matched with the ground truth: which are right, and what is wrong with the others."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import hotcoco
import numpy as np

from maskx_jax.evaluation import metrics
from maskx_jax.evaluation.ground_truth import NumberedGroundTruth

# What a detection is at an IoU of 0.5. The errors are those of TIDE (Bolya et al., ECCV 2020), in its order.
OUTCOMES = ("correct", "class", "location", "both", "duplicate", "background", "ignored")
CORRECT, CLASS, LOCATION, BOTH, DUPLICATE, BACKGROUND, IGNORED = range(len(OUTCOMES))
SAME, BACKGROUND_BELOW = 0.5, 0.1
_EVERY_AREA = [0.0, 1e10]
_AT_ONCE = 500


@dataclasses.dataclass(frozen=True)
class Matches:
    """Detections and objects of one kind. Images and classes are numbered from 0 in the order of their ids.

    Attributes:
      detection: int `n`, the place of each detection in the results of its model.
      image: int `n`.
      label: int `n`, its class.
      score: float64 `n`.
      matched: bool `10 n`, whether it found an object that counts, at each IoU threshold of COCO.
      ignored: bool `10 n`, whether it counts neither as right nor as wrong.
      object_image: int `m`, of the objects that count.
      object_label: int `m`.
      object_number: int `m`, the place of each in the annotations.
      missed: bool `m`, whether no detection found it at an IoU of 0.5.
      num_images: of the ground truth.
      num_classes: of the ground truth.
    """

    detection: np.ndarray
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    object_image: np.ndarray
    object_label: np.ndarray
    object_number: np.ndarray
    missed: np.ndarray
    num_images: int
    num_classes: int


class Prepared:
    """A ground truth, made ready once for the results of all models.

    Attributes:
      area: float64 `m`, the area of each annotation that decides whether its object is small or large.
    """

    def __init__(self, ground_truth: Mapping[str, Any], kinds: Sequence[str], max_detections: int) -> None:
        self._numbered = NumberedGroundTruth(ground_truth, "segm" in kinds)
        self._federated = metrics.is_federated(ground_truth)
        self._most = max_detections
        objects = self._numbered.entries([], "bbox", False)[0]["annotations"]
        self.area = np.array([entry["area"] for entry in objects], np.float64)

    def scored(self, results: Sequence[dict]) -> list[dict]:
        """Return the results that are scored: all of them by COCO's rules, by those of LVIS the best of each image."""
        return self._numbered.federated(results, self._most) if self._federated else list(results)

    def datasets(self, results: Sequence[dict], kind: str) -> tuple[dict, dict]:
        """Return ground truth and detections as COCO datasets; see `NumberedGroundTruth.entries`."""
        return self._numbered.entries(results, kind, self._federated)

    def evaluator(self, datasets: Sequence[dict], kind: str) -> Any:
        """Return hotcoco's evaluator of two datasets, evaluated and accumulated, for objects of any area."""
        truth, found = map(hotcoco.COCO, datasets)
        evaluator = hotcoco.COCOeval(truth, found, kind)
        evaluator.params.maxDets = [self._most]
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [_EVERY_AREA], ["all"]
        evaluator.evaluate()
        evaluator.accumulate()
        return evaluator


def read_matches(evaluator: Any, datasets: Sequence[dict], places: Sequence[int]) -> tuple[Matches, np.ndarray]:
    """Return what an evaluator matches, and int `n`, the ids of the detections.

    Args:
      evaluator: of `Prepared.evaluator`. What it has accumulated is lost.
      datasets: that it evaluates.
      places: in the results of the model, of each of its detections by id from 1.
    """
    images = [image["id"] for image in datasets[0]["images"]]
    # Few images at a time: the lists of all cells would fill some gigabytes.
    parts = []
    for begin in range(0, max(1, len(images)), _AT_ONCE):
        evaluator.params.imgIds = images[begin : begin + _AT_ONCE]
        evaluator.evaluate()
        parts.append(_read(evaluator.evalImgs, np.asarray(evaluator.params.iouThrs)))
    found: dict[str, Any] = {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}
    ids = found.pop("id")
    found |= {"num_images": len(images), "num_classes": len(datasets[0]["categories"])}
    return Matches(detection=np.asarray(places, int)[ids - 1], **found), ids


def _read(cells: Sequence[Mapping[str, Any] | None], thresholds: np.ndarray) -> dict[str, np.ndarray]:
    """Return the fields of `Matches` from the cells of an evaluator, one for each image and class, and `id`."""
    at_half = int(np.argmin(np.abs(thresholds - SAME)))
    detections: list[tuple] = []
    objects: list[tuple] = []
    flags: dict[str, list[np.ndarray]] = {"matched": [], "ignored": []}
    for cell in cells:
        if cell is None:
            continue
        image, label = cell["image_id"] - 1, cell["category_id"] - 1
        if count := len(cell["dtIds"]):
            detections += [(i, image, label, score) for i, score in zip(cell["dtIds"], cell["dtScores"], strict=True)]
            for name, field in (("matched", "dtMatched"), ("ignored", "dtIgnore")):
                flags[name].append(np.array(cell[field], bool).reshape(len(thresholds), count))
        if cell["gtIds"]:
            hits = cell["gtMatched"][at_half]
            for number, ignored, hit in zip(cell["gtIds"], cell["gtIgnore"], hits, strict=True):
                if not ignored:
                    objects.append((number - 1, image, label, not hit))
    columns = np.array(detections, np.float64).reshape(-1, 4).T
    object_columns = np.array(objects, np.int64).reshape(-1, 4).T
    none = np.zeros((len(thresholds), 0), bool)
    matched, ignored = (np.concatenate([none, *flags[name]], axis=1) for name in ("matched", "ignored"))
    return {
        **{name: column.astype(int) for name, column in zip(("id", "image", "label"), columns, strict=False)},
        "score": columns[3],
        # A detection on an object that does not count is matched too.
        "matched": matched & ~ignored,
        "ignored": ignored,
        **dict(zip(("object_number", "object_image", "object_label"), object_columns, strict=False)),
        "missed": object_columns[3].astype(bool),
    }


def outcomes(matches: Matches, datasets: Sequence[dict], ids: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 `n`: what each detection is, an index of `OUTCOMES`; and int `n`: the object that it is wrong about.

    That is the place of the object in the annotations, for errors of class and location; -1 for all others.

    An error is the first that holds: the best IoU with an object of its class is 0.1 to 0.5 (location); that with one
    of another class 0.5 or more (class); that with one of its class 0.5 or more, which a better detection found
    (duplicate); that with any object below 0.1 (background); else both, class and location.

    Args:
      matches: of the detections.
      datasets: ground truth and detections as they were matched.
      ids: int `n`, of the detections in the second.
      kind: "bbox" or "segm".
    """
    field = "bbox" if kind == "bbox" else "segmentation"
    shapes = {entry["id"]: entry[field] for entry in datasets[1]["annotations"]}
    objects: dict[int, list[dict]] = {}
    for entry in datasets[0]["annotations"]:
        if not entry["iscrowd"]:
            objects.setdefault(entry["image_id"] - 1, []).append(entry)
    result, about = np.full(len(ids), BACKGROUND, np.int8), np.full(len(ids), -1)
    result[matches.matched[0]], result[matches.ignored[0]] = CORRECT, IGNORED
    wrong = np.flatnonzero(result == BACKGROUND)
    wrong = wrong[np.argsort(matches.image[wrong], kind="stable")]
    edges = np.flatnonzero(np.diff(matches.image[wrong])) + 1
    for part in np.split(wrong, edges) if len(wrong) else []:
        inside = objects.get(int(matches.image[part[0]]), [])
        if inside:
            overlap = _overlap([shapes[number] for number in ids[part].tolist()], [o[field] for o in inside])
            same = matches.label[part][:, None] == np.array([o["category_id"] - 1 for o in inside])
            result[part], columns = _errors(overlap, same)
            about[part] = np.where(columns < 0, -1, np.array([o["id"] - 1 for o in inside])[columns])
    return result, about


def _errors(overlap: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the errors of wrong detections, and the objects that they are about, -1 for none.

    Args:
      overlap: float64 `n m`, IoU with the objects of the image.
      same: bool `n m`, whether the class is the same.
    """
    own, other = np.where(same, overlap, 0.0), np.where(same, 0.0, overlap)
    conditions = [
        (own.max(axis=1) >= BACKGROUND_BELOW) & (own.max(axis=1) < SAME),
        other.max(axis=1) >= SAME,
        own.max(axis=1) >= SAME,
        overlap.max(axis=1) < BACKGROUND_BELOW,
    ]
    errors = np.select(conditions, [LOCATION, CLASS, DUPLICATE, BACKGROUND], BOTH).astype(np.int8)
    return errors, np.select(conditions[:2], [own.argmax(axis=1), other.argmax(axis=1)], -1)


def _overlap(found: list, objects: list) -> np.ndarray:
    return np.asarray(hotcoco.mask.iou(found, objects, [False] * len(objects)), np.float64).reshape(
        len(found), len(objects)
    )
