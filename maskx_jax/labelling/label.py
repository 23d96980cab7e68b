"""Model-assisted labelling: a file of annotations, with masks for the objects that had only boxes."""

import os
import pathlib
from collections.abc import Sequence

from maskx_jax import files
from maskx_jax.coco import mask_classes as classes_with_masks
from maskx_jax.coco.categories import Categories
from maskx_jax.data.coco.annotations import read_instances
from maskx_jax.data.coco.report import Report as ReadingReport
from maskx_jax.labelling import objects, writing
from maskx_jax.labelling.matching import match
from maskx_jax.labelling.report import Report

THRESHOLD = 0.5


def label(
    annotations: str | os.PathLike,
    output: str | os.PathLike,
    *,
    workdir: str | os.PathLike | None = None,
    masks: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
    step: int | None = None,
    threshold: float = THRESHOLD,
    segmentation: str = "rle",
    ignore_classes: bool = False,
    skip_bad_images: bool = False,
    drop_unknown: bool = False,
    allow_outside: bool = False,
    mask_classes: str | Sequence[str] = "annotated",
    overwrite: bool = False,
) -> Report:
    """Find masks for the objects that have only boxes, and write the annotations with them.

    Args:
      annotations: COCO instances.
      output: the file to write; beside it, `.report.json` in place of its ending, what `Report.to_json` returns.
      workdir: of the run that predicts the masks; or
      masks: COCO results that have them, see `matching.match`.
      images: folder of the images, which a run needs.
      step: of the run's checkpoint; the latest by default.
      threshold: quality from which a mask is taken, see `quality.ObjectMask`.
      segmentation: form of the masks, see `writing.add_masks`.
      ignore_classes: whether masks of `masks` fit objects of any class.
      skip_bad_images: leave out images that cannot be read, instead of stopping.
      drop_unknown: leave annotations of unknown categories and images as they are, instead of stopping.
      allow_outside: take image files outside their folder, named by an absolute path or by `..`.
      mask_classes: the classes whose masks are known, see `coco.mask_classes.mask_labels`. Objects of all others count
        as having only boxes: their masks are taken away.
      overwrite: replace the file at `output`.

    Returns:
      What became of each object.

    Raises:
      FileExistsError: there is a file at `output`.
      FileNotFoundError: an input is missing.
      ValueError: an input is unsound, arguments do not go together, or the model makes no masks.
    """
    annotations, output = pathlib.Path(annotations), pathlib.Path(output)
    _check_output(output, annotations, overwrite)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected a value from 0 to 1")
    if segmentation not in writing.SEGMENTATIONS:
        raise ValueError(f"segmentation is {segmentation!r}; expected one of {', '.join(writing.SEGMENTATIONS)}")
    folder = None if images is None else pathlib.Path(images)
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; expected that of the images")
    if (workdir is None) == (masks is None):
        raise ValueError("expected one of workdir, a run that predicts the masks, and masks, a file of results")
    if (step is not None and workdir is None) or (ignore_classes and masks is None):
        raise ValueError("step goes with workdir, and ignore_classes with masks; got the other")
    reading = ReadingReport("annotations")
    instances = read_instances(annotations, reading, drop_unknown, allow_outside)
    num_unknown = sum(reading.counts.get(reason, 0) for reason in ("unknown_category", "unknown_image"))
    report = Report(threshold, num_unknown=num_unknown)
    allowed = classes_with_masks.mask_labels(mask_classes, instances.categories)
    kept_ids = {i for i, label in instances.categories.label_of_id().items() if allowed[label]}
    pictures = objects.find(instances, folder, report, skip_bad_images=skip_bad_images, kept_ids=kept_ids)
    if masks is not None:
        image_ids = [image["id"] for image in instances.images]
        match(masks, pictures, image_ids, instances.categories, report, ignore_classes=ignore_classes)
        source = str(masks)
    elif workdir is not None:
        source = _predict(workdir, step, pictures, instances.categories, folder, report, skip_bad_images)
    # They may take gigabytes. Read again, since `read_instances` fills in what is missing, and all is to stay as it is.
    del instances
    content = files.read_json(annotations)
    writing.add_masks(content, report.class_of_id.keys(), report.taken, source, segmentation)
    # First: where there are the annotations, there is their report.
    files.write_json(output.with_suffix(".report.json"), report.to_json())
    files.write_json(output, content, indent=None, separators=(",", ":"))
    return report


def _predict(
    workdir: str | os.PathLike,
    step: int | None,
    pictures: Sequence[objects.Picture],
    categories: Categories,
    folder: pathlib.Path | None,
    report: Report,
    skip_bad_images: bool,
) -> str:
    """Predict masks by a run, and return which it is."""
    if folder is None:
        raise ValueError("a run predicts in images; expected images, their folder")
    # They take seconds to import, and masks made elsewhere do without.
    from maskx_jax.labelling.predicting import predict
    from maskx_jax.runs.loading import load

    loaded = load(os.fspath(workdir), step)
    predict(loaded, pictures, categories, folder, report, skip_bad_images=skip_bad_images)
    return f"{workdir}, step {loaded.step}"


def _check_output(output: pathlib.Path, annotations: pathlib.Path, overwrite: bool) -> None:
    if not output.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {output.parent} for the output")
    if output.exists() and annotations.exists() and output.samefile(annotations):
        raise ValueError(f"{output} is the file of annotations itself; expected another file for the output")
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists; remove it, or use overwrite to replace it")
