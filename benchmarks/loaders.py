"""Measure the loaders: training batches at 800/1333 from a prepared dataset, images/s and CPU seconds an image.

    python -m benchmarks.loaders --directory=DATA --split=val

The loaders take turns, so that what else the machine does falls on both. A batch of 4 with two made ahead, flips by
chance; nothing but making the batches is done. Then a pause before each batch leaves time to make it ahead: what is
left of the wait for one that is ready.
"""

import time
from collections.abc import Iterator

import numpy as np
import psutil

from benchmarks import measuring
from maskx_jax import errors
from maskx_jax.data import pipeline
from maskx_jax.data.loaders import LOADERS
from maskx_jax.data.records import Source
from maskx_jax.data.schedule import Schedule
from maskx_jax.data.transforms import Transform
from maskx_jax.structures import Batch

_BATCH = 4
_PREFETCH = 2


def main(arguments: list[str] | None = None) -> None:
    """Measure what the arguments say, and print a Markdown table."""
    description = (__doc__ or "").split("\n")[0]
    parser = errors.ArgumentParser(prog="python -m benchmarks.loaders", description=description)
    parser.add_argument("--directory", required=True, help="what `prepare` wrote")
    parser.add_argument("--split", default="train")
    parser.add_argument("--workers", default="1,2,4", help="values of config.data.num_workers")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a round")
    parser.add_argument("--rounds", type=int, default=3, help="times that the loaders take turns")
    options = parser.parse_args(arguments)
    # Reads through TensorFlow Datasets, which takes seconds to import.
    from maskx_jax.data.coco.source import CocoSource

    source = CocoSource(options.directory, options.split)
    print(
        "\n".join(
            measuring.table(("loader", "num_workers", "images/s", "CPU ms an image", "ms for a ready batch"), [])
        ),
        flush=True,
    )
    for num_workers in map(int, options.workers.split(",")):
        running = {loader: _batches(source, loader, num_workers) for loader in LOADERS}
        rounds: dict[str, list[tuple[float, float]]] = {loader: [] for loader in LOADERS}
        for _ in range(options.rounds):
            for loader, batches in running.items():
                rounds[loader].append(measure(batches, options.seconds))
        waits = {loader: time_ready(batches) for loader, batches in running.items()}
        for loader, measured in rounds.items():
            rate, cpu = np.median(measured, axis=0)
            low, high = np.min(measured, axis=0)[0], np.max(measured, axis=0)[0]
            row = (
                f"`{loader}`",
                str(num_workers),
                f"{rate:.1f} ({low:.1f} to {high:.1f})",
                f"{1000 * cpu:.1f}",
                f"{1000 * waits[loader]:.2f}",
            )
            print(measuring.line(row), flush=True)


def measure(batches: Iterator[Batch], seconds: float) -> tuple[float, float]:
    """Return images a second, and CPU seconds of all threads and worker processes an image, over some seconds."""
    # Those made ahead.
    for _ in range(1 + _PREFETCH):
        next(batches)
    begin, cpu, count = time.monotonic(), _cpu_seconds(), 0
    while time.monotonic() < begin + seconds:
        count += len(next(batches).images)
    return count / (time.monotonic() - begin), (_cpu_seconds() - cpu) / count


def _cpu_seconds() -> float:
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return float(sum(time.user + time.system for time in times))


def time_ready(batches: Iterator[Batch], pause: float = 0.5, count: int = 8) -> float:
    """Return the median seconds that it takes to get a batch which has been made ahead."""
    seconds = []
    for _ in range(count):
        time.sleep(pause)
        begin = time.monotonic()
        next(batches)
        seconds.append(time.monotonic() - begin)
    return float(np.median(seconds))


def _batches(source: Source, loader: str, num_workers: int) -> Iterator[Batch]:
    schedule = Schedule(source.sizes, _BATCH, seed=0)
    allowed = np.ones(len(source.categories) + 1, bool)
    return pipeline.train_batches(
        source, schedule, Transform(), allowed, loader=loader, num_workers=num_workers, prefetch=_PREFETCH
    )


if __name__ == "__main__":
    errors.run(main)
