"""Runs of several processes on one machine: what the tests of `jax.distributed` share."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run_processes(
    count: int, folder: pathlib.Path, *arguments: str, num_devices: int = 1, timeout: float = 300
) -> list[str]:
    """Run Python once for each process, all at the same time; return the file that each of them wrote.

    Args:
      count: processes.
      folder: of the files. (Collectives print to stdout.)
      arguments: of Python. Four are appended: index of the process, number of processes, a free port, path of its file.
      num_devices: CPU devices of each process.
      timeout: seconds until all are killed.

    Raises:
      AssertionError: one of them failed; the message has what it wrote to stderr.
    """
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(num_devices),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments, str(index), str(count), str(port), str(folder / f"{count}_{index}")],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    try:
        errors = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    failed = {index: errors[index] for index, process in enumerate(processes) if process.returncode != 0}
    assert not failed, "\n".join(f"process {index} of {count}:\n{error}" for index, error in failed.items())
    return [(folder / f"{count}_{index}").read_text() for index in range(count)]
