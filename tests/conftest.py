"""Eight fake devices, shapes checked against their annotations, a compilation cache, and parts of the long tests."""

import gc
import os
import pathlib
from collections.abc import Iterator

import jaxtyping
import pytest

from tests.compilation import QUICKLY

# Most tests compile for longer than they compute; those that do not ask for `tests.compilation.optimized`.
os.environ.update(QUICKLY)

import jax

ROOT = pathlib.Path(__file__).resolve().parents[1]

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

# Only ops and models: flax rebuilds the dataclasses of structures.py with arbitrary leaves.
jaxtyping.install_import_hook(["maskx_jax.ops", "maskx_jax.models"], "beartype.beartype")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part",
        metavar="K/N",
        help="run every N-th of the chosen tests, from number K on (modulo N)",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Last, and so among the tests that `-m` has chosen. Whole programs come first: they take longest, and a worker that
    # begins with them has its memory still free.
    items.sort(key=lambda item: item.path.parent != ROOT / "tests")
    if part := config.getoption("--part"):
        number, _, count = part.partition("/")
        if not (number.isdigit() and count.isdigit() and int(count) > 0):
            raise pytest.UsageError(f"--part: got {part!r}; expected K/N, such as 2/7")
        chosen = items[int(number) % int(count) :: int(count)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs() -> Iterator[None]:
    """Give the memory of a module's compiled programs back; another module compiles its own."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def coco_mini() -> pathlib.Path:
    """Return the folder of real COCO images, or skip the test."""
    folder = pathlib.Path(os.environ.get("MASKX_COCO_MINI", ROOT.parent / "shared/data/coco_mini"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}: set MASKX_COCO_MINI")
    return folder
