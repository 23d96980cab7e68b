"""What a training set has of each class: boxes, masks, and so its role."""

import numpy as np

from maskx_jax.data.records import Source

ROLES = ("A", "B", "mixed", "unseen")


def count_labels(source: Source, allowed_masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each label, int `C + 1`, its boxes and its masks that may be used; crowds do not count.

    Args:
      source: only its index is read.
      allowed_masks: bool `C + 1`; see `mask_classes.mask_labels`.
    """
    num_labels = len(source.categories) + 1
    labels = np.concatenate([np.zeros(0, np.int64), *source.image_labels]).astype(np.int64)
    has_mask = np.concatenate([np.zeros(0, bool), *source.image_has_mask]).astype(bool)
    boxes = np.bincount(labels, minlength=num_labels)
    masks = np.bincount(labels[has_mask & allowed_masks[labels]], minlength=num_labels)
    return boxes, masks


def class_roles(source: Source, allowed_masks: np.ndarray) -> np.ndarray:
    """Return for each label, text `C + 1`, one of `ROLES`: what the training set `source` has of the class.

    It is "A" where every box has a mask that may be used, "B" where none has, "mixed" where some have, and "unseen"
    where there is no box, as for background. So `class_roles(...) == "B"` are the labels that learn without masks,
    whether a split takes their masks away or the annotations have none.

    Args: as of `count_labels`.
    """
    return _roles(*count_labels(source, allowed_masks))


def class_table(source: Source, allowed_masks: np.ndarray) -> str:
    """Return the table of classes that a run prints as it starts; see `class_summary` for many classes.

    For each class: its boxes, its masks that may be used, and its role: A (all boxes have masks), B (none has), mixed,
    or unseen (no box). Crowds do not count.
    """
    boxes, masks = count_labels(source, allowed_masks)
    roles = _roles(boxes, masks)
    rows = [
        (name, str(boxes[label]), str(masks[label]), str(roles[label]))
        for label, name in enumerate(source.categories.names, start=1)
    ]
    rows.append(("total", str(boxes.sum()), str(masks.sum()), _count_roles(roles)))
    rows.insert(0, ("class", "boxes", "masks", "role"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{name:<{widths[0]}} | {num_boxes:>{widths[1]}} | {num_masks:>{widths[2]}} | {role}"
        for name, num_boxes, num_masks, role in rows
    )


def class_summary(source: Source, allowed_masks: np.ndarray, num_named: int = 5) -> str:
    """Return in three lines what `class_table` says: totals, and the classes with the most and with the fewest boxes.

    Args: as of `count_labels`, and `num_named`, the classes that each line names.
    """
    boxes, masks = count_labels(source, allowed_masks)
    roles = _roles(boxes, masks)
    # Of equally many the first one first, in both lines.
    most, fewest = (np.argsort(sign * boxes[1:], kind="stable")[:num_named] for sign in (-1, 1))
    names = source.categories.names

    def line(title: str, chosen: np.ndarray) -> str:
        return f"{title}: " + ", ".join(f"{names[i]} {boxes[i + 1]}" for i in chosen.tolist())

    total = f"{len(names)} classes: {_count_roles(roles)}; {boxes.sum()} boxes, {masks.sum()} masks"
    return "\n".join([total, line("most boxes", most), line("fewest boxes", fewest)])


def _roles(boxes: np.ndarray, masks: np.ndarray) -> np.ndarray:
    return np.select([boxes == 0, masks == 0, masks == boxes], ["unseen", "B", "A"], "mixed")


def _count_roles(roles: np.ndarray) -> str:
    return ", ".join(f"{(roles[1:] == role).sum()} {role}" for role in ROLES)
