"""From a record to one example of a batch: resize, flip, crop, pad; all that has a place as one affine map.

Everything is NumPy and OpenCV on the host, and pure: the random choices come from the generator that is passed in.
Masks are never resampled: a flip reverses the rows of the stored bitmaps, everything else moves only their frames.
"""

import dataclasses

import cv2
import numpy as np

from maskx_jax.coco.boxes import clip
from maskx_jax.coco.keypoints import Skeleton
from maskx_jax.data import records
from maskx_jax.data.records import BrokenRecordError, Record
from maskx_jax.structures import Batch, GroundTruth, Keypoints


@dataclasses.dataclass(frozen=True)
class View:
    """How an image lies on its canvas: `x' = scale * (width - x if flip else x) - left`, `y' = scale * y - top`.

    Attributes:
      scale: canvas pixels per pixel of the image.
      flip: whether left and right are exchanged.
      top: rows of the resized image that are cropped away above.
      left: columns of the resized image that are cropped away on the left.
      size: (height, width) of what is left, which fits the canvas.
    """

    scale: float
    flip: bool
    top: int
    left: int
    size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Counts:
    """Objects of one example that found no slot: `overflow` for want of slots, `outside` cropped away or too small."""

    overflow: int
    outside: int


@dataclasses.dataclass(frozen=True)
class Transform:
    """Turns records into examples.

    The scale is that of Detectron (SPEC 1.1): the short side becomes one of `short_sides`, unless the long side then
    passed `max_long_side`; and never larger than the canvas. With `jitter_scales` it is large-scale jitter instead
    (Ghiasi et al., 2021): a random multiple of the scale that fits the canvas, and a random crop of what is too large.

    Attributes:
      canvas: (height, width) for landscape images. Portrait images have it transposed.
      short_sides: lengths of the short side, one is drawn for each image.
      max_long_side: limit on the long side.
      flip_probability: share of the images that are flipped left to right.
      jitter_scales: (smallest, largest) multiple of the fitting scale, or None for no jitter.
      min_box_side: objects whose clipped box is narrower or lower than this, in canvas pixels, are left out.
      num_slots: ground-truth slots of an image.

    Raises:
      ValueError: an option is out of range.
    """

    canvas: tuple[int, int] = (800, 1344)
    short_sides: tuple[int, ...] = (800,)
    max_long_side: int = 1333
    flip_probability: float = 0.5
    jitter_scales: tuple[float, float] | None = None
    min_box_side: float = 1.0
    num_slots: int = 100

    def __post_init__(self) -> None:
        if len(self.canvas) != 2 or not 0 < self.canvas[0] <= self.canvas[1]:
            raise ValueError(f"canvas is {self.canvas}; expected (height, width) of landscape images, height <= width")
        if not self.short_sides or min(self.short_sides) < 1:
            raise ValueError(f"short_sides is {self.short_sides}; expected one or more positive lengths")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip_probability is {self.flip_probability}; expected a value from 0 to 1")
        scales = self.jitter_scales
        if scales is not None and (len(scales) != 2 or not 0 < scales[0] <= scales[1]):
            raise ValueError(f"jitter_scales is {scales}; expected (smallest, largest), both positive")
        if self.num_slots < 1:
            raise ValueError(f"num_slots is {self.num_slots}; expected 1 or more")

    def for_evaluation(self) -> "Transform":
        """Return the transform without randomness, at the largest of the short sides."""
        return dataclasses.replace(self, short_sides=(max(self.short_sides),), flip_probability=0.0, jitter_scales=None)

    @property
    def single_canvas(self) -> bool:
        """Whether images of both orientations share the canvas, because it is square."""
        return self.canvas[0] == self.canvas[1]

    def canvas_of(self, portrait: bool) -> tuple[int, int]:
        """Return (height, width) of the canvas for an orientation."""
        return (self.canvas[1], self.canvas[0]) if portrait else (self.canvas[0], self.canvas[1])

    def __call__(
        self,
        record: Record,
        canvas: tuple[int, int],
        rng: np.random.Generator,
        num_slots: int | None = None,
        skeleton: Skeleton | None = None,
    ) -> tuple[Batch, Counts]:
        """Make one example: a `Batch` whose arrays lack the leading axis.

        Args:
          record: of the image.
          canvas: height and width.
          rng: makes the random choices.
          num_slots: in place of the transform's own; 0 leaves the ground truth out.
          skeleton: of the record's keypoints; without it they are left out.

        Raises:
          BrokenRecordError: the image cannot be decoded, or has another size than the record says.
        """
        image = decode(record)
        view = self.draw_view(record.size, canvas, rng)
        num_slots = self.num_slots if num_slots is None else num_slots
        ground_truth, counts = transform_objects(record, view, num_slots, self.min_box_side, skeleton)
        example = Batch(
            images=transform_image(image, view, canvas),
            image_sizes=np.array(view.size, np.float32),
            image_ids=np.array(record.image_id, np.int64),
            scales=np.array(view.scale, np.float32),
            valid=np.array(True),
            ground_truth=ground_truth,
        )
        return example, counts

    def draw_view(self, size: tuple[int, int], canvas: tuple[int, int], rng: np.random.Generator) -> View:
        """Choose scale, flip and crop for an image of `size` (height, width)."""
        height, width = size
        fitting = min(canvas[0] / height, canvas[1] / width)
        # The same numbers are drawn whatever the options, so that a changed option leaves the other choices alone.
        choice, flip, multiple, top, left = rng.random(5).tolist()
        if self.jitter_scales is None:
            short_side = self.short_sides[int(choice * len(self.short_sides))]
            scale = min(short_side_scale(size, short_side, self.max_long_side), fitting)
        else:
            smallest, largest = self.jitter_scales
            scale = fitting * (smallest + multiple * (largest - smallest))
        # Not even a sliver is resized to nothing.
        resized = (max(round(height * scale), 1), max(round(width * scale), 1))
        return View(
            scale=scale,
            flip=flip < self.flip_probability,
            top=int(top * (max(resized[0] - canvas[0], 0) + 1)),
            left=int(left * (max(resized[1] - canvas[1], 0) + 1)),
            size=(min(resized[0], canvas[0]), min(resized[1], canvas[1])),
        )


