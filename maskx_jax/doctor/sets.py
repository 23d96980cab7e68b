"""Looks at a split as a whole, and at splits beside each other."""

from collections.abc import Mapping, Sequence

import numpy as np

from maskx_jax.coco.categories import same_classes
from maskx_jax.doctor.objects import Objects
from maskx_jax.doctor.structure import Split


def examine(split: Split, objects: Objects) -> None:
    """Count images without objects, classes without any or with masks in part, and strange sizes of images."""
    number = len(split.images)
    given = {image_id: 0 for image_id in (image["id"] for image in split.images)}
    for annotation in split.annotations:
        given[annotation["image_id"]] += 1
    # An image all of whose annotations were dropped is counted with those that have none.
    crowds = np.bincount(objects.image_index[objects.is_crowd], minlength=number)
    plain = np.bincount(objects.image_index[~objects.is_crowd], minlength=number)
    ids = [image["id"] for image in split.images]
    split.findings.add_all("image_negative", [image_id for image_id in ids if not given[image_id]])
    split.findings.add_all("image_crowd_only", [ids[i] for i in np.flatnonzero((crowds > 0) & (plain == 0)).tolist()])
    sizes = split.sizes()
    thin = sizes.all(axis=1) & ((sizes.max(axis=1) > 16 * sizes.min(axis=1)) | (sizes.min(axis=1) < 16))
    for index in np.flatnonzero(thin).tolist():
        split.findings.add("image_thin", ids[index], "height {} and width {}".format(*sizes[index].tolist()))
    _examine_classes(split, objects)
    _examine_lvis(split)


def _examine_classes(split: Split, objects: Objects) -> None:
    counts, masks = class_counts(split, objects)
    for label, name in enumerate(split.categories.names, start=1):
        if not counts[label]:
            split.findings.add("class_unseen", name, category=name)
        elif 0 < masks[label] < counts[label]:
            split.findings.add("class_mixed", name, f"{masks[label]} of {counts[label]} have masks", name)


def class_counts(split: Split, objects: Objects) -> tuple[np.ndarray, np.ndarray]:
    """Return for each label, int64 `C + 1`, its objects that are no crowd, and those of them that have masks."""
    length = len(split.categories) + 1
    return (
        np.bincount(objects.labels[~objects.is_crowd], minlength=length),
        np.bincount(objects.labels[objects.has_mask], minlength=length),
    )


def _examine_lvis(split: Split) -> None:
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        lacking = [image["id"] for image in split.images if not isinstance(image.get(key), list)]
        if len(lacking) < len(split.images):
            split.findings.add_all("lvis_lists", lacking)


def compare(splits: Sequence[Split], objects: Mapping[str, Objects]) -> None:
    """Compare the first split, which is trained on, with the others."""
    first, *others = splits
    trained, _ = class_counts(first, objects[first.name])
    trained_names = {name for label, name in enumerate(first.categories.names, start=1) if trained[label]}
    for other in others:
        try:
            what = f"splits {first.name!r} and {other.name!r}"
            same_classes(first.categories, other.categories, what, same_ids=True)
        except ValueError as error:
            other.findings.add("categories_differ", other.name, str(error))
        counts, _ = class_counts(other, objects[other.name])
        for label, name in enumerate(other.categories.names, start=1):
            if counts[label] and name not in trained_names:
                other.findings.add("class_new_in_split", name, f"{counts[label]} objects", name)
