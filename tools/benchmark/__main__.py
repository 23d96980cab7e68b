"""Time this project beside its peers, and write one Markdown table: torchvision, where its environment is given.

    python -m tools.benchmark --suite=ops --suite=detect --suite=train --peer_python=ENVIRONMENT/bin/python

Suites: ceilings (a product of matrices and a copy: what the machine can do), ops, detect, train, stages (parts of
detection and of a train step), host (batches from files; scores, beside pycocotools), gpu (all but host for one GPU, in
bfloat16). Mask^X R-CNN is timed beside our own Mask R-CNN. Both sides get the same parameters, images, boxes and number
of proposals; their calls alternate, each case in processes of its own. Peak memory is a process's resident memory
beyond its imports during the repetitions, or the allocator's peak on a GPU.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from maskx_jax import errors
from maskx_jax.data.shapes import ShapesSource
from maskx_jax.data.transforms import decode
from tests.golden.model_inputs import make_parameters
from tools.benchmark import cases

_COLUMNS = (
    *("case", "ours, ms", "peer, ms", "ratio", "images/s", "compiled in, s", "peak, MiB", "its peak, MiB"),
    *("GFLOP/s", "GB/s"),
)
_LONG = 60.0  # seconds
_ROOT = pathlib.Path(__file__).resolve().parents[2]


class Worker:
    """One side's process for one case.

    Args:
      command: starts it.
      environment: more variables.
    """

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment, cwd=_ROOT
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer to a request; see `worker.serve`.

        Raises:
          RuntimeError: the process ended without one.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with exit code {self._process.wait()} at {request}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


def main() -> None:
    """Time what the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--suite", action="append", choices=sorted(cases.SUITES), help="may be given several times")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--peer_python", default="", help="Python of an environment with torch and torchvision")
    parser.add_argument("--rounds", type=int, default=5, help="times that the two sides alternate")
    parser.add_argument("--seconds", type=float, default=1.0, help="a round repeats short calls for as long")
    parser.add_argument("--cache", metavar="FOLDER", help="compile with the persistent cache in this folder")
    options = parser.parse_args()
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    versions: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        chosen = [
            case for suite in options.suite or ["ops"] for case in cases.SUITES[suite] if options.only in case.name
        ]
        write_inputs(pathlib.Path(folder), any(case.model for case in chosen))
        for case in chosen:
            print(f"| {' | '.join(measure(case, folder, options, versions))} |", flush=True)
    print(f"\n{'; '.join(sorted(versions))}; {os.cpu_count()} CPU cores")


def write_inputs(folder: pathlib.Path, with_parameters: bool) -> None:
    """Write the picture and the parameters that both sides read."""
    if with_parameters:
        parameters = make_parameters(cases.NUM_CLASSES)
        save_file(parameters, folder / "parameters.safetensors")
        np.savez(folder / "parameters.npz", allow_pickle=False, **parameters)
    np.save(folder / "picture.npy", decode(ShapesSource(1, seed=5, image_size=512, max_objects=8)[0]))


def measure(case: cases.Case, folder: str, options: argparse.Namespace, versions: set[str]) -> list[str]:
    """Return the row of a case."""
    # Two processes share a GPU, so neither may take its memory beforehand.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if options.cache:
        environment["JAX_COMPILATION_CACHE_DIR"] = options.cache
    else:
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    ours = [sys.executable, "-m", "tools.benchmark.ours", folder]
    sides = [(ours, case)]
    if case.peer == "torchvision" and options.peer_python:
        sides.append(([options.peer_python, "-m", "tools.benchmark.torchvision_peer", folder], case))
    elif case.peer == "pycocotools":
        sides.append((ours, dataclasses.replace(case, backend="pycocotools")))
    elif case.peer == "mask_rcnn":
        sides.append((ours, dataclasses.replace(case, model="mask_rcnn")))
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_started(command, environment)) for command, _ in sides]
        told = [worker.ask(build=dataclasses.asdict(own)) for worker, (_, own) in zip(workers, sides, strict=True)]
        versions.update(one["version"] for one in told)
        # The first call warms up; the second says how many make a round, but for what takes minutes.
        repeats = [
            1 if one["first_call"] > _LONG else max(1, round(options.seconds / worker.ask(repeat=1)["seconds"][0]))
            for worker, one in zip(workers, told, strict=True)
        ]
        seconds: list[list[float]] = [[] for _ in workers]
        for _ in range(options.rounds):
            for worker, repeat, times in zip(workers, repeats, seconds, strict=True):
                times += worker.ask(repeat=repeat)["seconds"]
        peaks = [worker.ask(memory=True)["peak"] for worker in workers]
    medians = [statistics.median(times) for times in seconds]
    flops = told[0].get("flops", 0.0)
    return [
        case.name,
        _with_spread(seconds[0]),
        _with_spread(seconds[1]) if len(seconds) > 1 else "",
        f"{medians[1] / medians[0]:.2f}" if len(medians) > 1 else "",
        f"{case.batch / medians[0]:.2f}" if case.kind in ("train", "detect", "input") else "",
        f"{told[0]['compile']:.1f}" if "compile" in told[0] else "",
        f"{peaks[0] / 2**20:.0f}",
        f"{peaks[1] / 2**20:.0f}" if len(peaks) > 1 else "",
        # XLA counts what is in a loop once: this says something only where there is none.
        f"{flops / medians[0] / 1e9:.0f}" if flops and case.kind == "product" else "",
        f"{told[0]['bytes'] / medians[0] / 1e9:.1f}" if "bytes" in told[0] else "",
    ]


@contextlib.contextmanager
def _started(command: list[str], environment: dict[str, str]) -> Iterator[Worker]:
    worker = Worker(command, environment)
    try:
        yield worker
    finally:
        worker.close()


def _with_spread(seconds: list[float]) -> str:
    """Return the median and half the distance between the quartiles, in milliseconds."""
    low, median, high = np.percentile(seconds, [25, 50, 75]) * 1000
    digits = 0 if median >= 100 else 1 if median >= 10 else 2
    return f"{median:.{digits}f} ± {(high - low) / 2:.{digits}f}"


if __name__ == "__main__":
    errors.run(main)
