"""Programs run as several processes on this machine: what the tests of many processes share."""

import pathlib
import subprocess
import time

from tests.compilation import QUICKLY
from tools import launch

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Of every program that a test starts: it shares the tests' compilation cache and compiles quickly.
ENVIRONMENT = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "TF_CPP_MIN_LOG_LEVEL": "3", **QUICKLY}


def start(*arguments: object, processes: int, devices: int, **environment: str) -> list[subprocess.Popen[bytes]]:
    """Start Python with the arguments so many times, joined to each other, each with so many CPU devices."""
    more = {"JAX_PLATFORMS": "cpu", **ENVIRONMENT, **environment}
    return launch.start(list(map(str, arguments)), processes, devices, more)


def finish(running: list[subprocess.Popen[bytes]], seconds: float = 900) -> list[int]:
    """Wait for all of them, and return their exit codes; what takes longer is killed.

    Raises:
      TimeoutExpired: one takes longer.
    """
    end = time.monotonic() + seconds
    try:
        return [process.wait(max(0.0, end - time.monotonic())) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
