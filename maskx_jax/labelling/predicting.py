"""Masks on given boxes by a trained model: no detector stands in between."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from maskx_jax.coco.boxes import clip
from maskx_jax.coco.categories import Categories
from maskx_jax.data.coco.images import UnreadableImageError, read_pixels
from maskx_jax.data.loaders import MakeExample, load
from maskx_jax.data.schedule import evaluation_order
from maskx_jax.data.transforms import Transform, transform_boxes, transform_image
from maskx_jax.distributed.mesh import make_mesh, replicated
from maskx_jax.evaluation.paste_masks import paste_and_encode
from maskx_jax.inference import boxes_of, make_mask_step, one_ahead
from maskx_jax.labelling.objects import Picture
from maskx_jax.labelling.quality import certainty, object_mask
from maskx_jax.labelling.report import Report
from maskx_jax.runs.loading import Loaded
from maskx_jax.structures import Batch, GroundTruth

# Boxes of an image that go through the model together; an image with more of them goes through it again.
_MOST_SLOTS = 32


def predict(
    loaded: Loaded,
    pictures: Sequence[Picture],
    categories: Categories,
    folder: Path,
    report: Report,
    *,
    skip_bad_images: bool = False,
) -> None:
    """Predict a mask for each object with only a box, and put it into the report.

    Args:
      loaded: the run.
      pictures: see `objects.find`.
      categories: of the annotations; those of the run are found by their names.
      folder: of the images.
      report: takes masks and counts.
      skip_bad_images: count the objects of images that cannot be read, instead of stopping.

    Raises:
      UnreadableImageError: an image cannot be read.
      ValueError: the model makes no masks, or one that is not finite, or knows none of the classes.
    """
    if "masks" not in loaded.model.produces:
        raise ValueError(
            f"the model of this run makes {', '.join(sorted(loaded.model.produces))}; expected one that makes masks"
        )
    labels = _labels_of_ids(loaded.categories, categories)
    items = _items(pictures, labels, report)
    if not items:
        return
    mesh = make_mesh(jax.local_devices())
    config = loaded.config
    examples = _Examples(items, folder, Transform(**config.data.transform), skip_bad_images)
    batch_size = -(-config.evaluation.batch_size // mesh.size) * mesh.size
    batches = tqdm(
        examples.batches(batch_size, config.data.num_workers),
        total=examples.num_batches(batch_size),
        unit="batch",
        disable=None,
    )
    step = make_mask_step(loaded.model, mesh)
    variables = jax.device_put(loaded.variables, replicated(mesh))
    for batch, masks in one_ahead(step, variables, batches, mesh, boxes_of):
        for place in np.flatnonzero(batch.valid):
            _add_masks(items[int(batch.image_ids[place])], masks[place], config.evaluation, report)
    for number in examples.bad:
        report.leave("image_skipped", (items[number].picture.annotation_ids[i] for i in items[number].indices))


class _Item(NamedTuple):
    """An image with as many of its boxes as there are slots; labels are the model's."""

    picture: Picture
    indices: list[int]
    labels: list[int]


def _labels_of_ids(known: Categories, wanted: Categories) -> dict[int, int]:
    """Return the model's label of each category id of the annotations that it knows by name."""
    label_of_name = {name: label for label, name in enumerate(known.names, start=1)}
    pairs = zip(wanted.ids, wanted.names, strict=True)
    labels = {category_id: label_of_name[name] for category_id, name in pairs if name in label_of_name}
    if not labels:
        raise ValueError(
            f"the run knows none of the {len(wanted)} classes of the annotations by name: it has "
            f"{', '.join(map(repr, known.names[:3]))} ..., they have {', '.join(map(repr, wanted.names[:3]))} ..."
        )
    return labels


def _items(pictures: Sequence[Picture], labels: dict[int, int], report: Report) -> list[_Item]:
    items = []
    for picture in pictures:
        known = [index for index, category_id in enumerate(picture.category_ids) if category_id in labels]
        unknown = set(range(len(picture.category_ids))) - set(known)
        report.leave("class_unknown", (picture.annotation_ids[index] for index in sorted(unknown)))
        for start in range(0, len(known), _MOST_SLOTS):
            indices = known[start : start + _MOST_SLOTS]
            items.append(_Item(picture, indices, [labels[picture.category_ids[index]] for index in indices]))
    return items


