"""Batches from a source: which examples (schedule), how they are made (transform); `loaders` says who makes them."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from absl import logging

from maskx_jax import errors
from maskx_jax.data.loaders import MakeExample, ReadExample, load
from maskx_jax.data.reading import read_record
from maskx_jax.data.records import BrokenRecordError, Record, Source, check_record
from maskx_jax.data.schedule import ORIENTATION_NAMES, Schedule, evaluation_order
from maskx_jax.data.transforms import Counts, Transform, remove_keypoints, remove_masks, weigh_masks
from maskx_jax.structures import Batch


class _BrokenExample(RuntimeError):
    """No example can be made of a record, now or ever."""


@dataclasses.dataclass(frozen=True)
class Made:
    """What became of a record.

    Attributes:
      image_id: of the example that was made.
      counts: of its objects.
      broken: index and cause of the records that it stands in for.
    """

    image_id: int
    counts: Counts
    broken: Mapping[int, str]


class Statistics:
    """What became of the records and objects of the batches that this process took.

    Attributes:
      num_examples: examples made.
      overflow: objects without a slot, for want of slots.
      outside: objects cropped away, or too small after resizing.
      broken: index and cause of every broken record that is skipped.
    """

    def __init__(self) -> None:
        self.num_examples = 0
        self.overflow = 0
        self.outside = 0
        self.broken: dict[int, str] = {}

    def add(self, made: Made, num_slots: int, max_broken: int) -> None:
        """Count one example; the first overflow and each broken record are logged.

        A broken record counts once, however often it is met.

        Raises:
          RuntimeError: there are more than `max_broken`; the message names them all.
        """
        for index, cause in made.broken.items():
            if index not in self.broken:
                self._add_broken(index, cause, max_broken)
        if self.overflow == 0 and made.counts.overflow > 0:
            logging.warning(
                "image %d has %d objects more than the %d ground-truth slots; its smallest objects are left out. "
                "Raise num_slots to keep them. Further overflow is only counted.",
                made.image_id,
                made.counts.overflow,
                num_slots,
            )
        self.num_examples += 1
        self.overflow += made.counts.overflow
        self.outside += made.counts.outside

    def _add_broken(self, index: int, cause: str, limit: int) -> None:
        count = len(self.broken) + 1
        if count > limit:
            causes = "; ".join([*self.broken.values(), cause])
            raise RuntimeError(
                f"got {count} broken records, expected at most {limit} (data.max_broken_records): {causes}"
            )
        self.broken[index] = cause
        logging.warning("broken record %d of at most %d, another takes its place: %s", count, limit, cause)


def train_batches(
    source: Source,
    schedule: Schedule,
    transform: Transform,
    allowed_masks: np.ndarray,
    start_step: int = 0,
    stop_step: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    loader: str = "threads",
    num_workers: int | None = None,
    prefetch: int = 2,
    read_ahead: int = 0,
    max_broken_records: int = 0,
    statistics: Statistics | None = None,
    keypoint_fraction: float = 1.0,
    predicted_mask_weight: float = 1.0,
) -> Iterator[Batch]:
    """Yield this process's part of every global batch, from `start_step` on.

    Args:
      source: the dataset.
      schedule: the order of its examples.
      transform: what becomes of them. Its random choices depend on the schedule's seed, the step and the place in the
        global batch.
      allowed_masks: bool `C + 1`, the labels whose masks may be used; see `mask_classes.mask_labels`.
      start_step: the first step.
      stop_step: the one after the last; None for no end. No batch is made ahead that nobody takes.
      process_index: which part of the global batch.
      process_count: in how many parts the global batch is cut.
      loader: one of `loaders.LOADERS`.
      num_workers: examples made at the same time; None for one a core, see `loaders.choose_workers`.
      prefetch: batches made ahead.
      read_ahead: records read at the same time, before their turn; see `loaders.load`.
      max_broken_records: how many records this process may find that are damaged or hold what cannot be learned from (a
        box that is not finite, a label that is no class). Wherever the order has one of them, the next good one stands
        in; see `Schedule.candidates`.
      statistics: counts what becomes of records and objects.
      keypoint_fraction: of the objects, how many keep their keypoints; see `transforms.remove_keypoints`.
      predicted_mask_weight: factor of the weights of predicted masks; see `transforms.weigh_masks`.

    Raises:
      ValueError: an argument is out of range, or the batch cannot be cut into equal parts.
      RuntimeError: while iterating, where there are more broken records, or none to stand in, or where a record cannot
        be read for the moment; the message names the images and the causes.
    """
    if allowed_masks.shape != (len(source.categories) + 1,):
        raise ValueError(
            f"allowed_masks has shape {allowed_masks.shape}; expected {(len(source.categories) + 1,)}: "
            f"background and {len(source.categories)} categories"
        )
    for name, value in (("start_step", start_step), ("max_broken_records", max_broken_records)):
        if value < 0:
            raise ValueError(f"{name} is {value}; expected 0 or more")
    for name, fraction in (("keypoint_fraction", keypoint_fraction), ("predicted_mask_weight", predicted_mask_weight)):
        if not 0 <= fraction <= 1:
            raise ValueError(f"{name} is {fraction}; expected a value from 0 to 1")
    read_example = _TrainExamples(source, schedule, transform, allowed_masks, keypoint_fraction, predicted_mask_weight)
    part = _Part(schedule.batch_size, process_index, process_count)
    counted = statistics or Statistics()

    def count(remarks: list[Made]) -> None:
        for made in remarks:
            counted.add(made, transform.num_slots, max_broken_records)

    numbered = part.numbered(read_example)
    return load(loader, numbered, part.size, start_step, stop_step, num_workers, prefetch, read_ahead, count)


def evaluation_batches(
    source: Source,
    transform: Transform,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    loader: str = "threads",
    num_workers: int | None = None,
    prefetch: int = 2,
    read_ahead: int = 0,
) -> Iterator[Batch]:
    """Yield this process's part of the global batches of one pass; each image is valid exactly once over all processes.

    The ground truth has no slots: detecting needs none, and scoring takes `Source.coco_ground_truth`.

    A broken record always stops the pass: a score without its image would be another score.

    Args: as of `train_batches`; `transform` is used without its randomness.

    Raises:
      ValueError: an argument is out of range, or the batch cannot be cut into equal parts.
      RuntimeError: while iterating, where an example cannot be made; the message names the image.
    """
    part = _Part(batch_size, process_index, process_count)
    batches = evaluation_order(source.sizes, batch_size, transform.single_canvas)
    transform = transform.for_evaluation()

    def read_example(step: int, slot: int) -> MakeExample:
        portrait, indices, valid = batches[step]
        canvas = transform.canvas_of(bool(portrait))
        index = int(indices[slot])
        record = _read(source, index)

        def without_ground_truth(record: Record) -> tuple[Batch, Counts]:
            return transform(record, canvas, np.random.default_rng(0), num_slots=0)

        def make_example() -> tuple[Batch, None]:
            example, _ = _make_example(source, index, record, without_ground_truth)
            return dataclasses.replace(example, valid=np.array(valid[slot])), None

        return make_example

    return load(loader, part.numbered(read_example), part.size, 0, len(batches), num_workers, prefetch, read_ahead)


class _Part:
    """The slots of a global batch that one process makes."""

    def __init__(self, batch_size: int, process_index: int, process_count: int) -> None:
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index is {process_index}; expected a value from 0 to {process_count - 1}")
        if batch_size < 1 or batch_size % process_count:
            raise ValueError(f"a global batch of {batch_size} images cannot be cut into {process_count} equal parts")
        self.size = batch_size // process_count
        self._first = process_index * self.size

    def numbered(self, read_example: Callable[[int, int], MakeExample]) -> ReadExample:
        """Turn (step, slot of the global batch) -> example into number of this process's example -> example."""

        def read_numbered(number: int) -> MakeExample:
            step, slot = divmod(number, self.size)
            return read_example(step, self._first + slot)

        return read_numbered


