"""What a run leaves behind for people to read: JSON lines and TensorBoard."""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from tqdm import tqdm

from maskx_jax.errors import one_line
from maskx_jax.files import write_text

METRICS_FILE = "metrics.jsonl"
# How often lines in an object store are written anew.
_STORE_EVERY = 30.0


def info(text: str) -> None:
    """Print a text, on the first process and past the progress bar."""
    if jax.process_index() == 0:
        tqdm.write(text)


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl, none where it has none; the last may be half written.

    Raises:
      ValueError: another line is no JSON.
      OSError: the file cannot be read.
    """
    path = epath.Path(workdir) / METRICS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}: line {number} is no JSON: {error}") from error
    return found


class MetricLog:
    """Writes metrics by step to `metrics.jsonl` and to TensorBoard; only the first process writes.

    What cannot be written never stops a run: it is warned of once, and training goes on. In an object store
    (`gs://...`), where nothing can be appended, all lines are written anew twice a minute, and nothing for TensorBoard.

    Args:
      workdir: of the run.
      start_step: that the run continues from; lines of later steps, which a run that was killed left, are removed.
      tensorboard: whether to write for TensorBoard too.

    Raises:
      ValueError: metrics.jsonl is no text.
      OSError: it cannot be read or written.
    """

    def __init__(self, workdir: str | pathlib.Path, start_step: int = 0, tensorboard: bool = True) -> None:
        self._lines: Any = None
        self._events: Any = None
        self._earlier: list[dict[str, Any]] = []
        self._warned = False
        if jax.process_index() == 0:
            path = epath.Path(workdir) / METRICS_FILE
            self._earlier = _keep_lines_until(path, start_step)
            is_stored = "://" in os.fspath(workdir)
            self._lines = _StoredLines(path) if is_stored else path.open("a", encoding="utf-8")
            if is_stored and tensorboard:
                info(f"{workdir}: an object store gets {METRICS_FILE}, and no files for TensorBoard")
            elif tensorboard:
                self._events = _EventFile(pathlib.Path(workdir) / "tensorboard")

    def history(self, name: str) -> dict[int, float | None]:
        """Return a metric by earlier step, None where it had no value; only the first process knows any."""
        return {line["step"]: line[name] for line in self._earlier if name in line}

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Append one line {"step": step, name: value, ...}; a value that does not exist is null."""
        if self._lines is None:
            return
        with self._warning_once():
            self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
            self._lines.flush()
        if self._events is not None:
            with self._warning_once():
                self._events.write(step, metrics)

    def close(self) -> None:
        """Flush and close the files."""
        for writer in (self._lines, self._events):
            if writer is not None:
                with self._warning_once():
                    writer.close()

    @contextlib.contextmanager
    def _warning_once(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._warned:
                logging.warning("metrics cannot be written, training goes on without: %s", one_line(error))
            self._warned = True


class _StoredLines:
    """Lines of a file in an object store, where nothing can be appended."""

    def __init__(self, path: epath.Path) -> None:
        self._path, self._text, self._stored = path, path.read_text(encoding="utf-8"), time.monotonic()

    def write(self, text: str) -> None:
        self._text += text

    def flush(self) -> None:
        if time.monotonic() - self._stored >= _STORE_EVERY:
            self.close()

    def close(self) -> None:
        self._stored = time.monotonic()
        write_text(self._path, self._text)


class _EventFile:
    """A file of TensorBoard, written by the thread that calls.

    `tensorboardX.SummaryWriter` writes in a thread of its own; where a full disk ends that thread, the next caller
    waits for it forever.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        folder.mkdir(exist_ok=True)
        self._event, self._scalar = Event, scalar
        self._writer = EventsWriter(str(folder / "events"))

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        for name, value in metrics.items():
            if value is not None:
                event = self._event(step=step, wall_time=time.time(), summary=self._scalar(name, value))
                self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Pace:
    """How fast a run trains, since the last report; what happens in a pause does not count."""

    def __init__(self) -> None:
        self._since, self._waited = time.monotonic(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count what happens here as waiting for data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens here."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def report(self, num_images: int) -> dict[str, float]:
        """Return images a second and the fraction of the time that data was waited for, and begin anew.

        As long as that fraction is near 0 the devices never wait for data.
        """
        passed = time.monotonic() - self._since
        rates = {"images_per_second": num_images / passed, "waiting_for_data": self._waited / passed}
        self._since, self._waited = time.monotonic(), 0.0
        return rates


class RecentLosses:
    """The losses of the steps since the last report, read from the device one step late, while it works on the next."""

    def __init__(self) -> None:
        self._waiting: tuple[int, dict[str, jax.Array]] | None = None
        self._read: list[dict[str, float]] = []

    def __len__(self) -> int:
        return len(self._read)

    def add(self, step: int, losses: dict[str, jax.Array]) -> None:
        """Note the losses of a step, and read those of the one before.

        Raises:
          FloatingPointError: those are not finite.
        """
        self.read()
        self._waiting = (step, losses)

    def read(self) -> None:
        """Wait for the losses of the last step.

        Raises:
          FloatingPointError: they are not finite.
        """
        if self._waiting is None:
            return
        step, on_device = self._waiting
        self._waiting = None
        losses = {name: float(value) for name, value in jax.device_get(on_device).items()}
        broken = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if broken:
            raise FloatingPointError(
                f"step {step}: not finite: {broken}; all: {losses}. The last checkpoint is unharmed."
            )
        self._read.append(losses)

    def averages(self) -> dict[str, float]:
        """Return the average of each loss over the steps that were read, and forget them."""
        averages = {name: float(np.mean([losses[name] for losses in self._read])) for name in self._read[0]}
        self._read = []
        return averages


def _keep_lines_until(path: epath.Path, last_step: int) -> list[dict[str, Any]]:
    """Remove the lines of later steps, and what is no line of metrics (one that was cut off); return the rest."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); move it away to go on without it") from error
    kept, num_broken = [], 0
    for line in lines:
        try:
            entry = json.loads(line)
            if entry["step"] <= last_step:
                kept.append(entry)
        except (ValueError, TypeError, KeyError):
            num_broken += 1
    if num_broken:
        logging.warning("%s: removed %d of %d lines that are no metrics", path, num_broken, len(lines))
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))
    return kept
