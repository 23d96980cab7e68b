"""Pictures in, predictions out, in the order of the pictures: batches of one canvas each, on all devices."""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from maskx_jax.coco.categories import Categories
from maskx_jax.data.records import PACKED_SHAPE, Record
from maskx_jax.data.transforms import Transform
from maskx_jax.distributed.mesh import make_mesh, replicated
from maskx_jax.evaluation import keypoints
from maskx_jax.evaluation.paste_masks import Grid
from maskx_jax.inference import DetectStep, make_detect_step, one_ahead
from maskx_jax.prediction.pictures import Picture, read_ahead
from maskx_jax.prediction.predictions import Predictions, predictions_of
from maskx_jax.prediction.tiles import Part, in_picture, merge, parts_of
from maskx_jax.structures import Batch, Detections, PyTree


@dataclasses.dataclass(frozen=True)
class Predicted:
    """One picture with its pixels and predictions, or with the error of one that cannot be read."""

    picture: Picture
    pixels: np.ndarray | None
    predictions: Predictions | None
    error: ValueError | None = None


@dataclasses.dataclass(frozen=True)
class Options:
    """How to predict.

    Attributes:
      threshold: predictions of a lower score are left out.
      batch_size: parts of pictures that are detected in at a time; None for one a device.
      tile: pictures with a longer side are detected in by tiles of this side too; None for never.
      overlap: share of a tile that its neighbour has too.
      num_workers: pictures read at the same time.

    Raises:
      ValueError: a tile or an overlap is out of range.
    """

    threshold: float = 0.5
    batch_size: int | None = None
    tile: int | None = None
    overlap: float = 0.25
    num_workers: int = 4

    def __post_init__(self) -> None:
        if (self.tile is not None and self.tile < 1) or not 0 <= self.overlap < 1:
            raise ValueError(
                f"got tiles of {self.tile} pixels with an overlap of {self.overlap}; expected 1 or more, and 0 up to 1"
            )


