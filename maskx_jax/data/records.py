"""The record that every dataset becomes: one image and its objects, as NumPy arrays.

COCO, LVIS and Visual Genome files are brought into this form by `coco.builder`; the synthetic set `shapes` makes it
directly. Everything after (schedule, transforms, pipeline) knows only this form.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np

from maskx_jax.coco import boxes, rle
from maskx_jax.coco.categories import Categories
from maskx_jax.coco.keypoints import Skeleton
from maskx_jax.structures import STORED_MASK_SIDE, Keypoints

# Beyond any image, and finite in float32 after any scaling.
_LARGEST = 1e15

PACKED_SHAPE = (STORED_MASK_SIDE, STORED_MASK_SIDE // 8)


class BrokenRecordError(ValueError):
    """What is stored of an image cannot be used, now or ever: it is damaged, or was never right."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One image with its objects, in pixels of the original image.

    Attributes:
      image: uint8 array `h w 3` (RGB), or the bytes of an encoded image.
      image_id: the dataset's id.
      size: (height, width) of the image.
      boxes: float32 `n 4`, x1 y1 x2 y2, clipped to the image.
      labels: int32 `n`, 1..C.
      masks: uint8 `n 112 14`, packed bits of each object seen in its frame; zeros where there is no mask.
      mask_frames: float32 `n 4`, the box that the stored mask covers.
      has_mask: bool `n`.
      is_crowd: bool `n`.
      keypoints: NumPy arrays `n k 2`, `n k` and `n k` in the order of the source's skeleton, or None where it has none.
      mask_weight: float32 `n`, 0 to 1, how much each mask counts in training: the quality of one that a model has
        predicted, and 1 of others; None where the source does not say.
      is_predicted: bool `n`, which masks a model has predicted; None where the source does not say.
    """

    image: np.ndarray | bytes
    image_id: int
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    mask_frames: np.ndarray
    has_mask: np.ndarray
    is_crowd: np.ndarray
    keypoints: Keypoints | None = None
    mask_weight: np.ndarray | None = None
    is_predicted: np.ndarray | None = None


class Source(Protocol):
    """A dataset with random access.

    Attributes:
      categories: the bijection between labels and category ids.
      skeleton: what the keypoints of its records are, or None where they have none.
      image_ids: int `N`, the dataset's id of every image, without reading any.
      sizes: int `N 2`, height and width of every image, likewise.
      image_labels: for each image the labels of its non-crowd objects, and `image_has_mask` whether each has a mask;
        for the class table and repeat factors, without reading any image.
      identity: what distinguishes this data from other data under the same name, fit for JSON; see `identity_of`.
    """

    @property
    def categories(self) -> Categories: ...

    @property
    def skeleton(self) -> Skeleton | None: ...

    @property
    def image_ids(self) -> np.ndarray: ...

    @property
    def sizes(self) -> np.ndarray: ...

    @property
    def image_labels(self) -> Sequence[np.ndarray]: ...

    @property
    def image_has_mask(self) -> Sequence[np.ndarray]: ...

    @property
    def identity(self) -> dict[str, Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def coco_ground_truth(self) -> dict:
        """Return the annotations as a COCO instances dictionary, for evaluation."""
        ...


def check_record(record: Record, num_categories: int, skeleton: Skeleton | None = None) -> None:
    """Check what a model could not learn from without harm: shapes, labels, and that all coordinates are finite.

    Args:
      record: of one image.
      num_categories: of its source.
      skeleton: of its source.

    Raises:
      BrokenRecordError: the message names what is wrong.
    """
    count = len(record.labels)
    shapes = {
        "boxes": (count, 4),
        "labels": (count,),
        "masks": (count, *PACKED_SHAPE),
        "mask_frames": (count, 4),
        "has_mask": (count,),
        "is_crowd": (count,),
    }
    if (record.mask_weight is None) != (record.is_predicted is None):
        raise BrokenRecordError("one of mask_weight and is_predicted is None; expected both or neither")
    if record.mask_weight is not None:
        shapes |= {"mask_weight": (count,), "is_predicted": (count,)}
    for name, shape in shapes.items():
        if (found := getattr(record, name).shape) != shape:
            raise BrokenRecordError(f"{name} has shape {found}; expected {shape}")
    if min(record.size) < 1:
        raise BrokenRecordError(f"size is {record.size}; expected a height and a width of 1 or more")
    for name in ("boxes", "mask_frames"):
        # Neither holds for NaN.
        wrong = ~(np.abs(getattr(record, name)) <= _LARGEST).all(axis=1)
        if wrong.any():
            raise BrokenRecordError(f"{name} holds {getattr(record, name)[wrong][0].tolist()}; expected finite numbers")
    wrong = record.has_mask & (record.mask_frames[:, 2:] <= record.mask_frames[:, :2]).any(axis=1)
    if wrong.any():
        raise BrokenRecordError(f"mask_frames holds {record.mask_frames[wrong][0].tolist()}; expected x1 < x2, y1 < y2")
    wrong = (record.labels < 1) | (record.labels > num_categories)
    if wrong.any():
        raise BrokenRecordError(f"labels holds {record.labels[wrong][0]}; expected 1 to {num_categories}")
    if record.mask_weight is not None:
        # Does not hold for NaN.
        wrong = ~((record.mask_weight >= 0) & (record.mask_weight <= 1))
        if wrong.any():
            raise BrokenRecordError(f"mask_weight holds {record.mask_weight[wrong][0]}; expected 0 to 1")
    _check_keypoints(record.keypoints, count, skeleton)


def _check_keypoints(keypoints: Keypoints | None, count: int, skeleton: Skeleton | None) -> None:
    if keypoints is None and skeleton is None:
        return
    if keypoints is None or skeleton is None:
        has, expected = ("no", "some") if keypoints is None else ("some", "none")
        raise BrokenRecordError(f"there are {has} keypoints; expected {expected}, as the skeleton of its source says")
    number = len(skeleton.names)
    for name, shape in (("points", (count, number, 2)), ("labelled", (count, number)), ("visible", (count, number))):
        if (found := getattr(keypoints, name).shape) != shape:
            raise BrokenRecordError(f"keypoints.{name} has shape {found}; expected {shape}")
    # Does not hold for NaN.
    wrong = keypoints.labelled & ~(np.abs(keypoints.points) <= _LARGEST).all(axis=2)
    if wrong.any():
        raise BrokenRecordError(
            f"keypoints.points holds {keypoints.points[wrong][0].tolist()}; expected finite numbers where labelled"
        )
    if (keypoints.visible & ~keypoints.labelled).any():
        raise BrokenRecordError("keypoints.visible holds a keypoint that is not labelled; expected labelled ones only")


def identity_of(categories: Categories, num_images: int, *index: np.ndarray | str) -> dict[str, Any]:
    """Return the identity of a dataset: `categories` (names), `num_images`, and `index_sha256` of what is given.

    Args:
      categories: of the dataset.
      num_images: its number of records.
      index: arrays or texts that decide which records there are, and in which order.
    """
    digest = hashlib.sha256(str(categories.ids).encode())
    for part in index:
        if isinstance(part, str):
            digest.update(part.encode())
        else:
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(part.tobytes())
    return {"categories": list(categories.names), "num_images": num_images, "index_sha256": digest.hexdigest()}


def decode_image(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels of an encoded image as they are stored (EXIF orientation is ignored): uint8 `h w 3` RGB.

    Args:
      data: the encoded image.
      size: the (height, width) that it should have.

    Raises:
      BrokenRecordError: the bytes are no image that OpenCV decodes.
      MemoryError: there is none for the pixels.
    """
    try:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        if error.code == cv2.Error.STS_NO_MEM:
            raise MemoryError(error.err) from error
        raise BrokenRecordError(f"cannot be decoded: {error.err}") from error
    if decoded is None:
        # OpenCV says the same where it finds no memory; then there is none here either.
        np.empty((2, *size, 3), np.uint8)
        raise BrokenRecordError(f"its {len(data)} bytes are no image that can be decoded")
    return decoded