def _add_masks(item: _Item, masks: np.ndarray, evaluation: ConfigDict, report: Report) -> None:
    for mask, index in zip(masks, item.indices, strict=False):
        annotation_id, box = item.picture.annotation_ids[index], item.picture.boxes[index]
        if not np.isfinite(mask).all():
            raise ValueError(f"annotation {annotation_id}: its predicted mask is not finite")
        # For the box as it is given: that of the canvas is the same up to rounding.
        threshold, grid = evaluation.mask_threshold, evaluation.paste_grid
        encoded = paste_and_encode(mask, box, *item.picture.size, threshold, grid)
        report.add_mask(annotation_id, object_mask(encoded, box, certainty(mask)))


class _Examples:
    """Makes the batches of the items: images on the canvas of training, boxes in slots.

    Attributes:
      bad: the items whose image cannot be read, where they are skipped.
    """

    def __init__(self, items: Sequence[_Item], folder: Path, transform: Transform, skip_bad_images: bool) -> None:
        self.bad: set[int] = set()
        self._items, self._folder = items, folder
        self._transform = transform.for_evaluation()
        self._skip_bad_images = skip_bad_images
        most = max(len(item.indices) for item in items)
        # A power of two: what computes only the used slots takes equal pieces of them.
        self._num_slots = 1 << (most - 1).bit_length()
        self._sizes = np.array([item.picture.size for item in items])
        self._lock = threading.Lock()

    def _order(self, batch_size: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
        return evaluation_order(self._sizes, batch_size, self._transform.single_canvas)

    def num_batches(self, batch_size: int) -> int:
        """Return how many batches there are."""
        return len(self._order(batch_size))

    def batches(self, batch_size: int, num_workers: int | None) -> Iterator[Batch]:
        """Yield the batches; the `image_ids` are the numbers of the items."""
        order = self._order(batch_size)

        def read(number: int) -> MakeExample:
            step, slot = divmod(number, batch_size)
            portrait, indices, valid = order[step]
            canvas = self._transform.canvas_of(bool(portrait))
            return lambda: (self._example(int(indices[slot]), canvas, bool(valid[slot])), None)

        return load("threads", read, batch_size, 0, len(order), num_workers, prefetch=2)

    def _example(self, number: int, canvas: tuple[int, int], valid: bool) -> Batch:
        item = self._items[number]
        size = item.picture.size
        try:
            image = read_pixels(self._folder / item.picture.file_name, size)
        except UnreadableImageError as error:
            if not self._skip_bad_images:
                raise UnreadableImageError(
                    f"image {item.picture.image_id}: {error}. Use skip_bad_images to go on"
                ) from error
            with self._lock:
                self.bad.add(number)
            image, valid = np.zeros((*size, 3), np.uint8), False
        # Nothing is drawn: there is no jitter, no flip, and one scale.
        view = self._transform.draw_view(size, canvas, np.random.default_rng(0))
        boxes = transform_boxes(item.picture.boxes[item.indices], view, size[1])
        return Batch(
            images=transform_image(image, view, canvas),
            image_sizes=np.array(view.size, np.float32),
            image_ids=np.array(number, np.int64),
            scales=np.array(view.scale, np.float32),
            valid=np.array(valid),
            ground_truth=self._ground_truth(clip(boxes, view.size), item.labels),
        )

    def _ground_truth(self, boxes: np.ndarray, labels: Sequence[int]) -> GroundTruth:
        slots = self._num_slots
        filled = np.zeros((slots, 4), np.float32)
        filled[: len(boxes)] = boxes
        known = np.zeros(slots, np.int32)
        known[: len(labels)] = labels
        no = np.zeros(slots, bool)
        return GroundTruth(
            boxes=filled,
            labels=known,
            masks=np.zeros((slots, 0, 0), np.uint8),
            mask_frames=filled,
            has_mask=no,
            is_crowd=no,
            valid=np.arange(slots) < len(labels),
        )
