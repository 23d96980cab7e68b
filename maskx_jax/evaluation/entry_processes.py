"""COCO results entries made and encoded by other processes, while this one feeds the devices.

Pasting and encoding hold the interpreter's lock, so that threads do not help. A process is started as a command: one
with JAX's threads must not be forked, and multiprocessing's other ways would import the main module again, and with it
JAX. It imports `results` alone, and ends when its input does, so that none outlives this process.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import pickle
import queue
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from maskx_jax.evaluation import results

if TYPE_CHECKING:
    # It would bring flax and jax.
    from maskx_jax.structures import Detections

_COMMAND = "from maskx_jax.evaluation import entry_processes; entry_processes.serve()"
_SECONDS_TO_END = 10


class EntryMaker(Protocol):
    """Makes results entries, encoded by `results.encode`.

    Attributes:
      most_waiting: images that may be submitted before the entries of the first are asked for.
    """

    most_waiting: int

    def submit(self, found: "Detections", **image: Any) -> Callable[[], bytes]:
        """Begin with one image; return what gives its entries, and raises as `results.entries`.

        Args:
          found: see `results.entries`.
          **image: likewise, of this image.
        """
        ...

    def close(self) -> None:
        """End, without waiting for images that nobody has begun with."""
        ...


def open_maker(num_processes: int, **conventions: Any) -> EntryMaker:
    """Return what makes entries, in this process or in several others.

    Args:
      num_processes: 1 stands for this process.
      **conventions: arguments of `results.entries` that all images share.
    """
    return _ThisProcess(conventions) if num_processes == 1 else _OtherProcesses(num_processes, conventions)


class _ThisProcess:
    most_waiting = 0

    def __init__(self, conventions: dict[str, Any]) -> None:
        self._conventions = conventions

    def submit(self, found: "Detections", **image: Any) -> Callable[[], bytes]:
        made = results.encode(results.entries(found, **image, **self._conventions))
        return lambda: made

    def close(self) -> None:
        pass


class _OtherProcesses:
    """As many threads as processes: each hands an image to an idle process and waits for what comes back."""

    def __init__(self, num_processes: int, conventions: dict[str, Any]) -> None:
        # Enough that none is idle while the next batch is fetched.
        self.most_waiting = 2 * num_processes
        self._processes = [_Process(conventions) for _ in range(num_processes)]
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for process in self._processes:
            self._idle.put(process)
        self._threads = concurrent.futures.ThreadPoolExecutor(num_processes)

    def submit(self, found: "Detections", **image: Any) -> Callable[[], bytes]:
        arrays = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
        return self._threads.submit(self._make, (arrays, image)).result

    def _make(self, request: tuple[dict[str, Any], dict[str, Any]]) -> bytes:
        process = self._idle.get()
        try:
            return process.make(request)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.close()


class _Process:
    def __init__(self, conventions: dict[str, Any]) -> None:
        root = str(pathlib.Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        # A session of its own: what a terminal sends to all is for the process that closes this one.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._unsent: list[Any] = [conventions]

    def make(self, request: Any) -> bytes:
        try:
            for part in (*self._unsent, request):
                pickle.dump(part, self._requests, pickle.HIGHEST_PROTOCOL)
            self._unsent = []
            self._requests.flush()
            answer = pickle.load(self._answers)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise RuntimeError(
                f"a process that makes results entries ended with code {self._process.wait(_SECONDS_TO_END)}; was it "
                "killed for its memory? With evaluation.num_processes=1 there is none"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        # It may have ended, with what was written last unread.
        with contextlib.suppress(OSError):
            self._requests.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()


def serve() -> None:
    """Answer requests from standard input until it ends: a process' whole work."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # What anything prints is not to come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(EOFError, BrokenPipeError, pickle.UnpicklingError):
        conventions = pickle.load(sys.stdin.buffer)
        while True:
            arrays, image = pickle.load(sys.stdin.buffer)
            found: Any = types.SimpleNamespace(**arrays)
            answer: Any
            try:
                answer = results.encode(results.entries(found, **image, **conventions))
            except Exception as error:
                answer = error
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
