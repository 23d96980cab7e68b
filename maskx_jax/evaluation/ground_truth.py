"""A ground truth in numbers that every backend takes."""

import array
import collections
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from maskx_jax.coco import rle
from maskx_jax.coco.keypoints import skeletons_of
from maskx_jax.evaluation.checks import FIELD_OF_KIND, as_id, believed_area, image_sizes

# Beyond any image: a region to ignore that holds every box.
_EVERYWHERE = [-1e6, -1e6, 2e6, 2e6]


class NumberedGroundTruth:
    """A ground truth that was checked, numbered from 1 in the order of its ids.

    Attributes:
      num_without_mask: objects without a mask, ignored where masks are scored.
      num_areas_replaced: objects whose area cannot be right.
    """

    def __init__(self, ground_truth: Mapping, with_masks: bool) -> None:
        sizes = image_sizes(ground_truth)
        category_ids = sorted(as_id(category["id"]) for category in ground_truth["categories"])
        # Results may give an id as 7 or as 7.0: equal keys.
        self._image = {image_id: number for number, image_id in enumerate(sorted(sizes), start=1)}
        self._category = {category_id: number for number, category_id in enumerate(category_ids, start=1)}
        self._sizes = {self._image[image_id]: size for image_id, size in sizes.items()}
        self._categories, annotations = ground_truth["categories"], ground_truth["annotations"]
        self._points = {number: annotation.get("keypoints") for number, annotation in enumerate(annotations, start=1)}
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
        self._masks: list[dict | None] = [None] * len(annotations)
        num_pixels = [0] * len(annotations)
        if with_masks:
            # Drawn once, for all kinds. A mask without a pixel is none.
            drawn = [self._draw(*pair) for pair in zip(annotations, self._objects, strict=True)]
            num_pixels = rle.areas(drawn, "ground truth, annotations")
            self._masks = [mask if number else None for mask, number in zip(drawn, num_pixels, strict=True)]
        self.num_without_mask = self._masks.count(None)
        self.num_areas_replaced = 0
        for annotation, entry, number in zip(annotations, self._objects, num_pixels, strict=True):
            entry["area"], is_given = believed_area(annotation, number)
            # A crowd is ignored at any size.
            self.num_areas_replaced += not is_given and not entry["iscrowd"]
        self._searched, self._inexhaustive = self._read_searched(ground_truth["images"])

    def _draw(self, annotation: Mapping, entry: Mapping) -> dict:
        size = self._sizes[entry["image_id"]]
        return rle.of_segmentation(annotation.get("segmentation"), size) or self._full(entry["image_id"], 0)

    def _read_searched(self, images: Sequence[Mapping]) -> tuple[dict[int, set[int]], set[tuple[int, int]]]:
        """Return by image the classes that LVIS looked for, and the images and classes of which there may be more."""
        searched = collections.defaultdict(set)
        for entry in self._objects:
            searched[entry["image_id"]].add(entry["category_id"])
        inexhaustive: set[tuple[int, int]] = set()
        for image_entry in images:
            image = self._image[as_id(image_entry["id"])]
            absent, more = (
                {self._category[i] for i in map(as_id, image_entry.get(field, ())) if i in self._category}
                for field in ("neg_category_ids", "not_exhaustive_category_ids")
            )
            searched[image] |= absent
            inexhaustive |= {(image, category) for category in more}
        return searched, inexhaustive

    def federated(self, results: Iterable[dict], max_detections: int) -> list[dict]:
        """Return the results that LVIS scores: the best of each image, of classes that it was searched for."""
        # As numbers: there may be millions of results, of which few are kept.
        numbers, values = array.array("q"), array.array("d")
        for result in results:
            numbers.append(self._image[result["image_id"]])
            values.append(result["score"])
        images, scores = np.asarray(numbers), np.asarray(values)
        order = np.lexsort((-scores, images))
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order)) - np.searchsorted(images[order], images[order])
        return [
            result
            for result, image, is_best in zip(results, images.tolist(), rank < max_detections, strict=True)
            if is_best and self._category[result["category_id"]] in self._searched[image]
        ]

    def entries(self, results: Iterable[dict], kind: str, federated: bool) -> tuple[dict, dict]:
        """Return ground truth and detections of one kind as COCO datasets, with only what an evaluator reads."""
        images = [{"id": image, "height": size[0], "width": size[1]} for image, size in self._sizes.items()]
        categories = [{"id": number, "name": str(number)} for number in self._category.values()]
        objects = self._objects
        if kind == "keypoints":
            results = (result for result in results if self._category[result["category_id"]] in self._skeletons)
        elif kind != "bbox":
            objects = [
                entry | ({"segmentation": mask} if mask is not None else self._without_mask(entry))
                for entry, mask in zip(self._objects, self._masks, strict=True)
            ]
        field = FIELD_OF_KIND.get(kind, "segmentation")
        detected = [
            {
                "id": number,
                "image_id": self._image[result["image_id"]],
                "category_id": self._category[result["category_id"]],
                "score": float(result["score"]),
                "iscrowd": 0,
                field: result[field],
            }
            for number, result in enumerate(results, start=1)
        ]
        shapes = [entry[field] for entry in detected]
        areas = rle.areas(shapes) if field == "segmentation" else [_area(kind, shape) for shape in shapes]
        for entry, area in zip(detected, areas, strict=True):
            entry["area"] = area
        if federated:
            objects = objects + self._regions_to_ignore(kind, len(objects))
            # As lvis-api does. What has no area also lies in no region.
            detected = [entry for entry in detected if entry["area"]]
        if kind == "keypoints":
            objects = self._with_keypoints(objects)
        shared = {"images": images, "categories": categories}
        return {**shared, "annotations": objects}, {**shared, "annotations": detected}

    @functools.cached_property
    def _skeletons(self) -> dict[int, int]:
        """How many keypoints the objects of a class have, by its number; of classes that have any."""
        skeletons = skeletons_of(self._categories)
        return {self._category[as_id(i)]: len(skeleton.names) for i, skeleton in skeletons.items()}

    @property
    def num_without_keypoints(self) -> int:
        """Objects of which no keypoint has a place, ignored where keypoints are scored."""
        return sum(entry["num_keypoints"] == 0 for entry in self._with_keypoints(self._objects))

    def _with_keypoints(self, objects: Sequence[dict]) -> list[dict]:
        """Return the objects of classes with keypoints. One of which none has a place is ignored, and is its box."""
        made = []
        for entry in objects:
            if count := self._skeletons.get(entry["category_id"]):
                points = list(self._points.get(entry["id"]) or [0] * 3 * count)
                made.append(entry | {"keypoints": points, "num_keypoints": sum(flag > 0 for flag in points[2::3])})
        return made

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
                **({"segmentation": self._full(image)} if kind not in FIELD_OF_KIND or kind == "segm" else {}),
            }
            for number, (image, category) in enumerate(sorted(self._inexhaustive), start=1)
        ]

    def _full(self, image: int, value: int = 1) -> dict:
        """Return the mask with all of an image in it, or with nothing."""
        height, width = self._sizes[image]
        counts = [0, height * width] if value else [height * width]
        return rle.of_segmentation({"size": [height, width], "counts": counts}, (height, width)) or {}


def _area(kind: str, shape: Sequence[float]) -> float:
    """Return the area of a box, or of the box around keypoints, as pycocotools does."""
    if kind == "bbox":
        return shape[2] * shape[3]
    x, y = np.array(shape[0::3]), np.array(shape[1::3])
    return float((x.max() - x.min()) * (y.max() - y.min()))
