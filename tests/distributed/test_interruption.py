"""What SIGTERM and SIGINT do before a run trains."""

import os
import signal
import subprocess
import sys
import time

import pytest

from maskx_jax.distributed.interruption import EXIT_INTERRUPTED, leaving_at_once
from tests.processes import ENVIRONMENT, ROOT

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


def test_the_signals_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with leaving_at_once():
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] != before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
