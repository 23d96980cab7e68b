"""Run a program as several processes on this machine, joined as they would be on a pod.

    python -m tools.launch --processes=2 --devices=2 -- train.py --config=configs/demo.py --workdir=RUN

Each process gets `devices` CPU devices. SIGTERM and SIGINT are passed on to all of them. The exit code is the first
that is not 0.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

from maskx_jax import errors


def start(
    command: Sequence[str], num_processes: int, num_devices: int, environment: Mapping[str, str] | None = None
) -> list[subprocess.Popen[bytes]]:
    """Start `python command` several times, and return the processes.

    Args:
      command: a program and its arguments.
      num_processes: how many times; one joins nobody.
      num_devices: CPU devices of each.
      environment: more variables.
    """
    shared = {**os.environ, "JAX_NUM_CPU_DEVICES": str(num_devices), **(environment or {})}
    if num_processes > 1:
        shared |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": str(num_processes)}
    return [
        subprocess.Popen([sys.executable, *command], env={**shared, "JAX_PROCESS_ID": str(index)})
        for index in range(num_processes)
    ]


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments say; return the first exit code that is not 0."""
    parser = errors.ArgumentParser(prog="python -m tools.launch", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of each process")
    parser.add_argument("command", nargs="+", help="after --: a program and its arguments")
    options = parser.parse_args(arguments)
    processes = start(options.command, options.processes, options.devices)

    def pass_on(number: int, _: object) -> None:
        for process in processes:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    codes = [process.wait() for process in processes]
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    errors.run(main)
