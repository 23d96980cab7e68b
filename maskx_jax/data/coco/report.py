"""What `prepare` finds in a split, and what becomes of it."""

import dataclasses

from maskx_jax import errors

NUM_EXAMPLES = 5
# Every reason for which something is dropped, repaired or worth knowing. The first word says what was counted; the
# examples are its ids.
REASONS = {
    "image_skipped": "images skipped with their annotations: file missing, empty, corrupt or too large",
    "image_other_size": "images skipped with their annotations: of another size than the JSON says",
    "image_size_filled": "images without width and height in the JSON: taken from the file",
    "image_converted": "images converted to 8-bit RGB, stored as PNG",
    "image_turned": "images turned by their EXIF orientation, as the size in the JSON asks",
    "image_turn_ambiguous": "images turned by their EXIF orientation, which leaves the size as it is",
    "image_turn_ignored": "images whose EXIF orientation is ignored, as the size in the JSON asks",
    "image_negative": "images without annotations: kept as negatives",
    "image_all_dropped": "images all of whose annotations were dropped: kept as negatives",
    "image_crowd_only": "images with crowd regions only: kept",
    "annotation_image_skipped": "annotations dropped: their image was skipped",
    "unknown_category": "annotations dropped: unknown category_id",
    "unknown_image": "annotations dropped: unknown image_id",
    "box_invalid": "annotations dropped: bbox is not 4 finite numbers",
    "box_empty": "annotations dropped: bbox of zero or negative size",
    "box_outside": "annotations dropped: bbox wholly outside the image",
    "box_filled": "annotations without bbox: taken from the mask",
    "box_clipped": "annotations with a bbox partly outside the image: clipped",
    "iscrowd_filled": "annotations without iscrowd: taken as 0",
    "ignore_as_crowd": "annotations with ignore = 1: kept as crowd regions, neither trained on nor scored",
    "area_filled": "annotations without a usable area: computed",
    "area_repaired": "annotations whose area fits neither mask nor bbox (0, another formula): computed",
    "predicted_used": "annotations with a mask that a model predicted: used, in training weighed by its quality",
    "predicted_unrated": "annotations with a predicted mask whose quality is not said (0 to 1): its weight is 1",
    "predicted_dropped": "annotations with a mask that a model predicted: box only (use it by --predicted_masks=use)",
    "mask_missing": "annotations without segmentation: box only",
    "mask_malformed": "annotations whose segmentation is neither polygons nor RLE: box only",
    "polygon_flat": "annotations with one polygon that is not in a list: taken as one",
    "polygon_dropped": "annotations with invalid polygons (fewer than 3 points, odd count, not finite, endless): "
    "these dropped",
    "polygon_none_left": "annotations without a valid polygon: box only",
    "rle_other_size": "annotations with an RLE of another size than the image: box only",
    "rle_corrupt": "annotations with a corrupt RLE: box only",
    "mask_empty": "annotations whose mask has no pixel in the image: box only",
    "mask_box_differ": "annotations whose mask and bbox differ grossly (IoU below 0.5): kept, please check",
    "mask_rectangle": "annotations whose mask is just the rectangle of its bbox: kept, please check",
    "rle_compressed": "annotations with a compressed RLE",
    "rle_uncompressed": "annotations with an uncompressed RLE",
    "keypoints_unnamed": "categories that do not name the keypoints of their annotations: these are not labelled",
    "keypoints_missing": "annotations without a labelled keypoint: box and mask only",
    "keypoints_number": "annotations whose keypoints are not 3 numbers for each that the category names: "
    "none is labelled",
    "keypoints_invalid": "annotations with keypoints that are no finite numbers, or a visibility that is not 0, 1 or "
    "2: these are not labelled",
    "keypoints_outside": "annotations with a labelled keypoint outside of the image: it is not labelled",
    "keypoints_count": "annotations whose num_keypoints is not the number of labelled keypoints: counted",
}