def pack_bitmap(bitmap: np.ndarray) -> np.ndarray:
    """Pack a boolean `112 112` bitmap into uint8 `112 14`."""
    return np.packbits(bitmap.astype(bool), axis=-1)


def unpack_bitmap(packed: np.ndarray) -> np.ndarray:
    """Unpack uint8 `... 112 14` into bool `... 112 112`."""
    return np.unpackbits(packed, axis=-1).astype(bool)


def rasterize_polygons(polygons: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Draw polygons once, at 112 x 112 over their own tight box.

    Args:
      polygons: flat lists x1, y1, x2, y2, ... in image pixels; their union is the object.

    Returns:
      packed: uint8 `112 14`.
      frame: float32 `4`, the tight box of all vertices (at least one thousandth of a pixel wide and high).
    """
    points = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in polygons])
    low = points.min(axis=0)
    extent = np.maximum(points.max(axis=0) - low, 1e-3)
    scaled = [
        ((np.asarray(polygon, np.float64).reshape(-1, 2) - low) / extent * STORED_MASK_SIDE).ravel().tolist()
        for polygon in polygons
    ]
    bitmap = rle.draw_bitmap(scaled, (STORED_MASK_SIDE, STORED_MASK_SIDE))
    frame = np.concatenate([low, low + extent]).astype(np.float32)
    return pack_bitmap(bitmap), frame


def crop_bitmap(bitmap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Resample a full-size bitmap `h w` to 112 x 112 over its own tight box; each sample takes the pixel it falls in.

    Returns:
      packed: uint8 `112 14`.
      frame: float32 `4`, the tight box of the set pixels.

    Raises:
      ValueError: the bitmap is empty.
    """
    x1, y1, x2, y2 = frame = boxes.tight(bitmap)
    if x1 == x2:
        raise ValueError("the mask has no pixel set")
    centres = (np.arange(STORED_MASK_SIDE) + 0.5) / STORED_MASK_SIDE
    y = (y1 + centres * (y2 - y1)).astype(int)
    x = (x1 + centres * (x2 - x1)).astype(int)
    return pack_bitmap(bitmap[y[:, None], x]), frame.astype(np.float32)
