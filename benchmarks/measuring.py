"""One case, timed in a process for each side, whose calls alternate."""

import contextlib
import importlib.util
import json
import os
import pathlib
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import cases
from benchmarks.parameters import fcos_shapes, make_c4_parameters, make_parameters

ROOT = pathlib.Path(__file__).resolve().parents[1]
COLUMNS = (
    *("case", "ours, ms", "peer, ms", "ratio", "images/s", "its images/s", "compiled in, s", "program, MiB"),
    *("peak, MiB", "its peak, MiB", "GFLOP/s", "GB/s"),
)
_LONG = 60.0  # seconds

Record = dict[str, Any]


class Worker:
    """One side's process.

    Args:
      command: starts it.
      environment: more variables.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
            cwd=ROOT,
        )

    @property
    def ended(self) -> bool:
        """Whether it answers no more."""
        return self._process.poll() is not None

    def ask(self, deadline: float | None = None, **request: Any) -> dict[str, Any]:
        """Return the answer to a request; see `worker.serve`.

        Args:
          deadline: in the time of `time.monotonic`; a process that has not answered by then is killed.
          **request: as JSON.

        Raises:
          RuntimeError: the process ended without one, or it is an error.
          TimeoutError: the deadline has passed.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
        # One answer a request: nothing of another one is in the buffer.
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            self._process.kill()
            self._process.wait()
            raise TimeoutError("stopped: its time was over")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with exit code {self._process.wait()} at {request}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


class Workers:
    """The processes of the sides: started when they are needed, and again when they have ended; a context manager.

    Args:
      folder: of `write_parameters`.
      peer_python: of an environment with torch and torchvision, or "".
      cache: folder of the persistent compilation cache, or "".
      environment: more variables of the processes.
    """

    def __init__(
        self, folder: str, peer_python: str, cache: str = "", environment: Mapping[str, str] | None = None
    ) -> None:
        # Two processes share a GPU, so neither may take its memory beforehand.
        self._environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **(environment or {})}
        if cache:
            self._environment["JAX_COMPILATION_CACHE_DIR"] = cache
        else:
            self._environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        ours = [sys.executable, "-m", "benchmarks.ours", folder]
        self._commands = {"ours": ours, "peer": ours}
        if peer_python:
            self._commands["torchvision"] = [peer_python, "-m", "benchmarks.torchvision_peer", folder]
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def sides(self, case: cases.Case) -> dict[str, tuple[Worker, cases.Case]]:
        """Return who works on which case, under "ours" and, where the case has a peer and it is here, "peer"."""
        sides: dict[str, tuple[str, cases.Case]] = {"ours": ("ours", case)}
        if case.peer == "torchvision":
            if "torchvision" in self._commands:
                sides["peer"] = ("torchvision", case)
        elif isinstance(case, cases.Network | cases.Scores) and case.peer:
            sides["peer"] = ("peer", case.for_peer())
        return {side: (self._worker(name), own) for side, (name, own) in sides.items()}

    def _worker(self, name: str) -> Worker:
        if name not in self._workers or self._workers[name].ended:
            self._workers[name] = Worker(self._commands[name], self._environment)
        return self._workers[name]


def write_parameters(folder: pathlib.Path) -> None:
    """Write the parameters that both sides read, of each of the peer's models."""
    makers = {
        "mask_rcnn": make_parameters,
        "mask_rcnn_c4": make_c4_parameters,
        "fcos": lambda: make_parameters(fcos_shapes()),
    }
    for model, make in makers.items():
        np.savez(folder / f"{model}.npz", allow_pickle=False, **make())


def has_torchvision() -> bool:
    """Whether this Python has the peer."""
    return all(importlib.util.find_spec(name) for name in ("torch", "torchvision"))


def measure(case: cases.Case, workers: Workers, rounds: int, seconds: float, deadline: float | None = None) -> Record:
    """Return the record of a case: its name, and for each side its facts, its times and its peak, or an error.

    Args:
      case: to time.
      workers: the sides' processes.
      rounds: times that the sides alternate; 0 asks only for the facts that building gives.
      seconds: a round repeats short calls for as long.
      deadline: see `Worker.ask`.
    """
    sides = workers.sides(case)
    record: Record = {"case": case.name, "images": case.images, **{side: {} for side in sides}}

    def ask(side: str, **request: Any) -> dict[str, Any]:
        try:
            return sides[side][0].ask(deadline, **request)
        except (RuntimeError, OSError) as error:
            record[side]["error"] = str(error)
            return {}

    def working() -> list[str]:
        return [side for side in sides if "error" not in record[side]]

    for side in sides:
        record[side] |= ask(side, build=cases.to_json(sides[side][1]))
    repeats = {}
    for side in working() if rounds else ():
        record[side]["times"] = []
        # The first call warms up; the second says how many make a round, but for what takes minutes.
        is_long = record[side]["first_call"] > _LONG
        one = [_LONG] if is_long else ask(side, repeat=1).get("seconds", [_LONG])
        repeats[side] = max(1, round(seconds / one[0]))
    for _ in range(rounds):
        for side in working():
            record[side]["times"] += ask(side, repeat=repeats[side]).get("seconds", [])
    for side in working() if rounds else ():
        record[side] |= ask(side, memory=True)
    return record


def about(records: Iterable[Record]) -> str:
    """Return what the sides of some records say of themselves."""
    sides = (record.get(side, {}) for record in records for side in ("ours", "peer"))
    return "; ".join(sorted({side["version"] for side in sides if "version" in side}))


def row(record: Record) -> list[str]:
    """Return the row of a record, in the order of `COLUMNS`."""
    ours, peer = record.get("ours", {}), record.get("peer", {})
    median, other = (statistics.median(side["times"]) if side.get("times") else None for side in (ours, peer))

    def per_second(amount: float, seconds: float | None, digits: int) -> str:
        return f"{amount / seconds:.{digits}f}" if amount and seconds else ""

    def mebibytes(side: Record, name: str) -> str:
        return f"{side[name] / 2**20:.0f}" if name in side else ""

    return [
        record["case"],
        record.get("skipped") or _time(ours),
        _time(peer),
        f"{other / median:.2f}" if median and other else "",
        per_second(record.get("images", 0), median, 2),
        per_second(record.get("images", 0), other, 2),
        f"{ours['compile']:.1f}" if "compile" in ours else "",
        mebibytes(ours, "program_bytes"),
        mebibytes(ours, "peak"),
        mebibytes(peer, "peak"),
        # XLA counts what is in a loop once: this says something only where there is none.
        per_second(ours.get("flops", 0.0) / 1e9 if record["case"].startswith("product") else 0.0, median, 0),
        per_second(ours.get("bytes", 0.0) / 1e9, median, 1),
    ]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [line(columns), f"|{'---|' * len(columns)}", *map(line, rows)]


def line(cells: Sequence[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _time(side: Record) -> str:
    """Return the median and half the distance between the quartiles, in milliseconds, or the error."""
    if not side.get("times") or "error" in side:
        return side.get("error", "")
    low, median, high = np.percentile(side["times"], [25, 50, 75]) * 1000
    digits = 0 if median >= 100 else 1 if median >= 10 else 2
    return f"{median:.{digits}f} ± {(high - low) / 2:.{digits}f}"
