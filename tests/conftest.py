"""Eight fake devices, shapes checked against their annotations, and a compilation cache."""

import os
import pathlib

import jax
import jaxtyping
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
# Most tests compile for longer than they compute; those that do not ask for `tests.compilation.optimized`.
jax.config.update("jax_disable_most_optimizations", True)

# Only ops and models: flax rebuilds the dataclasses of structures.py with arbitrary leaves.
jaxtyping.install_import_hook(["maskx_jax.ops", "maskx_jax.models"], "beartype.beartype")


@pytest.fixture(scope="session")
def coco_mini() -> pathlib.Path:
    """Return the folder of real COCO images, or skip the test."""
    folder = pathlib.Path(os.environ.get("MASKX_COCO_MINI", ROOT.parent / "shared/data/coco_mini"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}: set MASKX_COCO_MINI")
    return folder
