"""A tiny Mask^X R-CNN that was never trained, a picture, and what the model finds in it."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.data.shapes.source import ShapesSource
from maskx_jax.data.transforms import Transform, transform_image
from maskx_jax.files import write_json
from maskx_jax.models.build import build
from maskx_jax.runs.checkpoints import Checkpoints
from maskx_jax.runs.loading import Loaded
from maskx_jax.runs.workdir import DATA_FILE, write_config
from maskx_jax.structures import TrainState
from tests.models.build import numpy_variables, tiny_config
from tests.processes import ROOT

FOREIGN = ROOT / "tests/export/foreign"
# What runs an export must not need.
HIDDEN = ("maskx_jax", "flax", "orbax", "ml_collections")
# As `tests.compilation.QUICKLY`, for TensorFlow too.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


@pytest.fixture(scope="session")
def run() -> Loaded:
    config = tiny_config(max_detections=5, box_head__score_threshold=0.0, backbone__norm="frozen_batch")
    config.optimizer.ema_decay = None
    config.data.directory = "/home/someone/data"
    config.data.shapes.update(num_eval=2, image_size=64, num_hues=3, num_textures=2)
    config.data.transform.update(canvas=(96, 96), short_sides=(64,), max_long_side=90)
    categories = ShapesSource(1, 0, num_hues=3, num_textures=2).categories
    model = build(config.model, len(categories))
    variables = jax.tree.map(jnp.asarray, numpy_variables(model))
    return Loaded(config, model, variables, categories, step=3)


@pytest.fixture(scope="session")
def workdir(run, tmp_path_factory) -> pathlib.Path:
    """Return the work directory of the run."""
    workdir = tmp_path_factory.mktemp("run")
    write_config(workdir, run.config)
    write_json(
        workdir / DATA_FILE, {"groups": {"A": list(run.categories.names[:4]), "B": list(run.categories.names[4:])}}
    )
    params, frozen = run.variables["params"], run.variables["frozen"]
    with Checkpoints(workdir, writes=True) as checkpoints:
        checkpoints.save(
            TrainState(jnp.int32(run.step), params, {}, frozen, opt_state={}, average=None), run.categories
        )
    return workdir


@pytest.fixture(scope="session")
def picture(tmp_path_factory) -> pathlib.Path:
    """Return a portrait that no whole number of pixels of the canvas fits."""
    image = ShapesSource(1, 0, image_size=128, num_hues=3, num_textures=2)[0].image
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    cv2.imwrite(str(path), image[:, :101, ::-1])
    return path


@pytest.fixture(scope="session")
def expected(run, picture) -> dict[str, np.ndarray]:
    """Return what the run itself finds in the picture."""
    image = cv2.imread(str(picture))[..., ::-1]
    transform = Transform(**run.config.data.transform).for_evaluation()
    canvas = transform.canvas_of(portrait=True)
    view = transform.draw_view(image.shape[:2], canvas, np.random.default_rng(0))
    images = transform_image(image, view, canvas)[None]
    found = jax.jit(lambda *inputs: run.model.apply(*inputs, method="detect"))(
        run.variables, images, np.array([view.size], np.float32)
    )
    assert found.valid.sum() == 5
    names = ("boxes", "labels", "scores", "masks", "valid")
    return {"scale": np.array(view.scale), **{name: np.asarray(getattr(found, name)[0]) for name in names}}


@pytest.fixture
def run_elsewhere(tmp_path) -> Callable[..., dict[str, np.ndarray]]:
    """Return what runs a script of `foreign` in a process without this package, and gives back what it wrote."""

    def run_elsewhere(script: str, *arguments: object, hidden: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        output = tmp_path / "found.npz"
        program = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({HIDDEN + hidden}))
sys.path.insert(0, {str(FOREIGN)!r})
runpy.run_path({str(FOREIGN / script)!r}, run_name="__main__")
"""
        # Isolated (-I): neither the current folder nor PYTHONPATH.
        done = subprocess.run(
            [sys.executable, "-I", "-c", program, *map(str, arguments), str(output)],
            cwd=tmp_path,
            env={**os.environ, "XLA_FLAGS": XLA_FLAGS, "JAX_NUM_CPU_DEVICES": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        with np.load(output) as found:
            return dict(found)

    return run_elsewhere


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Check that the detections are the same to 1e-4 of a probability or a pixel."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-4, err_msg=name)
