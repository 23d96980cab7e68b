"""SIGTERM and SIGINT ask a run to leave: at once before it trains, then after a step, saved, on all processes."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from maskx_jax.distributed.mesh import replicated, split_batch

# Of a program that was asked to leave and has saved (sysexits.h: temporary failure, try again).
EXIT_INTERRUPTED = 75
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class InterruptedRun(Exception):
    """A run was asked to leave, and has saved its state."""


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Let the signals end the process with `EXIT_INTERRUPTED` and a line, while there is nothing to save."""

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

    A second SIGINT is Python's own, for a run that does not come to the end of its step.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._requested = False
        self._mesh = mesh
        self._any = jax.jit(jnp.any, out_shardings=replicated(mesh))
        self._answer: jax.Array | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Interruption":
        self._stack.enter_context(_handling(self._handle))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def poll(self) -> bool:
        """Return whether any process was asked to leave: the same answer in all of them at the same call.

        With many processes it is the answer to the question of the call before, so that nobody waits for it; all of
        them must call equally often.
        """
        if jax.process_count() == 1:
            return self._requested
        previous = self._answer
        mine = np.full(len(self._mesh.local_devices), self._requested)
        self._answer = self._any(jax.make_array_from_process_local_data(split_batch(self._mesh), mine))
        return previous is not None and bool(previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)