@dataclasses.dataclass
class Report:
    """What was found in a split and what became of it.

    Attributes:
      split: its name.
      num_images: images kept.
      num_objects: objects kept that are no crowd; `num_masks` of them have a mask.
      num_masks: objects with a mask.
      num_crowds: crowd regions kept.
      num_with_keypoints: objects with a labelled keypoint; None where no category has keypoints.
      counts: number of cases of each reason of `REASONS` that occurred.
      examples: up to `NUM_EXAMPLES` ids for each.
      class_masks: for each class with masks their number, and how many of them are just a rectangle.
    """

    split: str
    num_images: int = 0
    num_objects: int = 0
    num_masks: int = 0
    num_crowds: int = 0
    num_with_keypoints: int | None = None
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    class_masks: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def add(self, reason: str, example: int) -> None:
        """Count one case of a reason, the image or annotation with id `example`."""
        if reason not in REASONS:
            raise ValueError(f"unknown reason {reason!r}; expected one of {sorted(REASONS)}")
        self.counts[reason] = self.counts.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < NUM_EXAMPLES:
            examples.append(example)

    def add_mask(self, category: str, is_rectangle: bool) -> None:
        """Count the mask of an object of a class."""
        numbers = self.class_masks.setdefault(category, [0, 0])
        numbers[0] += 1
        numbers[1] += is_rectangle

    def merge(self, later: "Report") -> None:
        """Add what was found in further images of the split."""
        self.num_images += later.num_images
        self.num_objects += later.num_objects
        self.num_masks += later.num_masks
        self.num_crowds += later.num_crowds
        if later.num_with_keypoints is not None:
            self.num_with_keypoints = (self.num_with_keypoints or 0) + later.num_with_keypoints
        for reason, count in later.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            examples = self.examples.get(reason, []) + later.examples[reason]
            self.examples[reason] = examples[:NUM_EXAMPLES]
        for category, (total, part) in later.class_masks.items():
            numbers = self.class_masks.setdefault(category, [0, 0])
            numbers[0] += total
            numbers[1] += part

    def to_json(self) -> dict:
        """Return what `report_<split>.json` holds."""
        reasons = {
            reason: {"meaning": meaning, "count": self.counts[reason], "examples": self.examples[reason]}
            for reason, meaning in REASONS.items()
            if reason in self.counts
        }
        kept = {name: getattr(self, name) for name in ("num_images", "num_objects", "num_masks", "num_crowds")}
        if self.num_with_keypoints is not None:
            kept["num_with_keypoints"] = self.num_with_keypoints
        masks = {name: {"masks": total, "rectangles": part} for name, (total, part) in self.class_masks.items()}
        return {"split": self.split, **kept, "reasons": reasons, "classes": masks}

    def table(self) -> str:
        """Return the report as text, one line for each reason that occurred."""
        keypoints = "" if self.num_with_keypoints is None else f", {self.num_with_keypoints} with keypoints"
        lines = [
            f"split {self.split}: {self.num_images} images, {self.num_objects} objects "
            f"({self.num_masks} with mask{keypoints}), {self.num_crowds} crowd regions"
        ]
        lines += self.findings()
        if self.num_objects == 0:
            crowds = ", all annotations are crowd regions" if self.num_crowds else ""
            lines.append(f"  warning  there is no object to learn from{crowds}")
        return "\n".join(lines)

    def findings(self) -> list[str]:
        """Return the lines of the table for the reasons that occurred."""
        lines = []
        for reason, meaning in REASONS.items():
            if reason in self.counts:
                ids = ", ".join(map(str, self.examples[reason]))
                more = ", ..." if self.counts[reason] > len(self.examples[reason]) else ""
                lines.append(f"{self.counts[reason]:>9}  {meaning} [{reason}; ids {ids}{more}]")
                if reason == "mask_rectangle":
                    lines.append(" " * 11 + f"by class: {self._rectangles()}")
        return lines

    def _rectangles(self) -> str:
        classes = [(part / total, name, part, total) for name, (total, part) in self.class_masks.items() if part]
        return errors.some(
            (
                f"{name} {part} of {total}"
                for _, name, part, total in sorted(classes, key=lambda row: (-row[0], row[1]))
            ),
            most=10,
        )
