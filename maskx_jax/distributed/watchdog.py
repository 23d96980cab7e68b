"""Says where a stuck process stands, and ends a process whose peers are gone.

Every process of a run writes signs of life into the work directory, which all of them see: `processes/<index>.json`.
A collective operation waits for the slowest process without a limit and without a name; these files have the names.
"""

import dataclasses
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import jax
from etils import epath

from maskx_jax import errors, files
from maskx_jax.distributed.interruption import InterruptedRun
from maskx_jax.distributed.processes import gather_objects

PROCESSES_FOLDER = "processes"
# Of a process that leaves because another one is gone or stuck; the run can be started again.
EXIT_LOST = 76


@dataclasses.dataclass
class _Peer:
    """What is known of another process: its last sign of life, and when it was seen to change."""

    sign: Mapping[str, Any]
    changed: float

    @property
    def ended(self) -> bool:
        return bool(self.sign.get("ended"))

    @property
    def error(self) -> str | None:
        """What ended it, where that was an error of its own or the loss of a third process."""
        return self.sign.get("error")

    def shows(self, time_of_sign: float) -> bool:
        """Return whether this is a sign of the present run: the one of that time, or one that was seen to change."""
        return self.sign.get("time") == time_of_sign or "phase" in self.sign

    def silent_for(self) -> float:
        """Return the seconds since its last sign."""
        return time.monotonic() - self.changed


