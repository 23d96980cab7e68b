"""Looks at boxes and masks by the rules of `prepare`, which are run on every object that may break one of them.

`prepare` draws each mask, which takes a third of a millisecond: minutes for a set as large as COCO. Arithmetic on the
outlines (`outlines`) shows of most objects that they break none.
"""

import dataclasses

import numpy as np

from maskx_jax.coco import boxes as box_rules
from maskx_jax.data.coco.annotations import are_corners, boxes_of, is_number
from maskx_jax.data.coco.objects import check_objects
from maskx_jax.data.coco.report import Report
from maskx_jax.data.records import unpack_bitmap
from maskx_jax.doctor.outlines import Outlines, measure
from maskx_jax.doctor.structure import Split

# An object is cleared by arithmetic well within the rules' own bounds: the rest is drawn.
_AREA_FACTOR = 1.25
_FILL = 0.95
# Thinner outlines than this many pixels may miss every pixel's centre.
_THICKNESS = 2.0


@dataclasses.dataclass
class Objects:
    """The objects of a split that `prepare` would keep, crowd regions too.

    Attributes:
      annotations: n of them.
      image_index: int64 `n`, into the images of the split.
      labels: int64 `n`.
      boxes: float64 `n 4`, x1, y1, x2, y2 clipped to the image.
      given: float64 `n 4`, x1, y1, x2, y2 as given (or of the mask, where there is no box).
      frames: float64 `n 4`, of the mask; NaN where there is none.
      mask_areas: float64 `n`, NaN where there is no mask.
      crossed: bool `n`, whether a polygon crosses itself.
      is_crowd: bool `n`.
      is_rectangle: bool `n`, whether the mask is just its box.
    """

    annotations: list[dict]
    image_index: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    given: np.ndarray
    frames: np.ndarray
    mask_areas: np.ndarray
    crossed: np.ndarray
    is_crowd: np.ndarray
    is_rectangle: np.ndarray

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def has_mask(self) -> np.ndarray:
        """Bool `n`: whether there is a mask to train on; a crowd's is of many objects."""
        return ~np.isnan(self.frames[:, 0]) & ~self.is_crowd

    def ids(self, chosen: np.ndarray) -> list[int]:
        """Return the ids of chosen annotations, bool `n`."""
        return [self.annotations[index]["id"] for index in np.flatnonzero(chosen).tolist()]

    def take(self, chosen: np.ndarray) -> "Objects":
        """Return chosen objects, bool `n`."""
        arrays = {f.name: getattr(self, f.name)[chosen] for f in dataclasses.fields(self) if f.name != "annotations"}
        return Objects([self.annotations[index] for index in np.flatnonzero(chosen).tolist()], **arrays)


class _Reasons(Report):
    """Keeps the reasons of one object."""

    def __init__(self) -> None:
        super().__init__("")
        self.found: list[str] = []

    def add(self, reason: str, example: int) -> None:
        self.found.append(reason)


def examine(split: Split) -> Objects:
    """Look at every object of a split by the rules of `prepare`; its annotations are mended as `prepare` does."""
    sizes = split.sizes()
    index_of_id = {image["id"]: index for index, image in enumerate(split.images)}
    label_of_id = split.categories.label_of_id()
    image_index = np.array([index_of_id[entry["image_id"]] for entry in split.annotations], np.int64)
    known = sizes[image_index].all(axis=1) if len(image_index) else np.zeros(0, bool)
    unchecked = [split.annotations[index]["id"] for index in np.flatnonzero(~known).tolist()]
    split.findings.add_all("object_unchecked", unchecked)
    annotations = [split.annotations[index] for index in np.flatnonzero(known).tolist()]
    image_index = image_index[known]
    labels = np.array([label_of_id[entry["category_id"]] for entry in annotations], np.int64)
    outlines = measure([entry.get("segmentation") for entry in annotations], sizes[image_index])
    given = boxes_of(annotations)
    given[:, 2:] += given[:, :2]
    objects = Objects(
        annotations=annotations,
        image_index=image_index,
        labels=labels,
        boxes=np.clip(given, 0, sizes[image_index][:, [1, 0, 1, 0]]),
        given=given,
        frames=outlines.frames,
        mask_areas=outlines.areas,
        crossed=outlines.crossed,
        is_crowd=np.array([bool(entry["iscrowd"]) for entry in annotations], bool),
        is_rectangle=np.zeros(len(annotations), bool),
    )
    clear = _clear(objects, outlines, sizes[image_index])
    _count_plain(split, objects, clear)
    return _check_rest(split, objects, clear, sizes)


