"""What a model predicts for one picture, as NumPy arrays in the pixels of that picture."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image

from maskx_jax.coco.categories import Categories
from maskx_jax.evaluation import drawing, keypoints, results
from maskx_jax.evaluation.paste_masks import Grid, paste_and_encode, paste_mask

if TYPE_CHECKING:
    from maskx_jax.structures import Detections


@dataclasses.dataclass(frozen=True)
class Masks(Sequence[np.ndarray]):
    """The masks of a picture's objects. Each is made when it is asked for: all of a large picture need not fit memory.

    `masks[i]` is bool `height width`; `numpy.stack(masks)` holds all of them.

    Attributes:
      probabilities: float32 `n m m`, at the points of a grid over each box.
      boxes: float64 `n 4`, the boxes that the grids lie over; they may reach over the border.
      size: height and width of the picture.
      threshold: a pixel belongs to the object from this probability on.
      grid: how a grid lies over its box, see `evaluation.paste_masks.paste_mask`.
    """

    probabilities: np.ndarray
    boxes: np.ndarray
    size: tuple[int, int]
    threshold: float = 0.5
    grid: Grid = "continuous"

    def __len__(self) -> int:
        return len(self.probabilities)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> "Masks": ...
    def __getitem__(self, index: int | slice) -> "np.ndarray | Masks":
        """Return the mask of one object, bool `height width`; of a slice, the masks of some."""
        if isinstance(index, slice):
            return dataclasses.replace(self, probabilities=self.probabilities[index], boxes=self.boxes[index])
        region, (top, left) = paste_mask(*self._arguments(index))
        mask = np.zeros(self.size, bool)
        mask[top : top + region.shape[0], left : left + region.shape[1]] = region
        return mask

    def rle(self, index: int) -> dict:
        """Return the mask of one object in COCO's run-length encoding, without making it in full."""
        return paste_and_encode(*self._arguments(index))

    def _arguments(self, index: int) -> tuple[np.ndarray, np.ndarray, int, int, float, Grid]:
        return (self.probabilities[index], self.boxes[index], *self.size, self.threshold, self.grid)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The objects that a model finds in one picture, best first: `n` of them.

    Attributes:
      name: of the picture.
      size: its height and width.
      boxes: float64 `n 4`, x1 y1 x2 y2, clipped to the picture.
      labels: int32 `n`, 1..C.
      scores: float32 `n`, probabilities.
      masks: see `Masks`; None where the model makes none.
      categories: what the labels stand for, and the skeleton of the keypoints.
      read: returns the picture, uint8 `height width 3` RGB.
      keypoints: float32 `n k 3` of (x, y, score), in continuous pixels and in the order of `categories.skeleton`; None
        where the model finds none.
    """

    name: str
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: Masks | None
    categories: Categories
    read: Callable[[], np.ndarray] = dataclasses.field(repr=False)
    keypoints: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @functools.cached_property
    def category_ids(self) -> np.ndarray:
        """The dataset's ids of the classes, int64 `n`."""
        return self.categories.id_of_label()[self.labels]

    @functools.cached_property
    def names(self) -> list[str]:
        """The names of the classes."""
        return [self.categories.names[label - 1] for label in self.labels]

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Return COCO results entries."""
        ids = self.category_ids.tolist()
        none = [None] * len(self)
        masks = none if self.masks is None else map(self.masks.rle, range(len(self)))
        points = none if self.keypoints is None else self.keypoints
        return [
            results.entry(image_id, *of_object)
            for of_object in zip(ids, self.boxes.tolist(), self.scores, masks, points, strict=True)
        ]

    def to_supervision(self) -> Any:
        """Return `supervision.Detections`, with all masks in full; `class_id` holds the dataset's category ids.

        Keypoints are the entry `keypoints` of its `data`, `n k 3` as here.

        Raises:
          ImportError: supervision is not installed.
        """
        import supervision

        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32),
            mask=None if self.masks is None else np.array(list(self.masks), bool).reshape(-1, *self.size),
            confidence=self.scores,
            class_id=self.category_ids.astype(int),
            data={
                "class_name": np.array(self.names),
                **({} if self.keypoints is None else {"keypoints": self.keypoints}),
            },
        )

    def to_fiftyone(self) -> Any:
        """Return `fiftyone.Detections`: boxes relative to the picture, masks cut to their boxes; no keypoints.

        Raises:
          ImportError: FiftyOne is not installed.
        """
        import fiftyone

        height, width = self.size
        return fiftyone.Detections(
            detections=[
                fiftyone.Detection(
                    label=self.names[i],
                    bounding_box=[x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height],
                    confidence=float(self.scores[i]),
                    **({} if self.masks is None else {"mask": _cut(self.masks[i], (x1, y1, x2, y2))}),
                )
                for i, (x1, y1, x2, y2) in enumerate(self.boxes.tolist())
            ]
        )

    def draw(self, pixels: np.ndarray | None = None) -> Image.Image:
        """Return the picture with masks, boxes, names and scores; its longer side has 640 to 1,600 pixels.

        Args:
          pixels: of the picture, where they are at hand; else it is read again.
        """
        names = dict(zip(self.categories.ids, self.categories.names, strict=True))
        skeleton = self.categories.skeleton
        skeletons = dict.fromkeys(self.categories.ids, skeleton) if skeleton else {}
        # The best goes last, on top of the others.
        objects = self.to_coco()[::-1]
        pixels = self.read() if pixels is None else pixels
        return Image.fromarray(drawing.draw_objects(pixels, objects, names, skeletons=skeletons))


def predictions_of(
    found: "Detections",
    *,
    name: str,
    size: tuple[int, int],
    scale: float,
    categories: Categories,
    read: Callable[[], np.ndarray],
    threshold: float,
    mask_threshold: float,
    grid: Grid,
    keypoint_scale: float = 1.0,
    keypoint_score: keypoints.Score = "probability",
) -> Predictions:
    """Return what a model detected on the canvas as predictions in the picture.

    Args:
      found: in pixels of the canvas, NumPy arrays without the axis of the batch.
      name: of the picture; so are `size` (height and width) and `read`, see `Predictions`.
      size: as above.
      scale: canvas pixels per pixel of the picture.
      categories: what the labels stand for.
      read: as above.
      threshold: detections of a lower score are left out.
      mask_threshold: see `Masks`; so is `grid`.
      grid: as above.
      keypoint_scale: pixels of the grid that keypoints are found on, per pixel of the picture.
      keypoint_score: see `keypoints.decode`.

    Raises:
      ValueError: a box, a score or the map of a keypoint is not finite.
    """
    inside = [
        (index, box, clipped)
        for index, box, clipped in results.boxes_in_image(found, name, size, scale)
        if found.scores[index] >= threshold
    ]
    chosen = [index for index, _, _ in inside]
    masks = None
    if found.masks is not None:
        boxes = np.array([box for _, box, _ in inside], np.float64).reshape(-1, 4)
        masks = Masks(np.asarray(found.masks[chosen], np.float32), boxes, size, mask_threshold, grid)
    points = None
    if found.keypoint_maps is not None:
        made = [
            results.points_of(found.keypoint_maps[index], box, keypoint_scale, keypoint_score)
            for index, box, _ in inside
        ]
        points = np.array(made, np.float32).reshape(-1, found.keypoint_maps.shape[1], 3)
    return Predictions(
        name=name,
        size=size,
        boxes=np.array([clipped for _, _, clipped in inside], np.float64).reshape(-1, 4),
        labels=np.asarray(found.labels[chosen], np.int32),
        scores=np.asarray(found.scores[chosen], np.float32),
        masks=masks,
        categories=categories,
        read=read,
        keypoints=points,
    )


def _cut(mask: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    x1, y1, x2, y2 = box
    return mask[int(y1) : max(int(np.ceil(y2)), int(y1) + 1), int(x1) : max(int(np.ceil(x2)), int(x1) + 1)]
