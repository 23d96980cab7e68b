"""Heartbeats, and what processes do when they miss those of another one."""

import json
import os
import socket
import threading
import time

import pytest

from maskx_jax.distributed.watchdog import EXIT_LOST, Watchdog
from tests.processes import finish, start

HOST = socket.gethostname()
# Two processes talk to each other until something happens to one of them, or to both.
PROGRAM = """
import os, signal, sys, time
from maskx_jax import errors
from maskx_jax.distributed import processes as distributed
from maskx_jax.distributed.watchdog import Watchdog

def main():
    workdir, peer_timeout, exit_after = sys.argv[1:]
    distributed.join(enabled=False)
    mine = os.environ["JAX_PROCESS_ID"]
    limits = {"report_after": 1, "exit_after": float(exit_after) or None, "peer_timeout": float(peer_timeout)}
    with Watchdog(workdir.replace("*", mine), heartbeat_every=0.2, **limits) as watchdog:
        for step in range(1, 1000):
            watchdog.enter("step", step)
            if os.environ["FAULT"] in (f"kill {mine}", f"hang {mine}") and step == 3:
                os.kill(os.getpid(), signal.SIGKILL) if "kill" in os.environ["FAULT"] else time.sleep(600)
            if os.environ["FAULT"] == "fail both" and step == 3:
                time.sleep(0.3 * int(mine))
                raise ValueError("wrong\\non all")
            distributed.gather_objects(step)

errors.run(main)
"""


def run(workdir, fault: str, peer_timeout: float = 60.0, exit_after: float = 0.0) -> list[int]:
    running = start("-c", PROGRAM, workdir, peer_timeout, exit_after, processes=2, devices=1, FAULT=fault)
    return finish(running, seconds=300)


@pytest.mark.slow
def test_when_the_first_process_dies_jax_ends_the_others(tmp_path, capfd):
    # It leads the others; they lose their connection at once, and the watchdog has nothing to wait for.
    first, second = run(tmp_path, "kill 0", peer_timeout=10.0)
    assert first == -9 and second not in (0, -9)
    error = capfd.readouterr().err
    assert "the leader task was preempted/died" in error or "no heartbeat for 10 s from process 0" in error


@pytest.mark.slow
def test_a_process_that_hangs_says_where_and_exits(tmp_path, capfd):
    assert run(tmp_path, "hang 1", exit_after=5.0) == [EXIT_LOST] * 2
    error = capfd.readouterr().err
    assert "process 1 (this one): step, step 3" in error
    assert 'File "<string>", line' in error
    # The other one waits in the collective operation, and knows who is late.
    assert "process 0 (this one): step, step 3" in error


@pytest.mark.slow
def test_an_error_that_all_processes_meet_is_the_error_of_each(tmp_path, capfd):
    assert run(tmp_path, "fail both") == [1, 1]
    error = capfd.readouterr().err
    assert error.count("error: wrong on all\n") == 2 and "exits" not in error


@pytest.mark.slow
def test_hosts_that_do_not_share_the_work_directory_are_named_at_the_start(tmp_path, capfd):
    assert run(tmp_path / "*", "", peer_timeout=4.0) == [1, 1]
    # Both say so at the same time, so a line need not begin with "error: ".
    error = capfd.readouterr().err
    for one, other in ((0, 1), (1, 0)):
        said = f"process {one} on {HOST} does not see the files of process {other} on {HOST}"
        assert error.count(said) == error.count("error: work directory") == 2, error


# Nothing of Python runs meanwhile, not even the watchdog's thread.
HOLDING_THE_LOCK = """
import ctypes, sys
from maskx_jax.distributed.watchdog import Watchdog

def hold():
    ctypes.PyDLL(None).sleep(2)

with Watchdog(sys.argv[1], heartbeat_every=0.1, report_after=0.3, exit_after=None, peer_timeout=60.0):
    import time
    time.sleep(0.2)
    hold()
"""


@pytest.mark.slow
def test_the_stacks_of_a_process_that_holds_the_interpreters_lock_are_printed(tmp_path, capfd):
    assert finish(start("-c", HOLDING_THE_LOCK, tmp_path, processes=1, devices=1), seconds=60) == [0]
    error = capfd.readouterr().err
    assert "Timeout (0:00:00.4" in error and " in hold\n" in error and "watchdog.py" in error


def watchdog(workdir, **changes) -> Watchdog:
    limits = {"heartbeat_every": 0.01, "report_after": 60.0, "exit_after": None, "peer_timeout": 60.0}
    return Watchdog(workdir, **(limits | changes))


def wait_for(condition) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_status_knows_a_process_that_never_had_a_heartbeat(tmp_path):
    (tmp_path / "processes").mkdir()
    dog = watchdog(tmp_path)
    for content in ("", "[]", '{"time": 1}'):
        (tmp_path / "processes/1.json").write_text(content)
        dog._peers = {1: dog._unseen(1)}
        assert "process 1 on ?: no heartbeat yet, step ?; last heartbeat 0 s ago" in dog.status()


def test_the_thread_survives_any_exception(tmp_path, monkeypatch, capfd):
    with watchdog(tmp_path) as dog:
        monkeypatch.setattr(dog, "_read_peers", lambda: {}["host"])
        wait_for(lambda: "watchdog: KeyError: 'host'" in capfd.readouterr().err)
        monkeypatch.undo()
        (tmp_path / "processes/0.json").unlink()
        wait_for((tmp_path / "processes/0.json").exists)


def test_a_heartbeat_that_cannot_be_written_hides_no_error(tmp_path, capfd):
    with pytest.raises(ValueError, match="the cause"), watchdog(tmp_path):
        (tmp_path / "processes").rename(tmp_path / "gone")
        raise ValueError("the cause")
    assert "watchdog: cannot write heartbeats: " in capfd.readouterr().err


def test_heartbeats_follow_no_links(tmp_path):
    (tmp_path / "run/processes").mkdir(parents=True)
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run/processes/0.json").symlink_to(tmp_path / "precious")
    with watchdog(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"
    last = json.loads((tmp_path / "run/processes/0.json").read_text())
    assert (last["phase"], last["ended"], last["pid"]) == ("finished", True, os.getpid())


def test_a_work_directory_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "processes").write_text("no folder")
    threads = threading.active_count()
    with (
        pytest.raises(OSError, match=f"work directory {tmp_path}: process 0 on {HOST} cannot write: "),
        watchdog(tmp_path),
    ):
        pass
    assert threading.active_count() == threads