def _clear(objects: Objects, outlines: Outlines, sizes: np.ndarray) -> np.ndarray:
    """Return bool `n`: objects that arithmetic shows to be sound: `prepare` would not mention them."""
    given = [entry.get("area") for entry in objects.annotations]
    areas = np.array([area if is_number(area) else np.nan for area in given], np.float64)
    # As they are stored, in float32.
    stored = objects.given.astype(np.float32)
    box_areas = box_rules.area(objects.given)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        box_clear = (stored[:, 2:] > stored[:, :2]).all(axis=1)
        box_clear &= (objects.boxes.astype(np.float32) == stored).all(axis=1)
        area_clear = (areas > 0) & (areas <= box_areas)
        crowd_clear = objects.is_crowd & (areas >= 0)
        sides = objects.frames[:, 2:] - objects.frames[:, :2]
        frame_areas = sides.prod(axis=1)
        mask_clear = (
            (outlines.areas / sides.max(axis=1, initial=0) >= _THICKNESS)
            & (outlines.areas <= _FILL * frame_areas)
            & (outlines.lengths <= 100 * sizes.sum(axis=1))
            & (np.abs(objects.frames) <= 1e6).all(axis=1)
            & _inside_enough(objects.frames, sizes)
        )
        area_fits = (areas <= _AREA_FACTOR * outlines.least) & (areas >= outlines.areas / _AREA_FACTOR)
        overlap_clear = box_rules.iou(objects.frames, objects.given) > 0.5
        none = np.array([entry.get("segmentation") in (None, []) for entry in objects.annotations], bool)
        return box_clear & np.where(
            none,
            area_clear | crowd_clear,
            mask_clear & (crowd_clear | (overlap_clear & area_fits & area_clear)),
        )


def _inside_enough(frames: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return bool `n`: frames `n 4` that leave their image by half a pixel at most: clipped, they stay."""
    inside = (frames[:, :2] >= -0.5) & (frames[:, 2:] <= sizes[:, ::-1] + 0.5)
    return np.logical_and(inside[:, 0], inside[:, 1])


def _count_plain(split: Split, objects: Objects, clear: np.ndarray) -> None:
    """Count of the objects that are clear what is worth knowing: that they have no mask, or run lengths."""
    names = split.categories.names
    for index in np.flatnonzero(clear).tolist():
        entry = objects.annotations[index]
        segmentation = entry.get("segmentation")
        if segmentation is None or segmentation == []:
            split.findings.add("mask_missing", entry["id"], category=names[objects.labels[index] - 1])
        elif isinstance(segmentation, dict):
            split.findings.add("rle_compressed", entry["id"], category=names[objects.labels[index] - 1])


def _check_rest(split: Split, objects: Objects, clear: np.ndarray, sizes: np.ndarray) -> Objects:
    """Run `prepare`'s rules on what is not clear."""
    names = split.categories.names
    kept = np.ones(len(objects), bool)
    dropped: set[int] = set()
    # To clip what is not understood would lose it.
    far = far_corners(objects, sizes)
    for index in np.flatnonzero(~clear).tolist():
        annotation = objects.annotations[index]
        height, width = sizes[objects.image_index[index]].tolist()
        reasons = _Reasons()
        arrays, ground_truth = check_objects([annotation], (height, width), split.categories, reasons)
        for reason in reasons.found:
            split.findings.add(reason, annotation["id"], _fields(annotation, reason), names[objects.labels[index] - 1])
        if not ground_truth:
            kept[index] = False
            dropped.add(id(annotation))
            split.drop("annotations", annotation, reasons.found)
            continue
        objects.is_rectangle[index] = "mask_rectangle" in reasons.found
        _take_mask(objects, index, arrays, ground_truth[0])
        x, y, box_width, box_height = ground_truth[0]["bbox"]
        objects.given[index] = x, y, x + box_width, y + box_height
        objects.boxes[index] = arrays["boxes"][0]
        after = {key: value for key, value in ground_truth[0].items() if annotation.get(key, ...) != value}
        if "box_clipped" in reasons.found and not far[index]:
            x1, y1, x2, y2 = objects.boxes[index].tolist()
            after["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        if after:
            split.change("annotations", annotation, reasons.found, **after)
    if dropped:
        split.annotations = [annotation for annotation in split.annotations if id(annotation) not in dropped]
    return objects.take(kept)


def _take_mask(objects: Objects, index: int, arrays: dict[str, np.ndarray], annotation: dict) -> None:
    """Take the extent and the area of a mask as `prepare` drew it."""
    if arrays["has_mask"][0]:
        objects.frames[index] = arrays["mask_frames"][0]
        drawn = float(box_rules.area(objects.frames[index]) * unpack_bitmap(arrays["masks"][0]).mean())
        # The lobes of an outline that crosses itself are of opposite signs.
        objects.crossed[index] |= bool(objects.mask_areas[index] < 0.6 * drawn and drawn > 64)
        objects.mask_areas[index] = drawn
    elif not annotation["segmentation"]:
        objects.frames[index] = objects.mask_areas[index] = np.nan
        objects.crossed[index] = False


def _fields(annotation: dict, reason: str) -> str:
    """Return what of an annotation a reason is about, shortened."""
    key = {"box": "bbox", "area": "area", "iscrowd": "iscrowd"}.get(reason.partition("_")[0])
    return f"{key} {annotation.get(key)!r:.80}" if key else ""


def far_corners(objects: Objects, sizes: np.ndarray) -> np.ndarray:
    """Return bool `n`: objects whose box reaches far outside of the image, and fits as x1, y1, x2, y2."""
    as_given = np.concatenate([objects.given[:, :2], objects.given[:, 2:] - objects.given[:, :2]], axis=1)
    of_image = sizes[objects.image_index][:, ::-1].astype(np.float64)
    far = (objects.given[:, 2:] > 1.1 * of_image + 4).any(axis=1)
    return far & are_corners(as_given, of_image)