class Watchdog:
    """A thread that watches the main one, and the other processes.

    Where there are several processes, an error that leaves this context ends the process, when the others can know of
    it: JAX's own exit would wait for them, and they wait for this process.

    Args:
      workdir: of the run, on storage that all processes share.
      sign_every: seconds between signs of life.
      report_after: seconds in one phase and step after which a process says where it stands, once.
      leave_after: seconds in one phase and step after which a process ends itself with `EXIT_LOST`; 0 is never.
      peer_timeout: seconds without a sign of life after which another process counts as lost, and this one ends itself
        with `EXIT_LOST`. A process that says that it ended by an error is lost at once.

    Raises, when entered:
      OSError: the work directory cannot be written to, or the processes do not see each other's files in it.
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
        self._said = ""
        self._error: BaseException | None = None
        self._peers: dict[int, _Peer] = {}
        self._closing = threading.Event()
        self._leaving = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def enter(self, phase: str, step: int) -> None:
        """Note which phase and step the main thread enters; called often."""
        if (phase, step) != (self._phase, self._step):
            self._phase, self._step, self._since, self._reported = phase, step, time.monotonic(), False

    def __enter__(self) -> "Watchdog":
        self._peers = {index: self._unseen(index) for index in self._others()}
        problem, sign = None, self._sign()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write_sign(sign)
        except Exception as error:  # Of storage of any kind; the others wait for an answer.
            problem = f"cannot write: {errors.one_line(error)}"
        self._thread.start()
        try:
            self._check_shared(problem, sign)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        # A run that is asked to leave leaves on all processes, after the same step.
        if error is not None and self._count > 1 and not isinstance(error, InterruptedRun):
            self._fail(error)
        self._stop()
        self._phase = "finished" if kind is None else f"ended by {kind.__name__}"
        self._try_to_write_sign(ended=True)

    def stand(self) -> str:
        """Return where all processes stand, one line each."""
        lines = [f"  process {self._index} (this one): {self._phase}, step {self._step}"]
        for index, peer in self._peers.items():
            sign = {"host": "?", "phase": "no sign of life yet", "step": "?"} | dict(peer.sign)
            lines.append(
                f"  process {index} on {sign['host']}: {sign['phase']}, step {sign['step']}; last sign of life "
                f"{peer.silent_for():.0f} s ago"
            )
        return "\n".join(lines)

    def _watch(self) -> None:
        while not self._closing.wait(self._sign_every):
            self._try_to_write_sign()
            try:
                self._look()
            except Exception as error:  # Nobody watches the watchdog.
                self._say_once(f"watchdog: {type(error).__name__}: {errors.one_line(error)}")

    def _look(self) -> None:
        self._read_peers()
        # A process that ends by the same error as this one is not the cause of it: let the main thread come to it.
        self._leave_without_the_lost(patience=self._sign_every)
        stuck_for = time.monotonic() - self._since
        if stuck_for > self._report_after and not self._reported:
            self._reported = True
            _say(f"no progress for {stuck_for:.0f} s:\n{self.stand()}\n{self._stack()}")
        if self._leave_after and stuck_for > self._leave_after:
            self._leave(f"no progress for {stuck_for:.0f} s")

    def _others(self) -> list[int]:
        return [index for index in range(self._count) if index != self._index]

    def _leave_without_the_lost(self, patience: float) -> None:
        """End this process if another one is lost: it is silent, or ended by another error than this one's."""
        own = None if self._error is None else _described(self._error)
        for index, peer in self._peers.items():
            if peer.error is not None and peer.error != own and peer.silent_for() >= patience:
                self._leave(f"process {index} on {peer.sign.get('host')} ended by an error: {peer.error}")
        silent = [index for index, peer in self._peers.items() if self._is_silent(peer)]
        if silent:
            named = ", ".join(map(str, silent))
            self._leave(f"no sign of life for {self._peer_timeout:.0f} s from process {named}")

    def _is_silent(self, peer: _Peer) -> bool:
        return not peer.ended and peer.silent_for() > self._peer_timeout

    def _leave(self, why: str) -> None:
        """End this process because of another one."""
        self._leaving.acquire()  # And never release: either thread may come here.
        if self._error is not None:
            _say(f"process {self._index} met {_described(self._error)}")
        _say(f"{why}; process {self._index} leaves:\n{self.stand()}")
        self._phase = f"left: {why}"
        self._end(EXIT_LOST, why)

    def _fail(self, error: BaseException) -> None:
        """End this process by its error, or because of another process if that is the cause of it."""
        self._error = error
        try:
            # A second SIGINT ends at once.
            if not isinstance(error, KeyboardInterrupt):
                self._await_signs()
        except KeyboardInterrupt as interrupt:
            error = interrupt
        self._leaving.acquire()
        code = errors.report(error)
        self._phase = f"ended by {type(error).__name__}"
        self._end(code, _described(error))

    def _await_signs(self) -> None:
        """Wait until each other process gave a sign of life or has ended; leave if one is lost."""
        began = time.monotonic()
        waiting = set(self._peers)
        while waiting:
            self._leave_without_the_lost(patience=0.0)
            waiting = {i for i in waiting if self._peers[i].changed < began and not self._peers[i].ended}
            time.sleep(min(0.2, self._sign_every))
            self._read_peers()

    def _end(self, code: int, error: str) -> None:
        self._closing.set()
        self._try_to_write_sign(ended=True, error=error)
        if self._index == 0 and code != errors.EXIT_SIGINT:
            # JAX aborts the others as soon as the first process is gone: let them read the sign and leave before.
            until = time.monotonic() + 4 * self._sign_every
            while time.monotonic() < until and not all(p.ended or self._is_silent(p) for p in self._peers.values()):
                time.sleep(min(0.2, self._sign_every))
                self._read_peers()
        sys.stdout.flush()
        sys.stderr.flush()
        # The main thread may be inside a collective operation that never ends, and exit handlers wait for the others.
        os._exit(code)

    def _stop(self) -> None:
        self._closing.set()
        self._thread.join()

    def _check_shared(self, problem: str | None, own: Mapping[str, Any]) -> None:
        """Check that every process could write its sign, and sees those of the others."""
        signs = gather_objects({"problem": problem, "host": own["host"], "time": own["time"]})
        names = [f"process {index} on {sign['host']}" for index, sign in enumerate(signs)]
        problems = [f"{name} {sign['problem']}" for name, sign in zip(names, signs, strict=True) if sign["problem"]]
        # A file system of a network may show a new file late.
        until = time.monotonic() + self._peer_timeout / 2
        unseen = [] if problems else self._others()
        while unseen and time.monotonic() < until:
            self._read_peers()
            unseen = [i for i in unseen if not self._peers[i].shows(signs[i]["time"])]
            time.sleep(min(0.2, self._sign_every) if unseen else 0)
        for name, missed in zip(names, gather_objects(unseen), strict=True):
            if missed:
                others = errors.some(names[i] for i in missed)
                problems.append(f"{name} does not see the files of {others}; expected storage that all processes share")
        if problems:
            raise OSError(f"work directory {self._folder.parent}: {errors.some(problems)}")

    def _unseen(self, index: int) -> _Peer:
        # What an earlier run left here is no sign of life until it changes, and no end.
        return _Peer({"time": self._read_sign(index).get("time")}, time.monotonic())

    def _read_peers(self) -> None:
        for index, peer in self._peers.items():
            sign = self._read_sign(index)
            # By change, not by its time: the clocks of two hosts may differ.
            if sign and sign.get("time") != peer.sign.get("time"):
                self._peers[index] = _Peer(sign, time.monotonic())

    def _read_sign(self, index: int) -> dict[str, Any]:
        try:
            sign = json.loads((self._folder / f"{index}.json").read_text())
        except (OSError, ValueError):  # Not there yet, or no file of ours.
            return {}
        return sign if isinstance(sign, dict) else {}

    def _sign(self, ended: bool = False, error: str | None = None) -> dict[str, Any]:
        return {
            "process": self._index,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "time": time.time(),
            "phase": self._phase,
            "step": self._step,
            "ended": ended,
            "error": error,
        }

    def _write_sign(self, sign: Mapping[str, Any]) -> None:
        files.write_json(self._folder / f"{self._index}.json", sign, indent=None)

    def _try_to_write_sign(self, ended: bool = False, error: str | None = None) -> None:
        try:
            self._write_sign(self._sign(ended, error))
        except Exception as failure:  # It must hide no error, and end nothing by itself.
            self._say_once(f"watchdog: cannot write signs of life: {errors.one_line(failure)}")

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._main_thread)
        return "" if frame is None else "main thread:\n" + "".join(traceback.format_stack(frame))

    def _say_once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            _say(text)


def _described(error: BaseException) -> str:
    name, text = type(error).__name__, errors.one_line(error)
    return name if text == name else f"{name}: {text}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
