"""The data of a report's gallery: an index of all objects to filter by, and pages with their boxes and masks."""

import base64
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maskx_jax.coco import rle
from maskx_jax.evaluation.checks import as_id
from maskx_jax.report.analysis import Analysed
from maskx_jax.report.inputs import Dataset
from maskx_jax.report.matches import CORRECT, IGNORED, Matches

# Images of a page: a card of the gallery reads one.
PAGE = 16
# COCO's limits of small, medium and large, in pixels.
_SIZES = (32**2, 96**2)
# What an annotation is to a model: it counts and was found, it counts and was missed, or it does not count.
_FOUND, _MISSED, _NOT_COUNTED = range(3)


@dataclasses.dataclass(frozen=True)
class Shown:
    """The detections of a model that the gallery shows, by image and from the best.

    Attributes:
      place: int `n`, in the results of the model.
      image: int `n`, from 0 in the order of the ids.
      label: int `n`.
      score: float64 `n`.
      outcome: int8 `n`, see `matches.OUTCOMES`.
    """

    place: np.ndarray
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    outcome: np.ndarray


class Gallery:
    """What the gallery shows of a dataset and some models.

    Args:
      dataset: the images.
      models: what is known of the models.
      area: float64 `m`, of each annotation.
      min_score: of the detections that are shown.
    """

    def __init__(self, dataset: Dataset, models: Sequence[Analysed], area: np.ndarray, min_score: float) -> None:
        self.kind = "segm" if "segm" in dataset.kinds else "bbox"
        self._dataset, self._models = dataset, models
        self.images = sorted(dataset.ground_truth["images"], key=lambda image: as_id(image["id"]))
        number = {as_id(image["id"]): index for index, image in enumerate(self.images)}
        ids = sorted(as_id(category["id"]) for category in dataset.ground_truth["categories"])
        self._label = {category_id: label for label, category_id in enumerate(ids)}
        annotations = dataset.ground_truth["annotations"]
        images = np.array([number[as_id(a["image_id"])] for a in annotations], int)
        self._order = np.argsort(images, kind="stable")
        self._object_image = images[self._order]
        self._area = area
        self.shown = [_shown(model.matches[self.kind], model.outcomes[self.kind], min_score) for model in models]

    def index(self) -> dict[str, Any]:
        """Return what is needed to filter: images, and for objects and detections little-endian columns in base64.

        `truth` and each of `models` have `count` (uint16, objects by image), `label` (uint16), and `size` (uint8; 0
        small, 1 medium, 2 large). The truth has `crowd` (uint8); a model has `score` (uint16, in 65,535ths), `outcome`
        (uint8, see `matches.OUTCOMES`), `state` (uint8, of each object of the truth: 0 found, 1 missed, 2 not counted)
        and `quality`, F1 of each image at the scores that are shown, in thousandths, or null where there is nothing.
        """
        annotations = self._dataset.ground_truth["annotations"]
        ordered = [annotations[place] for place in self._order.tolist()]
        labels = [self._label[as_id(a["category_id"])] for a in ordered]
        crowd = [bool(a.get("iscrowd") or a.get("ignore")) for a in ordered]
        images = [[as_id(i["id"]), i.get("width"), i.get("height"), str(i.get("file_name", ""))] for i in self.images]
        truth = {
            "count": _column(np.bincount(self._object_image, minlength=len(self.images)), np.uint16),
            "label": _column(labels, np.uint16),
            "size": _column(np.digitize(self._area[self._order], _SIZES), np.uint8),
            "crowd": _column(crowd, np.uint8),
        }
        models = [self._model(model, shown) for model, shown in zip(self._models, self.shown, strict=True)]
        return {"page": PAGE, "kind": self.kind, "images": images, "truth": truth, "models": models}

    def _model(self, model: Analysed, shown: Shown) -> dict[str, Any]:
        matches = model.matches[self.kind]
        state = np.full(len(self._order), _NOT_COUNTED)
        # LVIS adds regions that are no annotations; they do not count.
        state[matches.object_number] = np.where(matches.missed, _MISSED, _FOUND)
        state = state[self._order]
        results = model.model.results
        chosen = [results[place] for place in shown.place.tolist()]
        if self.kind == "segm":
            area = np.array(rle.areas([result["segmentation"] for result in chosen]), np.float64)
        else:
            area = np.array([result["bbox"][2] * result["bbox"][3] for result in chosen], np.float64)
        quality = _f1(shown, state, self._object_image, len(self.images))
        return {
            "count": _column(np.bincount(shown.image, minlength=len(self.images)), np.uint16),
            "label": _column(shown.label, np.uint16),
            "size": _column(np.digitize(area, _SIZES), np.uint8),
            "score": _column(np.rint(65535 * np.clip(shown.score, 0, 1)), np.uint16),
            "outcome": _column(shown.outcome, np.uint8),
            "state": _column(state, np.uint8),
            "quality": [None if np.isnan(value) else round(1000 * value) for value in quality.tolist()],
        }

    def truth_pages(self) -> Iterator[list[list]]:
        """Yield the shapes of the ground truth, by page, image and object: `[x, y, w, h, counts or 0]`."""
        annotations = self._dataset.ground_truth["annotations"]
        bounds = np.searchsorted(self._object_image, np.arange(len(self.images) + 1))
        for begin in range(0, len(self.images), PAGE):
            page = []
            for number in range(begin, min(begin + PAGE, len(self.images))):
                image = self.images[number]
                places = self._order[bounds[number] : bounds[number + 1]].tolist()
                page.append([self._truth_shape(annotations[place], image) for place in places])
            yield page

    def _truth_shape(self, annotation: Mapping[str, Any], image: Mapping[str, Any]) -> list:
        mask = None
        if self.kind == "segm":
            mask = rle.of_segmentation(annotation.get("segmentation"), (image["height"], image["width"]))
        return [*_rounded(annotation["bbox"]), _counts(mask)]

    def model_pages(self, number: int) -> Iterator[list[list]]:
        """Yield the shapes of the detections of a model, likewise."""
        shown, results = self.shown[number], self._models[number].model.results
        bounds = np.searchsorted(shown.image, np.arange(len(self.images) + 1))
        for begin in range(0, len(self.images), PAGE):
            page = []
            for image in range(begin, min(begin + PAGE, len(self.images))):
                places = shown.place[bounds[image] : bounds[image + 1]].tolist()
                page.append([_shape(results[place]) for place in places])
            yield page