@dataclasses.dataclass(frozen=True)
class _TrainExamples:
    """Reads and makes the example of a step and a slot; a good record stands in for a broken one."""

    source: Source
    schedule: Schedule
    transform: Transform
    allowed_masks: np.ndarray
    keypoint_fraction: float
    predicted_mask_weight: float

    def __call__(self, step: int, slot: int) -> MakeExample:
        orientation, indices = self.schedule.step(step)
        index = int(indices[slot])
        return functools.partial(self._make, step, slot, orientation, index, _read(self.source, index))

    def _make(
        self, step: int, slot: int, orientation: int, first: int, record: Record | RuntimeError
    ) -> tuple[Batch, Made]:
        canvas = self.transform.canvas_of(bool(orientation))

        def augment(record: Record) -> tuple[Batch, Counts]:
            # Anew for each record: the choices for one that stands in do not depend on where the one before failed.
            rng = np.random.default_rng((self.schedule.seed, 1, step, slot))
            weighed = weigh_masks(record, self.predicted_mask_weight)
            allowed = remove_keypoints(remove_masks(weighed, self.allowed_masks), self.keypoint_fraction)
            return self.transform(allowed, canvas, rng, skeleton=self.source.skeleton)

        broken: dict[int, str] = {}
        for index in self.schedule.candidates(orientation, first):
            if index != first:
                record = _read(self.source, index)
            try:
                example, counts = _make_example(self.source, index, record, augment)
            except _BrokenExample as error:
                broken[index] = str(error)
                continue
            return example, Made(int(example.image_ids), counts, broken)
        raise RuntimeError(
            f"step {step}: every {ORIENTATION_NAMES[orientation]} record is broken, none can stand in: "
            + "; ".join(broken.values())
        )


def _read(source: Source, index: int) -> Record | RuntimeError:
    """Read a record, or return what is to be raised in its turn; see `_faults_named`."""
    try:
        with _faults_named(f"example {index}"):
            return read_record(source, index)
    except RuntimeError as error:
        return error


def _make_example(
    source: Source,
    index: int,
    record: Record | RuntimeError,
    transform: Callable[[Record], tuple[Batch, Counts]],
) -> tuple[Batch, Counts]:
    """Transform what `_read` has returned.

    Raises: as `_faults_named`.
    """
    if isinstance(record, RuntimeError):
        raise record
    with _faults_named(f"example {index}, image id {record.image_id}"):
        check_record(record, len(source.categories), source.skeleton)
        return transform(record)


@contextlib.contextmanager
def _faults_named(name: str) -> Iterator[None]:
    """Name the example in what goes wrong.

    Raises:
      _BrokenExample: no example can be made of it.
      RuntimeError: none can be made for the moment, or by a defect.
    """
    try:
        yield
    except BrokenRecordError as error:
        raise _BrokenExample(f"{name}: {error}") from error
    # Of the moment (no memory, a file system that does not answer) or a defect: another example must not stand in.
    except Exception as error:
        raise RuntimeError(f"{name}: {type(error).__name__}: {errors.one_line(error)}") from error
