"""Who makes the examples of a batch, several at a time: three loaders, whose batches are the same to the bit.

All call the same Python function for each example. It spends most of its time in OpenCV and NumPy, which give up the
interpreter's lock while they compute; what holds the lock holds up the thread that feeds the devices too, unless it is
another process that makes the examples.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from absl import flags

from maskx_jax.data.worker_processes import end_with_parent, usable_cores
from maskx_jax.structures import Batch, GroundTruth, Keypoints

# Makes an example whose record is read: a `Batch` without leading axis, and a remark for whoever takes the batch.
MakeExample = Callable[[], tuple[Batch, Any]]
# Reads the record of example number n of this process.
ReadExample = Callable[[int], MakeExample]
# Batches, each with the remarks of its examples.
Loaded = Generator[tuple[Batch, list[Any]], None, None]

_MOST_WORKERS = 16


@dataclasses.dataclass(frozen=True)
class _Order:
    """What a loader is asked for: the batches of some steps, in order. The fields are arguments of `load`."""

    read_example: ReadExample
    batch_size: int
    start_step: int
    stop_step: int | None
    num_workers: int
    prefetch: int
    read_ahead: int

    def steps(self) -> Iterator[int]:
        """Return the steps, in order."""
        if self.stop_step is None:
            return itertools.count(self.start_step)
        return iter(range(self.start_step, self.stop_step))

    def numbers(self, step: int) -> range:
        """Return the numbers of the examples of a step."""
        return range(step * self.batch_size, (step + 1) * self.batch_size)


def load(
    loader: str,
    read_example: ReadExample,
    batch_size: int,
    start_step: int,
    stop_step: int | None,
    num_workers: int | None,
    prefetch: int,
    read_ahead: int = 0,
    take: Callable[[list[Any]], None] = lambda remarks: None,
) -> Iterator[Batch]:
    """Make the examples of the steps in order, several at a time, and put them together to batches.

    Args:
      loader: a name in `LOADERS`.
      read_example: reads what example `n` is made of, and returns what makes it; step `t` takes those from
        `t * batch_size` on. What a read meets is raised in the turn of the example if what it returns raises it.
        "processes" makes copies of it, which share nothing: what they have to say is a remark.
      batch_size: examples of a batch, in this process.
      start_step: the first step.
      stop_step: the one after the last; None for no end.
      num_workers: examples made at the same time; see `choose_workers`.
      prefetch: batches made ahead; of "processes", each worker makes at least one.
      read_ahead: records read at the same time, before their turn: storage that takes long to answer then holds up no
        worker. With 0 whoever makes an example reads its record. "processes" reads as many records in all, those of a
        batch one after the other.
      take: called with the remarks of a batch's examples when the batch is taken.

    Raises:
      ValueError: an argument is out of range.
      Exception: while iterating, what reading or making raises for the first example that it fails for.
    """
    if loader not in LOADERS:
        raise ValueError(f"loader is {loader!r}; expected one of {tuple(LOADERS)}")
    num_workers = choose_workers(num_workers)
    for name, value, least in (
        ("num_workers", num_workers, 1),
        ("prefetch", prefetch, 0),
        ("read_ahead", read_ahead, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; expected {least} or more")
    # The workers are the parallelism; OpenCV's own threads would only compete with them.
    cv2.setNumThreads(1)
    order = _Order(read_example, batch_size, start_step, stop_step, num_workers, prefetch, read_ahead)
    return _taken(LOADERS[loader](order), take)


def choose_workers(num_workers: int | None) -> int:
    """Return how many examples are made at the same time: as asked, or else one a core that this process may use.

    More than the cores only wait for each other and for the interpreter's lock: on two cores 8 threads make a quarter
    fewer images a second than 2. Beyond `_MOST_WORKERS` no accelerator has asked for more, and each process has a copy
    of the source's index.
    """
    return min(_MOST_WORKERS, usable_cores()) if num_workers is None else num_workers


def _taken(loaded: Loaded, take: Callable[[list[Any]], None]) -> Iterator[Batch]:
    with contextlib.closing(loaded):
        for batch, remarks in loaded:
            take(remarks)
            yield batch


def _load_with_threads(order: _Order) -> Loaded:
    steps = order.steps()
    readers = concurrent.futures.ThreadPoolExecutor(max(1, order.read_ahead), thread_name_prefix="read_example")
    read = _read_ahead(order, readers)
    workers = concurrent.futures.ThreadPoolExecutor(order.num_workers, thread_name_prefix="make_example")
    # One more puts the batches together, so that whoever asks for one finds it whole.
    stacker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="stack_examples")
    pending: collections.deque[concurrent.futures.Future[tuple[Batch, list[Any]]]] = collections.deque()

    def submit(num_steps: int) -> None:
        for _ in itertools.islice(steps, num_steps):
            examples = [workers.submit(_make, next(read)) for _ in range(order.batch_size)]
            pending.append(stacker.submit(stack, examples))

    def stack(examples: list[concurrent.futures.Future[tuple[Batch, Any]]]) -> tuple[Batch, list[Any]]:
        arrays, remarks = _stack(example.result() for example in examples)
        return batch_of(arrays), remarks

    try:
        submit(1 + order.prefetch)
        while pending:
            batch = pending.popleft().result()
            submit(1)
            yield batch
    finally:
        for executor in (readers, workers, stacker):
            executor.shutdown(wait=False, cancel_futures=True)


def _read_ahead(order: _Order, readers: concurrent.futures.Executor) -> Iterator[Callable[[], MakeExample]]:
    """Yield for each example what waits until its record is read, or reads it; as many more are being read."""
    waiting: collections.deque[Callable[[], MakeExample]] = collections.deque()
    for number in itertools.chain.from_iterable(map(order.numbers, order.steps())):
        if order.read_ahead:
            waiting.append(readers.submit(order.read_example, number).result)
        else:
            waiting.append(functools.partial(order.read_example, number))
        if len(waiting) > order.read_ahead:
            yield waiting.popleft()
    yield from waiting


def _make(read: Callable[[], MakeExample]) -> tuple[Batch, Any]:
    return read()()


def _load_with_tf_data(order: _Order) -> Loaded:
    import tensorflow as tf

    if tf.config.get_visible_devices("GPU"):
        # TensorFlow would otherwise take the accelerator's memory away from jax.
        tf.config.set_visible_devices([], "GPU")

    # TensorFlow turns exceptions into text of its own; they are kept here so that both loaders raise the same.
    failures: dict[int, Exception] = {}
    # It carries arrays only.
    read: dict[int, MakeExample] = {}
    remarks: dict[int, Any] = {}

    def read_ahead(number: np.ndarray) -> np.ndarray:
        with failure_kept(int(number)):
            read[int(number)] = order.read_example(int(number))
            return number

    def make_arrays(number: np.ndarray) -> list[np.ndarray]:
        with failure_kept(int(number)):
            make = read.pop(int(number)) if order.read_ahead else order.read_example(int(number))
            example, remarks[int(number)] = make()
            return arrays_of(example)

    @contextlib.contextmanager
    def failure_kept(number: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            failures[number] = error
            raise

    stop = np.iinfo(np.int64).max if order.stop_step is None else order.stop_step * order.batch_size
    options = tf.data.Options()
    options.threading.private_threadpool_size = order.num_workers + order.read_ahead
    options.deterministic = True
    dataset = tf.data.Dataset.range(order.start_step * order.batch_size, stop)
    if order.read_ahead:
        dataset = dataset.map(
            lambda number: tf.numpy_function(read_ahead, [number], tf.int64, stateful=False), order.read_ahead, True
        )
    dataset = (
        dataset.map(
            lambda number: tf.numpy_function(make_arrays, [number], _TYPES, stateful=False), order.num_workers, True
        )
        .batch(order.batch_size, drop_remainder=True)
        .prefetch(order.prefetch)
        .with_options(options)
    )
    try:
        for step, arrays in enumerate(dataset.as_numpy_iterator(), order.start_step):
            yield batch_of(arrays), [remarks.pop(number) for number in order.numbers(step)]
    except tf.errors.OpError as error:
        if failures:
            raise failures[min(failures)] from error
        raise


def _load_with_processes(order: _Order) -> Loaded:
    import grain

    if not flags.FLAGS.is_parsed():
        # Grain reads flags of its own, which only `absl.app` parses.
        flags.FLAGS.mark_as_parsed()
    steps = grain.MapDataset.range(order.start_step, sys.maxsize if order.stop_step is None else order.stop_step)
    # A worker makes whole batches, which come through shared memory.
    threads = -(-order.read_ahead // order.num_workers)
    read = steps.map(functools.partial(_read_batch, order)).to_iter_dataset(grain.ReadOptions(threads, threads))
    batches = read.map(_make_batch)
    ahead = grain.MultiprocessingOptions(
        order.num_workers, per_worker_buffer_size=max(1, order.prefetch // order.num_workers)
    )
    with contextlib.closing(iter(batches.mp_prefetch(ahead, worker_init_fn=_begin_worker))) as loaded:
        for arrays, remarks in loaded:
            yield batch_of(arrays), remarks


def _read_batch(order: _Order, step: int) -> list[MakeExample]:
    return list(map(order.read_example, order.numbers(step)))


def _make_batch(read: list[MakeExample]) -> tuple[list[np.ndarray], list[Any]]:
    return _stack(make() for make in read)


def _begin_worker(index: int, count: int) -> None:
    del index, count
    cv2.setNumThreads(1)
    # The accelerator belongs to the process that trains.
    os.environ["JAX_PLATFORMS"] = "cpu"
    # A terminal and a scheduler signal all processes of a group; that process says when they end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()


LOADERS: dict[str, Callable[[_Order], Loaded]] = {
    "tf_data": _load_with_tf_data,
    "threads": _load_with_threads,
    "processes": _load_with_processes,
}


def _stack(examples: Iterable[tuple[Batch, Any]]) -> tuple[list[np.ndarray], list[Any]]:
    batches, remarks = zip(*examples, strict=True)
    return [np.stack(parts) for parts in zip(*map(arrays_of, batches), strict=True)], list(remarks)


def _fields(kind: type, *but: str) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.name not in but]


# Maps come later, where they are kept.
_BATCH_FIELDS = _fields(Batch, "ground_truth", "maps", "pyramid")
_GROUND_TRUTH_FIELDS = _fields(GroundTruth, "keypoints", "mask_weight")
_KEYPOINT_FIELDS = _fields(Keypoints)
# Of `arrays_of`: tf.data asks for them before it has seen any.
_TYPES = [
    *(np.uint8, np.float32, np.int64, np.float32, np.bool_),
    *(np.float32, np.int32, np.uint8, np.float32, np.bool_, np.bool_, np.bool_),
    *(np.float32, np.bool_, np.bool_),
    np.float32,
]


def arrays_of(batch: Batch) -> list[np.ndarray]:
    """Return the arrays of a batch in the order of their fields, those of the ground truth last.

    They are as many with and without keypoints and weights of masks: without, these arrays have no elements.
    """
    ground_truth = batch.ground_truth
    slots = ground_truth.valid.shape
    none = Keypoints(np.zeros((*slots, 0, 2), np.float32), np.zeros((*slots, 0), bool), np.zeros((*slots, 0), bool))
    keypoints = none if ground_truth.keypoints is None else ground_truth.keypoints
    parts = ((batch, _BATCH_FIELDS), (ground_truth, _GROUND_TRUTH_FIELDS), (keypoints, _KEYPOINT_FIELDS))
    weight = np.zeros((*slots, 0), np.float32) if ground_truth.mask_weight is None else ground_truth.mask_weight
    return [*(getattr(part, name) for part, names in parts for name in names), weight]


def batch_of(arrays: Sequence[np.ndarray]) -> Batch:
    """Put the arrays that `arrays_of` returns together again."""
    remaining = iter(arrays)
    own, ground_truth, keypoints = (
        {name: next(remaining) for name in names} for names in (_BATCH_FIELDS, _GROUND_TRUTH_FIELDS, _KEYPOINT_FIELDS)
    )
    known = Keypoints(**keypoints) if keypoints["labelled"].shape[-1] else None
    weight = next(remaining)
    is_weighed = weight.ndim == ground_truth["valid"].ndim
    known_weight = weight if is_weighed else None
    return Batch(**own, ground_truth=GroundTruth(**ground_truth, keypoints=known, mask_weight=known_weight))
