"""Model-assisted labelling: a file of annotations, with masks for the objects that had only boxes."""

import os
import pathlib

from maskx_jax import files
from maskx_jax.data.coco.annotations import read_instances
from maskx_jax.data.coco.report import Report as ReadingReport
from maskx_jax.labelling import objects, writing
from maskx_jax.labelling.report import Report

# Of the objects of `shapes`, masks from here on are about as good as... (docs/label.md)
THRESHOLD = 0.5


def label(
    annotations: str | os.PathLike,
    output: str | os.PathLike,
    *,
    workdir: str | os.PathLike,
    images: str | os.PathLike,
    step: int | None = None,
    threshold: float = THRESHOLD,
    skip_bad_images: bool = False,
    overwrite: bool = False,
) -> Report:
    """Predict masks on the boxes of the objects that have nothing else, and write the annotations with them.

    Args:
      annotations: COCO instances.
      output: the file to write.
      workdir: of the run that predicts.
      images: folder of the images.
      step: of the run's checkpoint; the latest by default.
      threshold: quality from which a mask is taken, see `quality.ObjectMask`.
      skip_bad_images: leave out images that cannot be read, instead of stopping.
      overwrite: replace the file at `output`.

    Returns:
      What became of each object.

    Raises:
      FileExistsError: there is a file at `output`.
      FileNotFoundError: an input is missing.
      ValueError: an input is unsound, or the model makes no masks.
    """
    annotations, output = pathlib.Path(annotations), pathlib.Path(output)
    _check_output(output, annotations, overwrite)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected a value from 0 to 1")
    folder = pathlib.Path(images)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; expected that of the images")
    instances = read_instances(annotations, ReadingReport("annotations"))
    report = Report(threshold)
    pictures = objects.find(instances, folder, report, skip_bad_images=skip_bad_images)

    from maskx_jax.labelling.predicting import predict
    from maskx_jax.runs.loading import load

    loaded = load(os.fspath(workdir), step)
    predict(loaded, pictures, instances.categories, folder, report, skip_bad_images=skip_bad_images)
    # Read again: `read_instances` fills in what is missing, and these are to stay as they are.
    content = files.read_json(annotations)
    writing.add_masks(content, report.taken, f"{workdir}, step {loaded.step}")
    files.write_json(output, content, indent=None, separators=(",", ":"))
    return report


def _check_output(output: pathlib.Path, annotations: pathlib.Path, overwrite: bool) -> None:
    if not output.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {output.parent} for the output")
    if output.exists() and annotations.exists() and output.samefile(annotations):
        raise ValueError(f"{output} is the file of annotations itself; expected another file for the output")
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists; remove it, or use overwrite to replace it")
