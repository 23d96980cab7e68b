"""What became of the objects with only boxes: counted, by class, and how good the masks are."""

import collections
import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from maskx_jax.errors import some
from maskx_jax.labelling.quality import ObjectMask

# Why an object is left with its box only.
REASONS = {
    "below_threshold": "quality below the threshold",
    "mask_empty": "the mask has no pixel",
    "class_unknown": "the run knows no class of this name",
    "no_match": "no mask of the results fits the box",
    "box_unusable": "bbox is not 4 finite numbers, empty or outside the image",
    "image_skipped": "the image cannot be read",
}


@dataclasses.dataclass
class Report:
    """What `label` did with a file of annotations.

    Attributes:
      threshold: quality from which a mask is taken.
      num_objects: that are no crowd.
      num_predicted_before: objects whose mask was predicted by an earlier run, and is predicted anew.
      num_hidden: objects of classes whose masks count as unknown, and are predicted in their place.
      num_unusable: objects with a segmentation that no mask can be made of, by the rules of `prepare`.
      num_unknown: annotations of unknown categories and images, which are none of the objects.
      class_of_id: the class of each object with only a box, or whose mask counts for none, by annotation id.
      masks: what was predicted for them, by annotation id, also below the threshold.
      left: the reason for which an object keeps only its box, by annotation id.
    """

    threshold: float
    num_objects: int = 0
    num_predicted_before: int = 0
    num_hidden: int = 0
    num_unusable: int = 0
    num_unknown: int = 0
    class_of_id: dict[int, str] = dataclasses.field(default_factory=dict)
    masks: dict[int, ObjectMask] = dataclasses.field(default_factory=dict)
    left: dict[int, str] = dataclasses.field(default_factory=dict)

    def add_object(self, annotation_id: int, name: str) -> None:
        """Count an object with only a box."""
        self.class_of_id[annotation_id] = name

    def leave(self, reason: str, annotation_ids: Iterable[int]) -> None:
        """Count objects that keep only their boxes, for one of `REASONS`."""
        if reason not in REASONS:
            raise ValueError(f"unknown reason {reason!r}; expected one of {sorted(REASONS)}")
        self.left |= dict.fromkeys(annotation_ids, reason)

    def add_mask(self, annotation_id: int, mask: ObjectMask | None) -> None:
        """Take the mask of an object where it is good enough; None where none of its pixels is object."""
        if mask is None:
            self.leave("mask_empty", [annotation_id])
            return
        self.masks[annotation_id] = mask
        if mask.quality < self.threshold:
            self.leave("below_threshold", [annotation_id])

    @property
    def taken(self) -> dict[int, ObjectMask]:
        """The masks that are good enough, by annotation id."""
        return {i: mask for i, mask in self.masks.items() if i not in self.left}

    def to_json(self) -> dict[str, Any]:
        """Return the counts, by reason and by class, with the mean quality of what is taken."""
        taken = self.taken
        counts = collections.Counter(self.left.values())
        classes: dict[str, dict[str, Any]] = {}
        for annotation_id, name in self.class_of_id.items():
            row = classes.setdefault(name, {"boxes_only": 0, "masks": 0, "qualities": []})
            row["boxes_only"] += 1
            if annotation_id in taken:
                row["masks"] += 1
                row["qualities"].append(taken[annotation_id].quality)
        for row in classes.values():
            qualities = row.pop("qualities")
            row["mean_quality"] = float(np.mean(qualities)) if qualities else None
        return {
            "threshold": self.threshold,
            "num_objects": self.num_objects,
            "num_boxes_only": len(self.class_of_id),
            "num_predicted_before": self.num_predicted_before,
            "num_hidden": self.num_hidden,
            "num_unusable": self.num_unusable,
            "num_unknown": self.num_unknown,
            "num_masks": len(taken),
            "left": {
                reason: {"meaning": meaning, "count": counts[reason]}
                for reason, meaning in REASONS.items()
                if counts[reason]
            },
            "classes": classes,
        }

    def table(self) -> str:
        """Return the report as text, one line for each reason that occurred."""
        known = self.to_json()
        given = self.num_objects - len(self.class_of_id)
        lines = [f"{self.num_objects} objects: {given} with mask, {len(self.class_of_id)} with box only"]
        if self.num_predicted_before:
            lines.append(f"{self.num_predicted_before:>9}  of these had a predicted mask, which is predicted anew")
        if self.num_hidden:
            lines.append(f"{self.num_hidden:>9}  of these have a mask that is not used, by the choice of classes")
        if self.num_unusable:
            lines.append(
                f"{self.num_unusable:>9}  of these have a segmentation that is no usable mask, as `prepare` finds it"
            )
        qualities = [mask.quality for mask in self.taken.values()]
        mean = f", {np.mean(qualities):.2f} on average" if qualities else ""
        lines.append(f"{len(qualities):>9}  masks predicted, of a quality of {self.threshold:g} or more{mean}")
        for reason, row in known["left"].items():
            ids = [i for i in self.class_of_id if self.left.get(i) == reason]
            lines.append(f"{row['count']:>9}  left with box only: {row['meaning']} [{reason}; ids {some(ids)}]")
        if self.num_unknown:
            lines.append(
                f"{self.num_unknown:>9}  annotations besides, of unknown categories or images: left as they are"
            )
        return "\n".join(lines)
