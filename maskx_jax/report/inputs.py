"""What a report is about: images with their ground truth, and what one or several models found in them."""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from maskx_jax import files
from maskx_jax.coco import mask_classes, rle
from maskx_jax.coco.categories import Categories, same_classes
from maskx_jax.coco.garbage import no_garbage_collection
from maskx_jax.data.reading import read_record
from maskx_jax.data.records import Source, decode_image
from maskx_jax.data.transforms import decode
from maskx_jax.evaluation import metrics, scores
from maskx_jax.evaluation.checks import as_id, check_ground_truth
from maskx_jax.evaluation.results import read_results
from maskx_jax.runs import evaluation
from maskx_jax.runs.logs import read_metrics
from maskx_jax.runs.workdir import CONFIG_FILE, read_config

# Returns uint8 `h w 3` RGB of the image with this id.
Picture = Callable[[int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Model:
    """What one model found.

    Attributes:
      title: as it stands in the report.
      results: COCO results entries.
      history: lines of its metrics.jsonl.
      where: its results come from, for the report and for errors.
    """

    title: str
    results: list[dict]
    history: Sequence[Mapping[str, float]] = ()
    where: str = ""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images and their ground truth, and how they are scored.

    Attributes:
      ground_truth: a COCO instances dict.
      groups: category ids by the name of the group, such as A and B.
      kinds: of "bbox", "segm" and "boundary".
      max_detections: that count; None for the usual number.
      picture: reads an image by its id; None where there are no images.
    """

    ground_truth: Mapping[str, Any]
    groups: Mapping[str, Sequence[int]]
    kinds: Sequence[str]
    max_detections: int | None = None
    picture: Picture | None = None


@no_garbage_collection()
def open_runs(
    workdirs: Sequence[str | pathlib.Path],
    step: int | None = None,
    *,
    directory: str | None = None,
    split: str | None = None,
    others: Mapping[str, str | os.PathLike] | None = None,
) -> tuple[Dataset, list[Model]]:
    """Open what `evaluate` left in some runs, all on the same images; groups are those of the first that has any.

    Args:
      workdirs: of the runs.
      step: of the evaluation; the latest by default.
      directory: prepared dataset, where it is not that of the runs.
      split: of it, likewise.
      others: files of COCO results on the same images, by title.

    Raises:
      FileNotFoundError: a run has no evaluation.
      ValueError: the runs were not evaluated on the same images or classes, or something of them is damaged.
      OSError: something cannot be read.
    """
    titles = _titles([pathlib.Path(workdir) for workdir in workdirs])
    models: list[Model] = []
    opened: list[tuple[ConfigDict, Source, Mapping[str, Sequence[int]]]] = []
    for title, workdir in zip(titles, workdirs, strict=True):
        folder = _evaluation_folder(pathlib.Path(workdir), step)
        # As it was evaluated; earlier versions did not write it down.
        begun = read_config(workdir)
        config = read_config(folder) if (folder / CONFIG_FILE).exists() else begun
        source = evaluation.open_evaluated(config, directory, split)
        if opened:
            _check_same_images(source, opened[0][1], f"{workdir} and {workdirs[0]}")
        opened.append((config, source, evaluation.groups_of_run(workdir, begun, source.categories, config)))
        results = read_results(folder / "results.json")
        models.append(Model(title, results, read_metrics(workdir), str(folder)))
    models += [Model(title, read_results(path), (), os.fspath(path)) for title, path in (others or {}).items()]
    config, source, _ = opened[0]
    ground_truth = source.coco_ground_truth()
    groups: Mapping[str, Sequence[int]] = next((groups for *_, groups in opened if groups), {})
    kinds = _shared_kinds(models)
    if "segm" in kinds and any(config.evaluation.boundary for config, *_ in opened):
        kinds = (*kinds, "boundary")
    # As they were scored; of several runs, the detections that all of them may have made.
    most = max(config.model.max_detections for config, *_ in opened)
    dataset = Dataset(ground_truth, groups, kinds, most, picture_of_source(source))
    _check_titles(models)
    return dataset, models


@no_garbage_collection()
def open_files(
    results: Mapping[str, str | os.PathLike],
    annotations: str | os.PathLike,
    *,
    images: str | os.PathLike | None = None,
    with_masks: str = "all",
    boundary: bool = False,
    max_detections: int | None = None,
) -> tuple[Dataset, list[Model]]:
    """Open files of COCO results on a file of annotations.

    Args:
      results: the files by title.
      annotations: COCO instances, or LVIS'.
      images: folder of the images that the annotations name; without it the report shows no pictures.
      with_masks: the classes of A; see `coco.mask_classes.mask_labels`.
      boundary: score the boundaries of masks too.
      max_detections: that count; see `metrics.score`.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is malformed; one line that names it and the entry.
    """
    ground_truth = files.read_json(annotations)
    models = [Model(title, read_results(path), (), os.fspath(path)) for title, path in results.items()]
    kinds = _shared_kinds(models)
    try:
        check_ground_truth(ground_truth, kinds)
    except ValueError as error:
        raise ValueError(f"{annotations}: {error}") from None
    if wrong := [as_id(i["id"]) for i in ground_truth["images"] if not rle.is_size([i.get("height"), i.get("width")])]:
        raise ValueError(f"{annotations}: {len(wrong)} images have no height and width, the first of id {wrong[0]}")
    categories = Categories.from_coco(
        [{**category, "id": as_id(category["id"])} for category in ground_truth["categories"]]
    )
    groups = scores.mask_groups(categories, mask_classes.mask_labels(with_masks, categories))
    if boundary and "segm" in kinds:
        kinds = (*kinds, "boundary")
    picture = None if images is None else _picture_of_folder(pathlib.Path(images), ground_truth)
    dataset = Dataset(ground_truth, groups, kinds, max_detections, picture)
    _check_titles(models)
    return dataset, models


def most_detections(dataset: Dataset) -> int:
    """Return the number of detections that count."""
    usual = metrics.usual_max_detections(metrics.is_federated(dataset.ground_truth))
    return usual if dataset.max_detections is None else dataset.max_detections


def default_folder(workdir: str | pathlib.Path, step: int | None = None) -> pathlib.Path:
    """Return the folder that a report of a run is written to: `report`, beside the results.

    Raises:
      FileNotFoundError: the run has no evaluation, or none of this step.
      ValueError: a symbolic link on the way leads out of the run.
    """
    found = _evaluation_folder(pathlib.Path(workdir), step)
    return files.folder_in(workdir, "evaluation", found.name) / "report"


def _titles(workdirs: Sequence[pathlib.Path]) -> list[str]:
    """Return the names of the folders, or their paths where names repeat."""
    counts = collections.Counter(path.resolve().name for path in workdirs)
    titles = [path.resolve().name if counts[path.resolve().name] == 1 else str(path) for path in workdirs]
    if len(set(titles)) < len(titles):
        raise ValueError(f"got a run twice: {', '.join(titles)}; expected each once")
    return titles


def _evaluation_folder(workdir: pathlib.Path, step: int | None) -> pathlib.Path:
    """Return the folder of an evaluation of a run: of a step, or the latest."""
    evaluations = workdir / "evaluation"
    steps = [int(path.parent.name) for path in evaluations.glob("*/results.json") if path.parent.name.isdecimal()]
    if not steps or (step is not None and step not in steps):
        found = f"of steps {sorted(steps)}" if steps else "none"
        raise FileNotFoundError(
            f"{evaluations}: expected an evaluation{'' if step is None else f' of step {step}'}, found {found}; "
            f"python -m maskx_jax evaluate --workdir={workdir} makes one"
        )
    return evaluations / str(max(steps) if step is None else step)


def _check_same_images(source: Source, first: Source, which: str) -> None:
    same_classes(source.categories, first.categories, which, same_ids=True)
    if source.identity != first.identity:
        raise ValueError(
            f"{which} were not evaluated on the same images: {len(source)} and {len(first)} of them, or other objects; "
            "--directory and --split name one set for all"
        )


def _shared_kinds(models: Sequence[Model]) -> tuple[str, ...]:
    """Return the kinds that all models can be scored by: masks only where each has some."""
    kinds = [scores.kinds_of(model.results) for model in models if model.results]
    shared = tuple(kind for kind in ("bbox", "segm") if all(kind in of_model for of_model in kinds))
    if any("keypoints" in of_model for of_model in kinds):
        logging.warning("keypoints are not in a report; their scores are those of evaluate, and of score")
    if not shared and kinds:
        only = ", ".join(sorted({" and ".join(of_model) for of_model in kinds}))
        raise ValueError(f"got results with {only}; expected boxes (bbox) in all of them, or masks (segm) in all")
    return shared if kinds else ("bbox",)


def _check_titles(models: Sequence[Model]) -> None:
    if repeated := [t for t, n in collections.Counter(model.title for model in models).items() if n > 1]:
        raise ValueError(f"got the title {repeated[0]!r} twice; expected one for each model")


def picture_of_source(source: Source) -> Picture:
    """Return what reads an image of a source by its id."""
    index = {image_id: number for number, image_id in enumerate(source.image_ids.tolist())}
    return lambda image_id: decode(read_record(source, index[image_id]))


def _picture_of_folder(folder: pathlib.Path, ground_truth: Mapping[str, Any]) -> Picture:
    images = {as_id(image["id"]): image for image in ground_truth["images"]}

    def read(image_id: int) -> np.ndarray:
        image = images[image_id]
        name, size = image.get("file_name"), (image["height"], image["width"])
        if not isinstance(name, str) or not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"image {image_id}: file_name {name!r}; expected a file below {folder}")
        try:
            pixels = decode_image((folder / name).read_bytes(), size)
        except ValueError as error:
            raise ValueError(f"{folder / name}: {error}") from None
        if pixels.shape[:2] != size:
            raise ValueError(
                f"{folder / name}: its height and width are {pixels.shape[:2]}; the annotations say {size}"
            )
        return pixels

    return read
