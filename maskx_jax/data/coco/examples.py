"""Makes the examples of a split, as TFDS stores them, and what they leave behind for the index and the ground truth."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from maskx_jax.coco.categories import Categories
from maskx_jax.coco.keypoints import Skeleton
from maskx_jax.data.coco import keypoints as keypoint_rules
from maskx_jax.data.coco.images import UnreadableImageError, read_image
from maskx_jax.data.coco.objects import check_objects
from maskx_jax.data.coco.report import Report
from maskx_jax.data.records import PACKED_SHAPE


@dataclasses.dataclass(frozen=True)
class Rules:
    """What decides how the images of a split become examples.

    Attributes:
      split: its name.
      folder: of the image files.
      categories: the bijection between labels and category ids.
      skip_bad_images: whether images that cannot be used are left out.
      use_predicted_masks: whether masks marked as predicted count.
      skeletons: by category id; without any, examples have no keypoints.
    """

    split: str
    folder: Path
    categories: Categories
    skip_bad_images: bool
    use_predicted_masks: bool
    skeletons: Mapping[int, Skeleton] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Examples:
    """Examples of successive images, and what they leave behind; in each list one entry for an image that is kept.

    Attributes:
      report: what was found.
      num_images: those looked at, kept or not.
      records: the examples, serialized.
      image_ids: int.
      sizes: (height, width).
      labels: int32 `n`, of the objects that are no crowd.
      has_mask: bool `n`, likewise.
      images: the entries of the ground truth, each as JSON.
      annotations: the annotations kept, each as JSON.
    """

    report: Report
    num_images: int = 0
    records: list[bytes] = dataclasses.field(default_factory=list)
    image_ids: list[int] = dataclasses.field(default_factory=list)
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    labels: list[np.ndarray] = dataclasses.field(default_factory=list)
    has_mask: list[np.ndarray] = dataclasses.field(default_factory=list)
    images: list[str] = dataclasses.field(default_factory=list)
    annotations: list[str] = dataclasses.field(default_factory=list)


def features_of(rules: Rules) -> tfds.features.FeaturesDict:
    """Return the features of an example; with keypoints where there are skeletons.

    And with what is known of predicted masks where these are used: other examples are as they were before there were
    any.
    """

    def per_object(*shape: int, dtype: type) -> tfds.features.Tensor:
        # As bytes: tf.train.Example would make an int64 of every byte of a mask.
        return tfds.features.Tensor(shape=(None, *shape), dtype=dtype, encoding="bytes")

    number = len(next(iter(rules.skeletons.values())).names) if rules.skeletons else None
    more = {"keypoints": per_object(number, 3, dtype=np.float32)} if number else {}
    if rules.use_predicted_masks:
        more |= {"mask_weight": per_object(dtype=np.float32), "is_predicted": per_object(dtype=np.bool_)}
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image_id": np.int64,
            "height": np.int32,
            "width": np.int32,
            "file_name": tfds.features.Text(),
            "objects": {
                "boxes": per_object(4, dtype=np.float32),
                "labels": per_object(dtype=np.int32),
                "masks": per_object(*PACKED_SHAPE, dtype=np.uint8),
                "mask_frames": per_object(4, dtype=np.float32),
                "has_mask": per_object(dtype=np.bool_),
                "is_crowd": per_object(dtype=np.bool_),
                "annotation_ids": per_object(dtype=np.int64),
                **more,
            },
        }
    )


class ExampleMaker:
    """Makes examples by the rules of a split."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._features = features_of(rules)
        self._serializer = ExampleSerializer(self._features.get_serialized_info())

    def make(
        self, entries: Iterable[tuple[dict, Sequence[dict]]], before_image: Callable[[], None] = lambda: None
    ) -> Examples:
        """Return the examples of images, given each with its annotations as `read_instances` leaves them.

        Raises:
          UnreadableImageError: an image cannot be used, and the rules do not say to skip it.
        """
        made = Examples(Report(self._rules.split))
        for image, annotations in entries:
            before_image()
            example = self._example(image, annotations, made)
            made.num_images += 1
            if example is not None:
                made.records.append(self._serialize(example))
        return made

    def _serialize(self, example: dict[str, Any]) -> bytes:
        stored = self._serializer.get_tf_example(self._features.encode_example(example))
        # The fields of an example are a map, whose order differs between processes otherwise.
        return stored.SerializeToString(deterministic=True)

    def _example(self, image: dict, annotations: Sequence[dict], made: Examples) -> dict[str, Any] | None:
        rules, report = self._rules, made.report
        size = size_of(image)
        try:
            data, actual_size, reasons = read_image(rules.folder / image["file_name"], size)
        except UnreadableImageError as error:
            if not rules.skip_bad_images:
                raise UnreadableImageError(f"image {image['id']}: {error}. Use skip_bad_images to go on") from error
            report.add(error.reason, image["id"])
            for annotation in annotations:
                report.add("annotation_image_skipped", annotation["id"])
            return None
        for reason in [*reasons, *(["image_size_filled"] if size is None else [])]:
            report.add(reason, image["id"])

        objects, ground_truth = check_objects(
            annotations, actual_size, rules.categories, report, rules.use_predicted_masks
        )
        if rules.skeletons:
            objects["keypoints"], ground_truth = keypoint_rules.check_keypoints(
                ground_truth, actual_size, rules.skeletons, report
            )
        _count(report, image["id"], annotations, objects)

        height, width = actual_size
        no_crowd = ~objects["is_crowd"]
        made.image_ids.append(image["id"])
        made.sizes.append(actual_size)
        made.labels.append(objects["labels"][no_crowd])
        made.has_mask.append(objects["has_mask"][no_crowd])
        made.images.append(json.dumps({**image, "height": height, "width": width}))
        made.annotations += map(json.dumps, ground_truth)
        return {
            "image": data,
            "image_id": image["id"],
            "height": height,
            "width": width,
            "file_name": image["file_name"],
            "objects": objects,
        }


def size_of(image: dict) -> tuple[int, int] | None:
    """Return (height, width) of an entry of `images`, or None where it says none."""
    return (image["height"], image["width"]) if image.get("height") else None


def _count(report: Report, image_id: int, annotations: Sequence[dict], objects: Mapping[str, np.ndarray]) -> None:
    """Count an image that is kept, and its objects."""
    no_crowd = ~objects["is_crowd"]
    if not annotations:
        report.add("image_negative", image_id)
    elif not len(no_crowd):
        report.add("image_all_dropped", image_id)
    elif not no_crowd.any():
        report.add("image_crowd_only", image_id)
    report.num_images += 1
    report.num_objects += int(no_crowd.sum())
    report.num_masks += int(objects["has_mask"].sum())
    report.num_crowds += int(objects["is_crowd"].sum())
    if "keypoints" in objects:
        labelled = (objects["keypoints"][..., 2] > 0).any(axis=1)
        report.num_with_keypoints = (report.num_with_keypoints or 0) + int(labelled.sum())
