"""Reports where a stuck process is, and ends a process whose peers are gone.

Every process of a run writes heartbeats into the work directory, which all of them see: `processes/<index>.json`.
A collective operation waits for the slowest process without a limit and without a name; these files have the names.
"""

import dataclasses
import faulthandler
import json
import os
import socket
import sys
import threading
import time
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
# Its file descriptor: stacks are printed without the interpreter.
_STDERR = 2


@dataclasses.dataclass
class _Peer:
    """What is known of another process: its last heartbeat, and when it was seen to change."""

    heartbeat: Mapping[str, Any]
    changed: float

    @property
    def ended(self) -> bool:
        return bool(self.heartbeat.get("ended"))

    @property
    def error(self) -> str | None:
        """What ended it, where that was an error of its own or the loss of a third process."""
        return self.heartbeat.get("error")

    def is_of_this_run(self, first: float) -> bool:
        """Return whether the heartbeat is the first of the present run, by its time, or was seen to change."""
        return self.heartbeat.get("time") == first or "phase" in self.heartbeat

    def silent_for(self) -> float:
        """Return the seconds since its last heartbeat."""
        return time.monotonic() - self.changed


class Watchdog:
    """A thread that watches the main one, and the other processes.

    Where there are several processes, an error that leaves this context ends the process, when the others can know of
    it: JAX's own exit would wait for them, and they wait for this process.

    Args:
      workdir: of the run, on storage that all processes share.
      heartbeat_every: seconds between heartbeats.
      report_after: seconds in one phase and step after which a process prints the status of all and its stacks, once.
      exit_after: seconds in one phase and step after which a process ends itself with `EXIT_LOST`, or None for never.
      peer_timeout: seconds without a heartbeat after which another process counts as lost, and this one ends itself
        with `EXIT_LOST`. A process that ended by an error, as its heartbeat says, is lost at once.

    Raises, when entered:
      OSError: the work directory cannot be written to, or the processes do not see each other's files in it.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        heartbeat_every: float,
        report_after: float,
        exit_after: float | None,
        peer_timeout: float,
    ) -> None:
        self._folder = epath.Path(workdir) / PROCESSES_FOLDER
        self._heartbeat_every = heartbeat_every
        self._report_after = report_after
        self._exit_after = exit_after
        self._peer_timeout = peer_timeout
        self._index, self._count = jax.process_index(), jax.process_count()
        self._phase, self._step, self._since = "start", 0, time.monotonic()
        self._reported = False
        self._logged = ""
        self._error: BaseException | None = None
        self._peers: dict[int, _Peer] = {}
        self._closing = threading.Event()
        self._exiting = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def enter(self, phase: str, step: int) -> None:
        """Note which phase and step the main thread enters; called often."""
        if (phase, step) != (self._phase, self._step):
            self._phase, self._step, self._since, self._reported = phase, step, time.monotonic(), False

    def __enter__(self) -> "Watchdog":
        self._peers = {index: self._unseen(index) for index in self._others()}
        problem, heartbeat = None, self._heartbeat()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write_heartbeat(heartbeat)
        except Exception as error:  # Of storage of any kind; the others wait for an answer.
            problem = f"cannot write: {errors.one_line(error)}"
        self._thread.start()
        try:
            self._check_shared(problem, heartbeat)
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
        self._beat(ended=True)

    def status(self) -> str:
        """Return where all processes are, one line each."""
        lines = [f"  process {self._index} (this one): {self._phase}, step {self._step}"]
        for index, peer in self._peers.items():
            known = {"host": "?", "phase": "no heartbeat yet", "step": "?"} | dict(peer.heartbeat)
            lines.append(
                f"  process {index} on {known['host']}: {known['phase']}, step {known['step']}; last heartbeat "
                f"{peer.silent_for():.0f} s ago"
            )
        return "\n".join(lines)

    def _watch(self) -> None:
        while not self._closing.wait(self._heartbeat_every):
            # Whoever holds the interpreter's lock keeps this thread from coming here again: then C prints the stacks.
            faulthandler.dump_traceback_later(self._report_after + self._heartbeat_every, file=_STDERR)
            self._beat()
            try:
                self._look()
            except Exception as error:  # Nobody watches the watchdog.
                self._log_once(f"watchdog: {type(error).__name__}: {errors.one_line(error)}")

    def _look(self) -> None:
        self._read_peers()
        # A process that ends by the same error as this one is not the cause of it: let the main thread come to it.
        self._exit_if_a_peer_is_lost(patience=self._heartbeat_every)
        stuck_for = time.monotonic() - self._since
        if stuck_for > self._report_after and not self._reported:
            self._reported = True
            _log(f"no progress for {stuck_for:.0f} s:\n{self.status()}")
            faulthandler.dump_traceback(file=_STDERR)
        if self._exit_after is not None and stuck_for > self._exit_after:
            self._exit(f"no progress for {stuck_for:.0f} s")

    def _others(self) -> list[int]:
        return [index for index in range(self._count) if index != self._index]

    def _exit_if_a_peer_is_lost(self, patience: float) -> None:
        """End this process if another one is lost: it is silent, or ended by another error than this one's."""
        local = None if self._error is None else _described(self._error)
        for index, peer in self._peers.items():
            if peer.error is not None and peer.error != local and peer.silent_for() >= patience:
                self._exit(f"process {index} on {peer.heartbeat.get('host')} ended by an error: {peer.error}")
        silent = [index for index, peer in self._peers.items() if self._is_silent(peer)]
        if silent:
            named = ", ".join(map(str, silent))
            self._exit(f"no heartbeat for {self._peer_timeout:.0f} s from process {named}")

    def _is_silent(self, peer: _Peer) -> bool:
        return not peer.ended and peer.silent_for() > self._peer_timeout

    def _exit(self, why: str) -> None:
        """End this process because of another one."""
        self._exiting.acquire()  # And never release: either thread may come here.
        if self._error is not None:
            _log(f"process {self._index} met {_described(self._error)}")
        _log(f"{why}; process {self._index} exits:\n{self.status()}")
        self._phase = f"exited: {why}"
        self._end(EXIT_LOST, why)

    def _fail(self, error: BaseException) -> None:
        """End this process by its error, or because of another process if that is the cause of it."""
        self._error = error
        try:
            # A second SIGINT ends at once.
            if not isinstance(error, KeyboardInterrupt):
                self._await_heartbeats()
        except KeyboardInterrupt as interrupt:
            error = interrupt
        self._exiting.acquire()
        code = errors.report(error)
        self._phase = f"ended by {type(error).__name__}"
        self._end(code, _described(error))

    def _await_heartbeats(self) -> None:
        """Wait until each other process gave a heartbeat of life or has ended; leave if one is lost."""
        began = time.monotonic()
        waiting = set(self._peers)
        while waiting:
            self._exit_if_a_peer_is_lost(patience=0.0)
            waiting = {i for i in waiting if self._peers[i].changed < began and not self._peers[i].ended}
            time.sleep(min(0.2, self._heartbeat_every))
            self._read_peers()

    def _end(self, code: int, error: str) -> None:
        self._closing.set()
        self._beat(ended=True, error=error)
        if self._index == 0 and code != errors.EXIT_SIGINT:
            # JAX aborts the others as soon as the first process is gone: let them read the heartbeat and exit before.
            until = time.monotonic() + 4 * self._heartbeat_every
            while time.monotonic() < until and not all(p.ended or self._is_silent(p) for p in self._peers.values()):
                time.sleep(min(0.2, self._heartbeat_every))
                self._read_peers()
        sys.stdout.flush()
        sys.stderr.flush()
        # The main thread may be inside a collective operation that never ends, and exit handlers wait for the others.
        os._exit(code)

    def _stop(self) -> None:
        self._closing.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _check_shared(self, problem: str | None, heartbeat: Mapping[str, Any]) -> None:
        """Check that every process could write its heartbeat, and sees those of the others."""
        first = gather_objects({"problem": problem, "host": heartbeat["host"], "time": heartbeat["time"]})
        names = [f"process {index} on {process['host']}" for index, process in enumerate(first)]
        problems = [f"{name} {one['problem']}" for name, one in zip(names, first, strict=True) if one["problem"]]
        # A file system of a network may show a new file late.
        until = time.monotonic() + self._peer_timeout / 2
        unseen = [] if problems else self._others()
        while unseen and time.monotonic() < until:
            self._read_peers()
            unseen = [i for i in unseen if not self._peers[i].is_of_this_run(first[i]["time"])]
            time.sleep(min(0.2, self._heartbeat_every) if unseen else 0)
        for name, missed in zip(names, gather_objects(unseen), strict=True):
            if missed:
                others = errors.some(names[i] for i in missed)
                problems.append(f"{name} does not see the files of {others}; expected storage that all processes share")
        if problems:
            raise OSError(f"work directory {self._folder.parent}: {errors.some(problems)}")

    def _unseen(self, index: int) -> _Peer:
        # What an earlier run left here is no heartbeat until it changes, and no end.
        return _Peer({"time": self._read_heartbeat(index).get("time")}, time.monotonic())

    def _read_peers(self) -> None:
        for index, peer in self._peers.items():
            heartbeat = self._read_heartbeat(index)
            # By change, not by its time: the clocks of two hosts may differ.
            if heartbeat and heartbeat.get("time") != peer.heartbeat.get("time"):
                self._peers[index] = _Peer(heartbeat, time.monotonic())

    def _read_heartbeat(self, index: int) -> dict[str, Any]:
        try:
            heartbeat = json.loads((self._folder / f"{index}.json").read_text())
        except (OSError, ValueError):  # Not there yet, or no file of ours.
            return {}
        return heartbeat if isinstance(heartbeat, dict) else {}

    def _heartbeat(self, ended: bool = False, error: str | None = None) -> dict[str, Any]:
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

    def _write_heartbeat(self, heartbeat: Mapping[str, Any]) -> None:
        files.write_json(self._folder / f"{self._index}.json", heartbeat, indent=None)

    def _beat(self, ended: bool = False, error: str | None = None) -> None:
        try:
            self._write_heartbeat(self._heartbeat(ended, error))
        except Exception as failure:  # It must hide no error, and end nothing by itself.
            self._log_once(f"watchdog: cannot write heartbeats: {errors.one_line(failure)}")

    def _log_once(self, text: str) -> None:
        if text != self._logged:
            self._logged = text
            _log(text)


def _described(error: BaseException) -> str:
    name, text = type(error).__name__, errors.one_line(error)
    return name if text == name else f"{name}: {text}"


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
