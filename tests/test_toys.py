"""A family, a backbone and a region head of one's own work without an edit in the package but their registration."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import maskx_jax
from configs.families import rcnn
from maskx_jax.models.build import BACKBONES, FAMILIES, build, initialize, produces
from maskx_jax.models.detector import Detector
from maskx_jax.models.rcnn.region_head import RegionHead
from maskx_jax.training import loop
from maskx_jax.training.checks import check_config
from maskx_jax.weights.export import to_torchvision
from maskx_jax.weights.pretrained import apply_conventions, conventions_of
from tests import toy
from tests.models.build import numpy_variables, shapes_batch, tiny_config
from tests.processes import ENVIRONMENT, ROOT
from tests.toy.config import get_config


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for parts, toys in ((FAMILIES, toy.TOY_FAMILIES), (BACKBONES, toy.TOY_BACKBONES)):
        for name, part in toys.items():
            monkeypatch.setitem(parts, name, part)


def shapes_by_path(model):
    shapes = jax.eval_shape(lambda: initialize(model, jax.random.key(0)))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes, sep="/").items()}


def test_a_family_keeps_the_contract_and_passes_the_checks_of_a_config():
    config = get_config()
    check_config(config, num_devices=8)
    model = build(config.model, 6)
    assert isinstance(model, Detector) and produces(config.model) == {"boxes"}
    config.train.best_metric = ("segm/all/AP",)
    with pytest.raises(ValueError, match=r"expected one of what is measured here: bbox$"):
        check_config(config, num_devices=8)


def test_a_family_takes_weights_without_the_conventions_of_others_and_is_not_exported():
    config, conventions = get_config(), conventions_of(rcnn.get_config())
    apply_conventions(config, conventions, say=str)
    assert set(conventions_of(config)) == {
        *("model.pixels.channel_order", "model.pixels.mean", "model.pixels.std"),
        *("evaluation.paste_grid", "evaluation.keypoint_grid", "evaluation.keypoint_score"),
    }
    with pytest.raises(ValueError, match=r"nothing for model\.family = 'cells' \(expected rcnn or dense\)"):
        to_torchvision({}, build(config.model, 6), config.model)


@pytest.mark.slow
def test_a_family_trains_resumes_evaluates_and_is_loaded(tmp_path):
    config = get_config()
    loop.train(config, str(tmp_path / "whole"))
    parted = get_config()
    parted.train.num_steps = 4
    loop.train(parted, str(tmp_path / "parted"))
    metrics = loop.train(get_config(), str(tmp_path / "parted"))
    assert set(metrics["bbox"]) == {"all"} and "segm" not in metrics
    whole, resumed = (maskx_jax.load(tmp_path / name) for name in ("whole", "parted"))
    assert whole.step == resumed.step == 8
    jax.tree.map(np.testing.assert_array_equal, whole.variables, resumed.variables)
    # Its weights start another run.
    again = get_config()
    again.initialize.path = str(tmp_path / "whole")
    again.train.num_steps = 1
    again.train.eval_every = 0
    loop.train(again, str(tmp_path / "again"))
    assert maskx_jax.load(tmp_path / "again").step == 1


def program(*arguments):
    command = [sys.executable, "-m", "tests.toy.program", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | ENVIRONMENT, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_family_goes_through_the_programs_and_survives_being_asked_to_leave(tmp_path):
    workdir = tmp_path / "run"
    train = ("train.py", f"--config={ROOT}/tests/toy/config.py", f"--workdir={workdir}")
    long = (*train, "--config.train.num_steps=100000", "--config.train.eval_every=0")
    running = program(*long)
    while not (workdir / "metrics.jsonl").exists() or not (workdir / "metrics.jsonl").read_text():
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 75, errors
    left = maskx_jax.load(workdir).step
    resumed = program(*long[:-2], f"--config.train.num_steps={left + 3}", "--config.train.eval_every=0")
    _, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, errors
    evaluated = program("eval.py", f"--workdir={workdir}", f"--output={tmp_path / 'scores'}")
    _, errors = evaluated.communicate(timeout=120)
    assert evaluated.returncode == 0, errors
    assert set(json.loads((tmp_path / "scores" / "metrics.json").read_text())["bbox"]) == {"all"}


def test_a_backbone_is_named_in_the_config_of_any_family():
    config = tiny_config()
    config.model.backbone = {"kind": "patches", "width": 4}
    check_config(config, num_devices=8)
    paths = shapes_by_path(build(config.model, 6))
    assert paths["params/backbone/patches/kernel"] == (4, 4, 3, 4)
    assert paths["params/fpn/lateral5/kernel"] == (1, 1, 4, 64) and "params/fpn/lateral2/kernel" in paths
    with pytest.raises(ValueError, match=r"^config\.model\..*unexpected keyword argument 'widht'"):
        config.model.backbone = {"kind": "patches", "widht": 4}
        check_config(config, num_devices=8)


def test_a_region_head_stands_beside_the_mask_branch():
    config = tiny_config()
    config.model.rcnn_with_centers = config.model.rcnn
    config.model.family = "rcnn_with_centers"
    model = build(config.model, 6)
    assert isinstance(model.heads[-1], RegionHead) and model.produces == {"boxes", "masks", "keypoints"}
    params = numpy_variables(model)["params"]
    assert set(params) == {"backbone", "fpn", "rpn", "box_head", "mask_head", "mask_weights", "center_head"}
    assert params["center_head"]["center"]["kernel"].shape == (64, 1)
    batch, keys = shapes_batch(), jax.random.split(jax.random.key(0), 2)
    means = jax.eval_shape(lambda v: model.apply(v, batch, keys, method="loss_means"), numpy_variables(model))
    assert set(means) == {"rpn_class", "rpn_box", "box_class", "box", "mask", "center"}
    found = jax.eval_shape(
        lambda v: model.apply(v, batch.images, batch.image_sizes, method="detect"), numpy_variables(model)
    )
    assert found.keypoint_maps.shape == (2, 20, 1, 7, 7) and found.masks.shape == (2, 20, 28, 28)
    assert found.keypoint_maps.dtype == jnp.float32
