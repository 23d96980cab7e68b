"""Says where a stuck process stands, and ends a process whose peers are gone.

Every process of a run writes signs of life into the work directory, which all of them see: `processes/<index>.json`.
A collective operation waits for the slowest process without a limit and without a name; these files have the names.
"""

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any

import jax
from etils import epath

PROCESSES_FOLDER = "processes"
# Of a process that leaves because another one is gone or stuck; the run can be started again.
EXIT_LOST = 76


@dataclasses.dataclass
class _Peer:
    """What is known of another process: its last sign of life, and when it was seen to change."""

    sign: dict[str, Any]
    changed: float


class Watchdog:
    """A thread that watches the main one, and the other processes.

    Args:
      workdir: of the run, on storage that all processes share.
      sign_every: seconds between signs of life.
      report_after: seconds in one phase and step after which a process says where it stands, once.
      leave_after: seconds in one phase and step after which a process ends itself with `EXIT_LOST`; 0 is never.
      peer_timeout: seconds without a sign of life after which another process counts as lost, and this one ends itself
        with `EXIT_LOST`.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        sign_every: float,
        report_after: float,
        leave_after: float,
        peer_timeout: float,
    ) -> None:
        self._folder = epath.Path(workdir) / PROCESSES_FOLDER
        self._sign_every = sign_every
        self._report_after = report_after
        self._leave_after = leave_after
        self._peer_timeout = peer_timeout
        self._index, self._count = jax.process_index(), jax.process_count()
        self._main_thread = threading.get_ident()
        self._phase, self._step, self._since = "start", 0, time.monotonic()
        self._reported = False
        self._peers: dict[int, _Peer] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def at(self, phase: str, step: int) -> None:
        """Note where the main thread is; called often."""
        if (phase, step) != (self._phase, self._step):
            self._phase, self._step, self._since, self._reported = phase, step, time.monotonic(), False

    def __enter__(self) -> "Watchdog":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write_sign()
        now = time.monotonic()
        # What an earlier run left here is no sign of life until it changes, and no end.
        self._peers = {i: _Peer(self._read_sign(i) | {"ended": False}, now) for i in self._others()}
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Stop; after an error say first whether another process is the cause of it."""
        if kind is not None and self._count > 1:
            self._await_signs(error)
        self._closing.set()
        self._thread.join()
        self._phase = "finished" if kind is None else f"ended by {kind.__name__}"
        with contextlib.suppress(OSError):  # Which must not hide what ended the run.
            self._write_sign(ended=True)

    def stand(self) -> str:
        """Return where all processes stand, one line each."""
        lines = [f"  process {self._index} (this one): {self._phase}, step {self._step}"]
        for index, peer in self._peers.items():
            sign = peer.sign or {"phase": "no sign of life yet", "step": "?", "host": "?"}
            seconds = time.monotonic() - peer.changed
            lines.append(
                f"  process {index} on {sign['host']}: {sign['phase']}, step {sign['step']}; last sign of life "
                f"{seconds:.0f} s ago"
            )
        return "\n".join(lines)

    def _watch(self) -> None:
        while not self._closing.wait(self._sign_every):
            try:
                self._write_sign()
                self._read_peers()
            except OSError as error:
                _say(f"watchdog: cannot use {self._folder}: {error}")
            lost = self._lost()
            if lost:
                self._leave(f"no sign of life for {self._peer_timeout:.0f} s from process {_listed(lost)}")
            stuck_for = time.monotonic() - self._since
            if stuck_for > self._report_after and not self._reported:
                self._reported = True
                _say(f"no progress for {stuck_for:.0f} s:\n{self.stand()}\n{self._stack()}")
            if self._leave_after and stuck_for > self._leave_after:
                self._leave(f"no progress for {stuck_for:.0f} s")

    def _others(self) -> list[int]:
        return [index for index in range(self._count) if index != self._index]

    def _lost(self) -> list[int]:
        now = time.monotonic()
        return [
            index
            for index, peer in self._peers.items()
            if not self._ended(index) and now - peer.changed > self._peer_timeout
        ]

    def _leave(self, why: str) -> None:
        _say(f"{why}; process {self._index} leaves:\n{self.stand()}")
        self._phase = why
        with contextlib.suppress(OSError):  # Which must not hide what ended the run.
            self._write_sign(ended=True)
        if self._index == 0:
            # JAX aborts the others as soon as the first process is gone: let them say where they stand before.
            until = time.monotonic() + 2 * self._sign_every
            while time.monotonic() < until and not all(self._ended(i) or i in self._lost() for i in self._others()):
                time.sleep(min(0.2, self._sign_every))
                self._read_peers()
        # The main thread is inside a collective operation that will never end; nothing gentler reaches it.
        os._exit(EXIT_LOST)

    def _await_signs(self, error: BaseException | None) -> None:
        """Wait until each other process gave a sign of life, or is lost: then the error is likely its death."""
        began = time.monotonic()
        waiting = set(self._peers)
        while waiting and not self._lost():
            time.sleep(min(0.2, self._sign_every))
            self._read_peers()
            waiting = {i for i in waiting if self._peers[i].changed < began and not self._ended(i)}
        lost = self._lost()
        if lost:
            _say("".join(traceback.format_exception(error)))
            self._leave(f"no sign of life for {self._peer_timeout:.0f} s from process {_listed(lost)}")

    def _ended(self, index: int) -> bool:
        return bool(self._peers[index].sign.get("ended"))

    def _read_peers(self) -> None:
        for index, peer in self._peers.items():
            sign = self._read_sign(index)
            # By change, not by its time: the clocks of two hosts may differ.
            if sign and sign.get("time") != peer.sign.get("time"):
                self._peers[index] = _Peer(sign, time.monotonic())

    def _read_sign(self, index: int) -> dict[str, Any]:
        try:
            sign: dict[str, Any] = json.loads((self._folder / f"{index}.json").read_text())
        except (OSError, ValueError):  # Not there yet, or just being written.
            return {}
        return sign

    def _write_sign(self, ended: bool = False) -> None:
        sign = {
            "process": self._index,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "time": time.time(),
            "phase": self._phase,
            "step": self._step,
            "ended": ended,
        }
        (self._folder / f"{self._index}.json").write_text(json.dumps(sign) + "\n")

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._main_thread)
        return "" if frame is None else "main thread:\n" + "".join(traceback.format_stack(frame))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _listed(indices: list[int]) -> str:
    return ", ".join(map(str, indices))
