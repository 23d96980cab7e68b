"""What is probably wrong with boxes and masks that are sound one by one: beside each other, and beside the image."""

import numpy as np

from maskx_jax.coco.boxes import iou
from maskx_jax.doctor.objects import Objects, far_corners
from maskx_jax.doctor.structure import Split

SAME_BOX = 0.95
SAME_BOX_OF_CLASSES = 0.98
# By so much of a side, and by so many pixels, a box and its mask may differ: people draw boxes by hand.
_SHARE, _PIXELS = 0.1, 4.0
# Of the masks of a class, and at least so many.
_RECTANGLE_SHARE, _FEWEST_RECTANGLES = 0.5, 5


def examine(split: Split, objects: Objects) -> None:
    """Count what is found in the findings of the split; nothing is changed but exact repetitions, left out."""
    names, sizes = np.array(["", *split.categories.names]), split.sizes()

    def count(cause: str, chosen: np.ndarray) -> None:
        split.findings.add_all(cause, objects.ids(chosen), names[objects.labels[chosen]].tolist())

    sides = objects.given[:, 2:] - objects.given[:, :2]
    plain = ~objects.is_crowd
    count("box_tiny", plain & (sides < 1).any(axis=1))
    count("box_maybe_corners", plain & far_corners(objects, sizes))
    with np.errstate(invalid="ignore"):
        slack = np.maximum(_SHARE * np.tile(sides, 2), _PIXELS)
        excess = np.concatenate(
            [objects.boxes[:, :2] - objects.frames[:, :2], objects.frames[:, 2:] - objects.boxes[:, 2:]], axis=1
        )
        of_image = np.tile(sizes[objects.image_index][:, ::-1], 2) * [0, 0, 1, 1] if len(objects) else excess
        beyond = np.concatenate(
            [of_image[:, :2] - objects.frames[:, :2], objects.frames[:, 2:] - of_image[:, 2:]], axis=1
        )
        leaves_image = (beyond > 2).any(axis=1) & objects.has_mask
        # `prepare` counts them: mask_box_differ.
        apart = iou(np.clip(objects.frames, 0, of_image[:, [2, 3, 2, 3]]), objects.boxes) < 0.5
        count("mask_leaves_image", leaves_image)
        count("mask_leaves_box", (excess > slack).any(axis=1) & objects.has_mask & ~leaves_image & ~apart)
        count("box_loose", (excess < -slack).any(axis=1) & objects.has_mask & ~apart)
    count("mask_crosses", objects.crossed & objects.has_mask)
    _count_rectangles(split, objects)
    _count_repeated(split, objects)
    _count_swapped(split, objects, sizes)


def _count_rectangles(split: Split, objects: Objects) -> None:
    for label, name in enumerate(split.categories.names, start=1):
        masks = objects.has_mask & (objects.labels == label)
        rectangles = int((masks & objects.is_rectangle).sum())
        if rectangles >= max(_FEWEST_RECTANGLES, _RECTANGLE_SHARE * masks.sum()):
            split.findings.add("class_rectangles", name, f"{rectangles} of {masks.sum()} masks", name)


def _count_repeated(split: Split, objects: Objects) -> None:
    names = split.categories.names
    exact: set[int] = set()
    for cause, least, same_label in (("box_twice", SAME_BOX, True), ("box_two_classes", SAME_BOX_OF_CLASSES, False)):
        first, second, overlaps = same_boxes(objects, least, same_label)
        seen: set[int] = set()
        for one, other, overlap in zip(first.tolist(), second.tolist(), overlaps.tolist(), strict=True):
            # Three on one place are two cases.
            if other in seen:
                continue
            seen.add(other)
            annotation, twin = objects.annotations[other], objects.annotations[one]
            beside = f"IoU {overlap:.2f} with annotation {twin['id']}"
            if not same_label:
                beside += f", a {names[objects.labels[one] - 1]}"
            split.findings.add(cause, annotation["id"], beside, names[objects.labels[other] - 1])
            if same_label and {**annotation, "id": 0} == {**twin, "id": 0}:
                exact.add(other)
                split.drop("annotations", annotation, cause)
    if exact and split.keeps_changes:
        gone = {id(objects.annotations[index]) for index in exact}
        split.annotations = [annotation for annotation in split.annotations if id(annotation) not in gone]


def same_boxes(objects: Objects, least: float, same_label: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pairs of objects of one image with nearly the same box; crowd regions are passed over.

    Args:
      objects: of a split.
      least: intersection over union from which boxes are the same, above 1/2.
      same_label: whether both must be of one class, or of two.

    Returns:
      first, second: int64 `p`, into the objects, the first before the second.
      overlaps: float64 `p`.
    """
    places = np.flatnonzero(~objects.is_crowd)
    labels = objects.labels[places] if same_label else np.zeros(len(places), np.int64)
    group = objects.image_index[places] * (labels.max(initial=0) + 1) + labels
    order = np.lexsort((objects.boxes[places, 0], group))
    places, group = places[order], group[order]
    boxes = objects.boxes[places]
    # A box that shares so much with another begins no further on than this.
    reach = boxes[:, 0] + (1 - least) * (boxes[:, 2] - boxes[:, 0]) / least
    pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    one = np.arange(len(places))
    for step in range(1, len(places)):
        one = one[one + step < len(places)]
        one = one[(group[one] == group[one + step]) & (boxes[one + step, 0] <= reach[one])]
        if not len(one):
            break
        overlaps = iou(boxes[one], boxes[one + step])
        found = overlaps >= least
        if not same_label:
            found &= objects.labels[places[one]] != objects.labels[places[one + step]]
        ends = np.sort(np.stack([places[one[found]], places[one[found] + step]]), axis=0)
        pairs.append((ends[0], ends[1], overlaps[found]))
    if not pairs:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    first, second, shared = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    order = np.lexsort((first, second))
    return first[order], second[order], shared[order]


def _count_swapped(split: Split, objects: Objects, sizes: np.ndarray) -> None:
    """Find images whose boxes lie outside, and inside once width and height are exchanged."""
    reach = np.zeros((len(sizes), 2))
    np.maximum.at(reach, objects.image_index, objects.given[:, [3, 2]])
    # More than a tenth: a box that is a little too large says nothing of the image.
    outside = (reach > 1.1 * sizes + 2).any(axis=1) & (reach <= sizes[:, ::-1] + 1).all(axis=1)
    for index in np.flatnonzero(outside).tolist():
        height, width = sizes[index].tolist()
        found = f"height {height} and width {width}; boxes reach to y {reach[index, 0]:g}, x {reach[index, 1]:g}"
        split.findings.add("image_size_swapped", split.images[index]["id"], found)
