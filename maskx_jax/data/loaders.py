"""Who makes the examples of a batch, several at a time: two loaders, whose batches are the same to the bit.

Both call the same Python function for each example. It spends its time in OpenCV and NumPy, which give up the
interpreter's lock while they compute.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import cv2
import numpy as np

from maskx_jax.structures import Batch, GroundTruth, Keypoints

# Example number n of this process -> a `Batch` without leading axis.
MakeExample = Callable[[int], Batch]


class Loader(Protocol):
    """Yields the batches of the steps from `start_step` to `stop_step` (or without end), in order."""

    def __call__(
        self,
        make_example: MakeExample,
        batch_size: int,
        start_step: int,
        stop_step: int | None,
        num_workers: int,
        prefetch: int,
    ) -> Iterator[Batch]: ...


def load(
    loader: str,
    make_example: MakeExample,
    batch_size: int,
    start_step: int,
    stop_step: int | None,
    num_workers: int,
    prefetch: int,
) -> Iterator[Batch]:
    """Make the examples of the steps in order, several at a time, and put them together to batches.

    Args:
      loader: a name in `LOADERS`.
      make_example: makes example `n`; step `t` takes those from `t * batch_size` on.
      batch_size: examples of a batch, in this process.
      start_step: the first step.
      stop_step: the one after the last; None for no end.
      num_workers: examples made at the same time.
      prefetch: batches made ahead.

    Raises:
      ValueError: an argument is out of range.
      Exception: while iterating, what `make_example` raises for the first example that it fails for.
    """
    if loader not in LOADERS:
        raise ValueError(f"loader is {loader!r}; expected one of {tuple(LOADERS)}")
    if num_workers < 1 or prefetch < 0:
        raise ValueError(f"num_workers is {num_workers} and prefetch {prefetch}; expected at least 1 and 0")
    # The workers are the parallelism; OpenCV's own threads would only compete with them.
    cv2.setNumThreads(1)
    return LOADERS[loader](make_example, batch_size, start_step, stop_step, num_workers, prefetch)


def _load_with_threads(
    make_example: MakeExample,
    batch_size: int,
    start_step: int,
    stop_step: int | None,
    num_workers: int,
    prefetch: int,
) -> Iterator[Batch]:
    steps = itertools.count(start_step) if stop_step is None else iter(range(start_step, stop_step))
    workers = concurrent.futures.ThreadPoolExecutor(num_workers, thread_name_prefix="make_example")
    # One more puts the batches together, so that whoever asks for one finds it whole.
    stacker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="stack_examples")
    pending: collections.deque[concurrent.futures.Future[Batch]] = collections.deque()

    def submit(num_steps: int) -> None:
        for step in itertools.islice(steps, num_steps):
            numbers = range(step * batch_size, (step + 1) * batch_size)
            pending.append(stacker.submit(stack, [workers.submit(make_example, number) for number in numbers]))

    def stack(examples: list[concurrent.futures.Future[Batch]]) -> Batch:
        arrays = zip(*(arrays_of(example.result()) for example in examples), strict=True)
        return batch_of([np.stack(parts) for parts in arrays])

    try:
        submit(1 + prefetch)
        while pending:
            batch = pending.popleft().result()
            submit(1)
            yield batch
    finally:
        for executor in (workers, stacker):
            executor.shutdown(wait=False, cancel_futures=True)


def _load_with_tf_data(
    make_example: MakeExample,
    batch_size: int,
    start_step: int,
    stop_step: int | None,
    num_workers: int,
    prefetch: int,
) -> Iterator[Batch]:
    import tensorflow as tf

    if tf.config.get_visible_devices("GPU"):
        # TensorFlow would otherwise take the accelerator's memory away from jax.
        tf.config.set_visible_devices([], "GPU")

    # TensorFlow turns exceptions into text of its own; they are kept here so that both loaders raise the same.
    failures: dict[int, Exception] = {}

    def make_arrays(number: np.ndarray) -> list[np.ndarray]:
        try:
            return arrays_of(make_example(int(number)))
        except Exception as error:
            failures[int(number)] = error
            raise

    stop = np.iinfo(np.int64).max if stop_step is None else stop_step * batch_size
    options = tf.data.Options()
    options.threading.private_threadpool_size = num_workers
    options.deterministic = True
    dataset = (
        tf.data.Dataset.range(start_step * batch_size, stop)
        .map(lambda number: tf.numpy_function(make_arrays, [number], _TYPES, stateful=False), num_workers, True)
        .batch(batch_size, drop_remainder=True)
        .prefetch(prefetch)
        .with_options(options)
    )
    try:
        for arrays in dataset.as_numpy_iterator():
            yield batch_of(arrays)
    except tf.errors.OpError as error:
        if failures:
            raise failures[min(failures)] from error
        raise


LOADERS: dict[str, Loader] = {"tf_data": _load_with_tf_data, "threads": _load_with_threads}


def _fields(kind: type, *but: str) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.name not in but]


_BATCH_FIELDS = _fields(Batch, "ground_truth")
_GROUND_TRUTH_FIELDS = _fields(GroundTruth, "keypoints")
_KEYPOINT_FIELDS = _fields(Keypoints)
# Of `arrays_of`: tf.data asks for them before it has seen any.
_TYPES = [
    *(np.uint8, np.float32, np.int64, np.float32, np.bool_),
    *(np.float32, np.int32, np.uint8, np.float32, np.bool_, np.bool_, np.bool_),
    *(np.float32, np.bool_, np.bool_),
]


def arrays_of(batch: Batch) -> list[np.ndarray]:
    """Return the arrays of a batch in the order of their fields, those of the ground truth last.

    They are as many with and without keypoints: without, the keypoints' arrays have no elements.
    """
    ground_truth = batch.ground_truth
    slots = ground_truth.valid.shape
    none = Keypoints(np.zeros((*slots, 0, 2), np.float32), np.zeros((*slots, 0), bool), np.zeros((*slots, 0), bool))
    keypoints = none if ground_truth.keypoints is None else ground_truth.keypoints
    parts = ((batch, _BATCH_FIELDS), (ground_truth, _GROUND_TRUTH_FIELDS), (keypoints, _KEYPOINT_FIELDS))
    return [getattr(part, name) for part, names in parts for name in names]


def batch_of(arrays: Sequence[np.ndarray]) -> Batch:
    """Put the arrays that `arrays_of` returns together again."""
    remaining = iter(arrays)
    own, ground_truth, keypoints = (
        {name: next(remaining) for name in names} for names in (_BATCH_FIELDS, _GROUND_TRUTH_FIELDS, _KEYPOINT_FIELDS)
    )
    known = Keypoints(**keypoints) if keypoints["labelled"].shape[-1] else None
    return Batch(**own, ground_truth=GroundTruth(**ground_truth, keypoints=known))
