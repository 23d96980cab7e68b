"""SIGTERM and SIGINT ask a run to leave: at once before it trains, then after a step, saved, on all processes."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

# Of a program that was asked to leave and has saved (sysexits.h: temporary failure, try again).
EXIT_INTERRUPTED = 75
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class InterruptedRun(Exception):
    """A run was asked to leave, and has saved its state."""


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Let the signals end the process with `EXIT_INTERRUPTED` and a line, while there is nothing to save.

    Where processes have joined with a preemption service, SIGTERM is no longer answered here: see `Interruption`.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        print(f"got {name} with nothing to save; start the command again to go on", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # JAX's exit would wait for the other processes, which may wait for this one.
        os._exit(EXIT_INTERRUPTED)

    with _handling(leave):
        yield


class Interruption:
    """Catches the signals while it is entered, for a run that polls.

    With many processes SIGTERM is caught by JAX's preemption service, from the moment that they have joined, and SIGINT
    is passed on to it. It has all processes agree on the poll that says so.

    A second SIGINT is Python's own, for a run that does not come to the end of its step.
    """

    def __init__(self) -> None:
        self._requested = False
        self._num_polls = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Interruption":
        numbers = _SIGNALS if jax.process_count() == 1 else (signal.SIGINT,)
        self._stack.enter_context(_handling(self._handle, numbers))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def poll(self) -> bool:
        """Return whether any process was asked to leave: the same answer in all of them at the same call.

        Nothing is computed, and nobody waits. All processes must call equally often.
        """
        self._num_polls += 1
        if jax.process_count() == 1:
            return self._requested
        # Polls and not steps are counted: a run may begin at any step, and polls while it evaluates too.
        return multihost_utils.reached_preemption_sync_point(self._num_polls)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _handling(
    handler: Callable[[int, FrameType | None], None], numbers: Sequence[signal.Signals] = _SIGNALS
) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)