@dataclasses.dataclass
class _Open:
    """A picture of which parts are not detected in yet."""

    picture: Picture
    pixels: np.ndarray | None
    parts: list[Part]
    found: dict[int, Detections] = dataclasses.field(default_factory=dict)
    error: ValueError | None = None
    # Canvas pixels per pixel of the picture, of the last part.
    scale: float = 1.0

    @property
    def done(self) -> bool:
        return len(self.found) == len(self.parts)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model with all that predicting on pictures needs.

    Attributes:
      model: with the method `detect`.
      variables: of the model.
      categories: what its labels stand for.
      transform: of its training; used without its randomness.
      mask_threshold: a pixel belongs to an object from this probability on.
      grid: how masks are pasted, see `evaluation.paste_masks.paste_mask`.
      keypoint_grid: whether keypoints are found to a pixel of the "image" or of the "canvas"; in tiles, of the image.
      keypoint_score: what the score of a keypoint is, see `evaluation.keypoints.decode`.
    """

    model: nn.Module
    variables: PyTree
    categories: Categories
    transform: Transform
    mask_threshold: float = 0.5
    grid: Grid = "continuous"
    keypoint_grid: keypoints.Grid = "image"
    keypoint_score: keypoints.Score = "probability"

    def predict(self, pictures: Iterable[Picture], options: Options) -> Iterator[Predicted]:
        """Yield what is predicted for each picture, in their order.

        Raises:
          ValueError: the batch cannot be split over the devices.
        """
        size = options.batch_size or self._mesh.size
        if size < 1 or size % self._mesh.size:
            raise ValueError(f"got a batch of {size}; expected a multiple of the {self._mesh.size} devices")
        opened: collections.deque[_Open] = collections.deque()
        owners: dict[int, tuple[_Open, int]] = {}
        batches = self._batches(pictures, options, size, opened, owners)
        for batch, found in one_ahead(self._step, self._on_devices, batches, self._mesh):
            for slot in np.flatnonzero(batch.valid):
                owner, number = owners.pop(int(batch.image_ids[slot]))
                one = jax.tree.map(lambda array, slot=slot: array[slot], found)
                owner.scale = float(batch.scales[slot])
                owner.found[number] = in_picture(
                    one, owner.scale, owner.parts[number], owner.parts[0].size, tiled=number > 0
                )
            while opened and opened[0].done:
                yield self._predicted(opened.popleft(), options.threshold)
        for rest in opened:
            yield self._predicted(rest, options.threshold)

    @functools.cached_property
    def _mesh(self) -> Mesh:
        return make_mesh(jax.local_devices())

    @functools.cached_property
    def _step(self) -> DetectStep:
        return make_detect_step(self.model, self._mesh)

    @functools.cached_property
    def _on_devices(self) -> PyTree:
        return jax.device_put(self.variables, replicated(self._mesh))

    def _batches(
        self,
        pictures: Iterable[Picture],
        options: Options,
        size: int,
        opened: collections.deque[_Open],
        owners: dict[int, tuple[_Open, int]],
    ) -> Iterator[Batch]:
        """Yield batches of `size` parts of one canvas; enter each picture in `opened`, and each part in `owners`.

        The image id of an example is its key in `owners`.
        """
        numbers = itertools.count()
        waiting: dict[tuple[int, int], list[Batch]] = collections.defaultdict(list)

        def prepare(pixels: np.ndarray) -> list[tuple[Part, Batch]]:
            height, width = pixels.shape[:2]
            parts = parts_of((height, width), options.tile, options.overlap)
            return [(part, self._example(pixels, part)) for part in parts]

        for picture, result in read_ahead(pictures, prepare, options.num_workers):
            if isinstance(result, ValueError):
                opened.append(_Open(picture, None, [], error=result))
                continue
            pixels, examples = result
            opened.append(_Open(picture, pixels, [part for part, _ in examples]))
            for number, (_, example) in enumerate(examples):
                owners[key := next(numbers)] = (opened[-1], number)
                alike = waiting[example.images.shape[:2]]
                alike.append(dataclasses.replace(example, image_ids=np.array(key, np.int64)))
                if len(alike) == size:
                    yield _stack(alike, size)
                    alike.clear()
            # A picture whose canvas is rare must not keep all that come after it.
            if len(opened) > 4 * size:
                yield from _flush(waiting, size)
        yield from _flush(waiting, size)

    def _example(self, pixels: np.ndarray, part: Part) -> Batch:
        height, width = part.size
        cut = pixels[part.top : part.top + height, part.left : part.left + width]
        transform = self.transform.for_evaluation()
        canvas = transform.canvas_of(portrait=height > width)
        example, _ = transform(_record(np.ascontiguousarray(cut)), canvas, np.random.default_rng(0), num_slots=0)
        return example

    def _predicted(self, opened: _Open, threshold: float) -> Predicted:
        if opened.error is not None or opened.pixels is None:
            return Predicted(opened.picture, None, None, opened.error)
        height, width = opened.pixels.shape[:2]
        predictions = predictions_of(
            merge([opened.found[number] for number in range(len(opened.parts))]),
            name=opened.picture.name,
            size=(height, width),
            scale=1.0,
            categories=self.categories,
            read=opened.picture.read,
            threshold=threshold,
            mask_threshold=self.mask_threshold,
            grid=self.grid,
            keypoint_scale=opened.scale if self.keypoint_grid == "canvas" and len(opened.parts) == 1 else 1.0,
            keypoint_score=self.keypoint_score,
        )
        return Predicted(opened.picture, opened.pixels, predictions)


def _record(pixels: np.ndarray) -> Record:
    return Record(
        image=pixels,
        image_id=0,
        size=(pixels.shape[0], pixels.shape[1]),
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int32),
        masks=np.zeros((0, *PACKED_SHAPE), np.uint8),
        mask_frames=np.zeros((0, 4), np.float32),
        has_mask=np.zeros(0, bool),
        is_crowd=np.zeros(0, bool),
    )


def _flush(waiting: dict[tuple[int, int], list[Batch]], size: int) -> Iterator[Batch]:
    for alike in waiting.values():
        if alike:
            yield _stack(alike, size)
            alike.clear()


def _stack(examples: list[Batch], size: int) -> Batch:
    """Put examples together to a batch; where they are too few, the last one fills it up and does not count."""
    fill = [dataclasses.replace(examples[-1], valid=np.array(False))] * (size - len(examples))
    return jax.tree.map(lambda *arrays: np.stack(arrays), *examples, *fill)
