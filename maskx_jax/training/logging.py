"""What a run leaves behind for people to read: JSON lines, TensorBoard, and a description of the environment."""

import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"


class MetricLog:
    """Writes metrics by step to `metrics.jsonl` and to TensorBoard; only the first process writes.

    Args:
      workdir: of the run.
      start_step: that the run continues from; lines of later steps, which a run that was killed left, are removed.
      tensorboard: whether to write for TensorBoard too.
    """

    def __init__(self, workdir: str | pathlib.Path, start_step: int = 0, tensorboard: bool = True) -> None:
        self._lines = None
        self._tensorboard = None
        if jax.process_index() == 0:
            path = pathlib.Path(workdir) / METRICS_FILE
            _keep_lines_until(path, start_step)
            self._lines = path.open("a")
            if tensorboard:
                from tensorboardX import SummaryWriter

                self._tensorboard = SummaryWriter(str(pathlib.Path(workdir) / "tensorboard"))

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Append one line {"step": step, name: value, ...}; a value that does not exist is null."""
        if self._lines is not None:
            self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
            self._lines.flush()
        if self._tensorboard is not None:
            for name, value in metrics.items():
                if value is not None:
                    self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the files."""
        for writer in (self._lines, self._tensorboard):
            if writer is not None:
                writer.close()


class RecentLosses:
    """The losses of the steps since the last report, read from the device one step late, while it works on the next."""

    def __init__(self) -> None:
        self._waiting: tuple[int, dict[str, jax.Array]] | None = None
        self._read: list[dict[str, float]] = []

    def __len__(self) -> int:
        return len(self._read)

    def add(self, step: int, losses: dict[str, jax.Array]) -> None:
        """Note the losses of a step, and read those of the one before.

        Raises:
          FloatingPointError: those are not finite.
        """
        self.read()
        self._waiting = (step, losses)

    def read(self) -> None:
        """Wait for the losses of the last step.

        Raises:
          FloatingPointError: they are not finite.
        """
        if self._waiting is None:
            return
        step, on_device = self._waiting
        self._waiting = None
        losses = {name: float(value) for name, value in jax.device_get(on_device).items()}
        broken = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if broken:
            raise FloatingPointError(
                f"step {step}: not finite: {broken}; all: {losses}. The last checkpoint is unharmed."
            )
        self._read.append(losses)

    def averages(self) -> dict[str, float]:
        """Return the average of each loss over the steps that were read, and forget them."""
        averages = {name: float(np.mean([losses[name] for losses in self._read])) for name in self._read[0]}
        self._read = []
        return averages


def _keep_lines_until(path: pathlib.Path, last_step: int) -> None:
    """Remove the lines of later steps, and one that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(f"{line}\n")
        except ValueError:
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)


def describe_environment() -> dict[str, Any]:
    """Return versions, devices, machine and commit: what a result depends on besides the config."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-cpu", "pycocotools")
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform.platform(),
        "processor_cores": os.cpu_count(),
        "devices": [f"{device.device_kind} ({device.platform})" for device in jax.devices()],
        "num_processes": jax.process_count(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    root = pathlib.Path(__file__).resolve().parents[2]
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
