"""What a training set has of each class: boxes, masks, and so its role."""

import numpy as np

from maskx_jax.data.records import Source

ROLES = ("A", "B", "mixed", "unseen")


def count_labels(source: Source, allowed_masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each label, int `C + 1`, its boxes and its masks that may be used; crowds do not count.

    Args:
      source: read by its index alone.
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
    boxes, masks = count_labels(source, allowed_masks)
    return np.select([boxes == 0, masks == 0, masks == boxes], ["unseen", "B", "A"], "mixed")
