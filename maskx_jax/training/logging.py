"""What a run leaves behind for people to read: JSON lines, TensorBoard, and a description of the environment."""

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax

ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"


class MetricLog:
    """Writes metrics by step to `metrics.jsonl` and to TensorBoard; only the first process writes."""

    def __init__(self, workdir: str | pathlib.Path, tensorboard: bool = True) -> None:
        self._lines = None
        self._tensorboard = None
        if jax.process_index() == 0:
            self._lines = (pathlib.Path(workdir) / METRICS_FILE).open("a")
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
