"""Makes examples by several processes, and hands them over in the order of the images."""

import collections
import concurrent.futures
import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool

from maskx_jax.data.coco.examples import ExampleMaker, Examples, Rules
from maskx_jax.data.worker_processes import end_with_parent, usable_cores

# A process takes seconds to start, for TensorFlow: so many images are to be worth it.
_IMAGES_PER_WORKER = 512

Part = Sequence[tuple[dict, Sequence[dict]]]


def choose_workers(num_images: int, num_workers: int | None) -> int:
    """Return how many processes make examples: as asked, or else one a core, but none for a few images."""
    if num_workers is not None:
        return num_workers
    return max(1, min(usable_cores(), num_images // _IMAGES_PER_WORKER))


def make_examples(
    rules: Rules, parts: Iterable[Part], num_workers: int, before_image: Callable[[], None]
) -> Generator[Examples, None, None]:
    """Yield the examples of each part, in order.

    Args:
      rules: of the split.
      parts: images, each with its annotations.
      num_workers: how many processes; with 1 all is done in this one.
      before_image: called before each image, or before each part where other processes make it.

    Raises:
      UnreadableImageError: an image cannot be used, and the rules do not say to skip it.
      ChildProcessError: a process has ended.
    """
    if num_workers == 1:
        maker = ExampleMaker(rules)
        yield from (maker.make(part, before_image) for part in parts)
        return
    # Not by fork: TensorFlow and JAX have threads here. The server loads TensorFlow once, and all share its memory.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = concurrent.futures.ProcessPoolExecutor(num_workers, context, initializer=_start, initargs=(rules,))
    waiting: collections.deque[concurrent.futures.Future[Examples]] = collections.deque()
    try:
        for part in parts:
            before_image()
            waiting.append(pool.submit(_make, part))
            # As much as keeps all busy, and no more in memory.
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            before_image()
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise ChildProcessError(
            f"one of {num_workers} worker processes has ended, perhaps for want of memory; use fewer"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_maker: ExampleMaker


def _start(rules: Rules) -> None:
    """Begin a worker process."""
    global _maker
    # Ctrl-C goes to all processes of a terminal: the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    _maker = ExampleMaker(rules)


def _make(part: Part) -> Examples:
    return _maker.make(part)