def decode(record: Record) -> np.ndarray:
    """Return the image of a record as uint8 `h w 3` RGB.

    Raises:
      BrokenRecordError: the bytes are no image, or one of another size.
      MemoryError: there is none for the pixels.
    """
    try:
        image = records.decode_image(record.image, record.size) if isinstance(record.image, bytes) else record.image
    except BrokenRecordError as error:
        raise BrokenRecordError(f"image {record.image_id}: {error}") from error
    except MemoryError as error:
        raise MemoryError(f"image {record.image_id}: {error}") from error
    if image.shape != (*record.size, 3):
        raise BrokenRecordError(
            f"image {record.image_id}: its array has shape {image.shape}, its record size {record.size}"
        )
    return image


def short_side_scale(size: tuple[int, int], short_side: int, max_long_side: int) -> float:
    """Return the scale that brings the short side to `short_side`, or the long side to its limit if that is less."""
    scale = short_side / min(size)
    # Detectron compares after rounding.
    return max_long_side / max(size) if round(scale * max(size)) > max_long_side else scale


def transform_image(image: np.ndarray, view: View, canvas: tuple[int, int]) -> np.ndarray:
    """Flip, resize, crop, and pad with zeros at the bottom and the right: uint8 `canvas 3`.

    What the padding holds is of no account: the model sets it to the mean colour.
    """
    if view.flip:
        # First, since the resized width is rounded and the mirror has to be where it is for the boxes.
        image = cv2.flip(image, 1)
    # By scale factors and not by a size: the rounded size would map x and y by other scales than the boxes.
    # But for a side that is less than a pixel of the canvas, which becomes one.
    factors = {"fx": max(view.scale, 1 / image.shape[1]), "fy": max(view.scale, 1 / image.shape[0])}
    resized = cv2.resize(image, None, **factors, interpolation=cv2.INTER_LINEAR)
    height, width = view.size
    part = resized[view.top : view.top + height, view.left : view.left + width]
    padded = np.zeros((*canvas, 3), np.uint8)
    padded[:height, :width] = part
    return padded


def transform_boxes(boxes: np.ndarray, view: View, image_width: int) -> np.ndarray:
    """Map boxes `... 4` of the image to the canvas, unclipped."""
    x1, y1, x2, y2 = np.moveaxis(boxes.astype(np.float64), -1, 0)
    if view.flip:
        x1, x2 = image_width - x2, image_width - x1
    mapped = np.stack([x1, y1, x2, y2], axis=-1) * view.scale - [view.left, view.top, view.left, view.top]
    return mapped.astype(np.float32)


