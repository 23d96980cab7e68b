"""What a result depends on besides the config: versions, devices, machine and commit."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax


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
