"""What SIGTERM and SIGINT do before a run trains, and how processes learn of them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from maskx_jax.distributed.interruption import EXIT_INTERRUPTED, leaving_at_once
from tests.processes import ENVIRONMENT, ROOT, finish, start

# One of two processes, whose other one never comes.
PROGRAM = """
from maskx_jax import errors
from maskx_jax.distributed import processes as distributed
from maskx_jax.distributed.interruption import leaving_at_once

def main():
    with leaving_at_once():
        print("waits", flush=True)
        distributed.join(enabled=True, start_timeout=int(SECONDS))

errors.run(main)
"""


def waiting(seconds: float) -> subprocess.Popen:
    """Return a program that waits so long for another process."""
    environment = {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("SECONDS", str(seconds))],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, **environment, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None and program.stdout.readline() == "waits\n"
    return program


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_there_is_anything_to_save_ends_with_a_line(number):
    program = waiting(60)
    time.sleep(0.2)
    program.send_signal(number)
    _, said = program.communicate(timeout=30)
    assert program.returncode == EXIT_INTERRUPTED
    assert said == f"got {number.name} with nothing to save; start the command again to go on\n"


def test_processes_that_do_not_come_are_missed_in_a_line():
    program = waiting(1)
    _, said = program.communicate(timeout=60)
    assert program.returncode == 1
    assert said == "error: not all processes of the run have joined it within 1 s\n"


# Two processes that poll until one of them has got a signal.
POLLING = """
import os, pathlib, signal, sys, time
import jax
from maskx_jax.distributed import processes as distributed
from maskx_jax.distributed.interruption import Interruption

distributed.join(enabled=False, preemption_service=True)
compiled = []
jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
name, who, moment = sys.argv[2:]

def ask(count):
    if str(jax.process_index()) in who and count == int(moment):
        os.kill(os.getpid(), signal.Signals[name])
        # At the beginning: so long that JAX, which looks once a second, has seen it before the first poll.
        time.sleep(0 if count else 3)

ask(0)
with Interruption() as interruption:
    distributed.gather_objects(None)
    compiled.clear()
    for count in range(1, 10_000):
        if interruption.poll():
            break
        ask(count)
        # One of them is slower.
        time.sleep(0.001 * (1 + jax.process_index()))
num_compiled = len(compiled)
# They leave together.
counts = distributed.gather_objects(count)
(pathlib.Path(sys.argv[1]) / str(jax.process_index())).write_text(f"{counts} {num_compiled}")
sys.exit(75)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "who", "moment"), [("SIGTERM", "1", 3), ("SIGINT", "0", 3), ("SIGTERM", "01", 3), ("SIGTERM", "1", 0)]
)
def test_all_processes_learn_of_a_signal_at_the_same_poll_and_nothing_is_computed_for_it(name, who, moment, tmp_path):
    assert finish(start("-c", POLLING, tmp_path, name, who, moment, processes=2, devices=1), seconds=120) == [75, 75]
    said = [(tmp_path / str(index)).read_text() for index in range(2)]
    counts, num_compiled = said[0].rsplit(" ", 1)
    first, second = json.loads(counts)
    assert said[0] == said[1] and first == second and num_compiled == "0"
    # One that came before the first poll is answered by it.
    assert first == 1 if moment == 0 else 3 < first < 9_999


def test_the_signals_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with leaving_at_once():
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] != before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