def transform_keypoints(keypoints: Keypoints, view: View, image_width: int, skeleton: Skeleton) -> Keypoints:
    """Map keypoints `n k` of the image to the canvas; a flip exchanges left and right ones.

    Those that are cropped away are not labelled any more. Where nothing is labelled, the point is (0, 0).
    """
    order = list(skeleton.flip) if view.flip else slice(None)
    x, y = np.moveaxis(keypoints.points[:, order].astype(np.float64), -1, 0)
    if view.flip:
        x = image_width - x
    x, y = x * view.scale - view.left, y * view.scale - view.top
    # Both borders belong to the image, so that a flip leaves inside what is inside.
    inside = (x >= 0) & (x <= view.size[1]) & (y >= 0) & (y <= view.size[0])
    labelled = keypoints.labelled[:, order] & inside
    points = np.where(labelled[..., None], np.stack([x, y], axis=-1), 0.0)
    return Keypoints(points.astype(np.float32), labelled, keypoints.visible[:, order] & inside)


def flip_bitmaps(packed: np.ndarray) -> np.ndarray:
    """Exchange left and right in packed bitmaps `... 112 14`."""
    return records.pack_bitmap(records.unpack_bitmap(packed)[..., ::-1])


def transform_objects(
    record: Record, view: View, num_slots: int, min_box_side: float, skeleton: Skeleton | None = None
) -> tuple[GroundTruth, Counts]:
    """Map the objects and fill them into slots.

    Where there are more objects than slots, crowds go first and then the smallest objects.
    """
    boxes = clip(transform_boxes(record.boxes, view, record.size[1]), view.size)
    sides = boxes[:, 2:] - boxes[:, :2]
    inside = np.flatnonzero((sides >= min_box_side).all(axis=1))
    area = sides.prod(axis=1)
    best_first = inside[np.lexsort((-area[inside], record.is_crowd[inside]))]
    kept = np.sort(best_first[:num_slots])
    masks = flip_bitmaps(record.masks[kept]) if view.flip else record.masks[kept]
    frames = transform_boxes(record.mask_frames[kept], view, record.size[1])

    def fill(values: np.ndarray) -> np.ndarray:
        slots = np.zeros((num_slots, *values.shape[1:]), values.dtype)
        slots[: len(values)] = values
        return slots

    keypoints = None
    if record.keypoints is not None and skeleton is not None:
        moved = transform_keypoints(record.keypoints, view, record.size[1], skeleton)
        keypoints = Keypoints(fill(moved.points[kept]), fill(moved.labelled[kept]), fill(moved.visible[kept]))
    ground_truth = GroundTruth(
        boxes=fill(boxes[kept]),
        labels=fill(record.labels[kept].astype(np.int32)),
        masks=fill(masks),
        mask_frames=fill(frames),
        has_mask=fill(record.has_mask[kept]),
        is_crowd=fill(record.is_crowd[kept]),
        valid=fill(np.ones(len(kept), bool)),
        keypoints=keypoints,
        mask_weight=None if record.mask_weight is None else fill(record.mask_weight[kept]),
    )
    return ground_truth, Counts(overflow=len(inside) - len(kept), outside=len(boxes) - len(inside))


def remove_masks(record: Record, allowed: np.ndarray) -> Record:
    """Take away the masks of all labels that `allowed` (bool `C + 1`) excludes, so that they never leave the host.

    The frame goes too, since it is the extent of the mask: it becomes the box.
    """
    return _with_masks(record, record.has_mask & allowed[record.labels])


def weigh_masks(record: Record, predicted: float) -> Record:
    """Multiply the weights of masks that a model has predicted by a factor; those of other masks stay.

    An object whose mask comes to weigh nothing is one without a mask.
    """
    if record.mask_weight is None or record.is_predicted is None:
        return record
    weight = np.where(record.is_predicted, record.mask_weight * np.float32(predicted), record.mask_weight)
    return _with_masks(dataclasses.replace(record, mask_weight=weight), record.has_mask & (weight > 0))


def _with_masks(record: Record, has_mask: np.ndarray) -> Record:
    return dataclasses.replace(
        record,
        has_mask=has_mask,
        masks=np.where(has_mask[:, None, None], record.masks, np.uint8(0)),
        mask_frames=np.where(has_mask[:, None], record.mask_frames, record.boxes),
    )


def remove_keypoints(record: Record, fraction: float) -> Record:
    """Take away the keypoints of objects, so that they never leave the host; about this fraction of them keep theirs.

    Which these are is drawn by the image's id; of two fractions, those of the smaller one keep theirs in both.
    """
    if record.keypoints is None or fraction == 1:
        return record
    # A generator takes no negative number.
    rng = np.random.default_rng((4, record.image_id % 2**64))
    kept = (rng.random(len(record.labels)) < fraction)[:, None]
    points, labelled, visible = record.keypoints.points, record.keypoints.labelled, record.keypoints.visible
    left = Keypoints(np.where(kept[..., None], points, np.float32(0)), labelled & kept, visible & kept)
    return dataclasses.replace(record, keypoints=left)
