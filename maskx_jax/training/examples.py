"""What a run learns from and is scored on: two sources, whose masks may be used, and the order of the examples."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from maskx_jax import files
from maskx_jax.coco import mask_classes
from maskx_jax.coco.categories import Categories, same_classes
from maskx_jax.data import pipeline, sources
from maskx_jax.data.loaders import choose_workers
from maskx_jax.data.reading import read_record
from maskx_jax.data.records import BrokenRecordError, Record, Source
from maskx_jax.data.roles import class_summary, class_table
from maskx_jax.data.schedule import Schedule, repeat_factors
from maskx_jax.data.transforms import Transform
from maskx_jax.runs import evaluation
from maskx_jax.runs.logs import info
from maskx_jax.structures import Batch
from maskx_jax.training.checks import check_keypoints, choose_best_metric

CLASSES_FILE = "classes.txt"
_MOST_CLASSES_PRINTED = 100


@dataclasses.dataclass(frozen=True)
class Examples:
    """What a run learns from and is scored on.

    Attributes:
      train_source: of the training images.
      eval_source: of the images that evaluations are made on.
      allowed_masks: by label, whether its masks may be used in training.
      groups: category ids of the groups that are scored apart, such as A and B.
      best_metric: by which the best checkpoint is chosen; None where there is none.
      transform: from a record to an example.
      order: of the examples, by step.
    """

    train_source: Source
    eval_source: Source
    allowed_masks: np.ndarray
    groups: Mapping[str, Sequence[int]]
    best_metric: str | None
    transform: Transform
    order: Schedule

    @property
    def categories(self) -> Categories:
        """What the labels of the model stand for, with the skeleton of its keypoints."""
        return dataclasses.replace(self.train_source.categories, skeleton=self.train_source.skeleton)

    def batches(self, config: ConfigDict, start_step: int, statistics: pipeline.Statistics) -> Iterator[Batch]:
        """Return this process' share of each batch from `start_step` to the run's end; see `pipeline.train_batches`."""
        data = config.data
        num_workers = choose_workers(data.num_workers)
        ahead = f", {data.read_ahead} records read ahead" if data.read_ahead else ""
        info(f"examples are made by {data.loader}, {num_workers} at a time on each process{ahead}")
        return pipeline.train_batches(
            self.train_source,
            self.order,
            self.transform,
            self.allowed_masks,
            start_step=start_step,
            stop_step=config.train.num_steps,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            loader=data.loader,
            num_workers=num_workers,
            prefetch=data.prefetch,
            read_ahead=data.read_ahead,
            max_broken_records=data.max_broken_records,
            statistics=statistics,
            keypoint_fraction=data.keypoint_fraction,
            predicted_mask_weight=data.predicted_mask_weight,
        )


def open_examples(
    config: ConfigDict, workdir: str | pathlib.Path, open_source: Callable[..., Source] = sources.open_source
) -> Examples:
    """Open the data of a run, and print what each class has of it; of many classes a summary.

    Args:
      config: of the run.
      workdir: of the run; the table of many classes is written into it.
      open_source: see `sources.open_source`.

    Raises:
      ValueError: the data do not fit the config, or the evaluation's data those of training.
      OSError: they cannot be read, or the table not be written.
    """
    train_source, eval_source = (
        open_source(config.data, training=training, seed=config.seed) for training in (True, False)
    )
    categories = train_source.categories
    check_keypoints(config.model, train_source.skeleton)
    _check_predicted_masks(config.data.predicted_mask_weight, train_source)
    same_classes(eval_source.categories, categories, "the evaluation and the training data")
    allowed_masks = mask_classes.mask_labels(config.data.mask_classes, categories)
    info(f"{len(train_source)} training images\n{_describe_classes(train_source, allowed_masks, workdir)}")
    groups = evaluation.trained_groups(train_source, config)
    best_metric = None
    if config.train.eval_every > 0:
        measured = evaluation.measured_metrics(config, groups, eval_source)
        best_metric = choose_best_metric(config.train.best_metric, measured)
    transform = Transform(**config.data.transform)
    order = _order(config, train_source, transform)
    return Examples(train_source, eval_source, allowed_masks, groups, best_metric, transform, order)


def _check_predicted_masks(weight: float, source: Source) -> None:
    if weight == 1:
        return
    record = next(_readable_records(source), None)
    if record is not None and record.mask_weight is None:
        raise ValueError(
            f"data.predicted_mask_weight is {weight}; expected 1 for training data that do not say which masks were "
            "predicted: prepare them with --predicted_masks=use, again where an earlier version did"
        )


def _readable_records(source: Source) -> Iterator[Record]:
    for index in range(len(source)):
        # A damaged record is named, and counted, in its turn.
        with contextlib.suppress(BrokenRecordError):
            yield read_record(source, index)


def _describe_classes(source: Source, allowed_masks: np.ndarray, workdir: str | pathlib.Path) -> str:
    """Return what a run prints of its classes; the first process writes the table that is too long to print."""
    table = class_table(source, allowed_masks)
    if len(source.categories) <= _MOST_CLASSES_PRINTED:
        return table
    path = epath.Path(workdir) / CLASSES_FILE
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, table + "\n")
    return f"{class_summary(source, allowed_masks)}\nthe table of all classes: {path}"


def _order(config: ConfigDict, source: Source, transform: Transform) -> Schedule:
    data = config.data
    factors = repeat_factors(source.image_labels, len(source.categories), data.repeat_threshold, data.keep_empty_images)
    if not data.keep_empty_images:
        info(f"{(factors == 0).sum()} of them without objects are left out")
    return Schedule(source.sizes, config.train.batch_size, config.seed, factors, transform.single_canvas)