def _shown(matches: Matches, outcomes: np.ndarray, min_score: float) -> Shown:
    chosen = np.flatnonzero(matches.score >= min_score)
    chosen = chosen[np.lexsort((-matches.score[chosen], matches.image[chosen]))]
    fields = (matches.detection, matches.image, matches.label, matches.score, outcomes)
    return Shown(*(field[chosen] for field in fields))


def _f1(shown: Shown, state: np.ndarray, object_image: np.ndarray, num_images: int) -> np.ndarray:
    """Return float64 `images`: the largest F1 that any score as a threshold gives; NaN where nothing is to find."""
    result = np.full(num_images, np.nan)
    objects = np.bincount(object_image[state != _NOT_COUNTED], minlength=num_images)
    counted = shown.outcome != IGNORED
    image, right = shown.image[counted], shown.outcome[counted] == CORRECT
    bounds = np.searchsorted(image, np.arange(num_images + 1))
    for number in range(num_images):
        inside = right[bounds[number] : bounds[number + 1]]
        if objects[number] or len(inside):
            made = np.arange(1, len(inside) + 1)
            result[number] = max((2 * inside.cumsum() / (made + objects[number])).tolist(), default=0.0)
    return result


def _shape(result: Mapping[str, Any]) -> list:
    mask = result.get("segmentation")
    box = result["bbox"] if "bbox" in result else rle.tight_box(mask or {}).tolist()
    return [*_rounded(box), _counts(mask)]


def _counts(mask: Mapping[str, Any] | None) -> str | int:
    if not mask:
        return 0
    counts = mask["counts"]
    return counts.decode() if isinstance(counts, bytes) else counts


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(value, 1) for value in box]


def _column(values: Any, dtype: type) -> str:
    return base64.b64encode(np.asarray(values).astype(np.dtype(dtype).newbyteorder("<")).tobytes()).decode()
