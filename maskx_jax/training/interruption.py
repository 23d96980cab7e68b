"""SIGTERM and SIGINT ask a run to save its state and leave, on all processes after the same step."""

import signal
from types import FrameType, TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from maskx_jax.training.sharding import replicated, split_batch

# Of a program that was asked to leave and has saved (sysexits.h: temporary failure, try again).
EXIT_INTERRUPTED = 75
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class InterruptedRun(Exception):
    """A run was asked to leave, and has saved its state."""


class Interruption:
    """Catches the signals while it is entered.

    A second SIGINT is Python's own, for a run that does not come to the end of its step.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._requested = False
        self._mesh = mesh
        self._any = jax.jit(jnp.any, out_shardings=replicated(mesh))
        self._answer: jax.Array | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

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
