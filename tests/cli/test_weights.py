"""Importing and exporting weights, end to end on the synthetic set."""

import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import maskx_jax
from configs import keypoint_rcnn, mask_rcnn
from maskx_jax import errors, files
from maskx_jax.cli import export_weights, import_weights
from maskx_jax.data.shapes.marks import SKELETON
from maskx_jax.data.sources import open_source
from maskx_jax.distributed.mesh import make_mesh, replicated
from maskx_jax.inference import make_detect_step
from maskx_jax.models.build import build
from maskx_jax.runs import evaluation
from maskx_jax.runs.loading import Loaded
from maskx_jax.runs.workdir import write_config
from maskx_jax.weights.export import describe, to_torchvision
from maskx_jax.weights.pretrained import RunWeights
from tests.models.build import numpy_variables

NUM_CLASSES = 6


def tiny_config():
    config = mask_rcnn.get_config("size=tiny,data=shapes")
    # As torchvision's detectors are: others cannot be exported.
    config.model.backbone.norm = "frozen_batch"
    config.model.rcnn.rpn.anchor_convention = config.model.rcnn.roi_align.convention = "torchvision"
    config.data.shapes.update(num_train=2, num_eval=8, num_hues=3, num_textures=2)
    return config


@pytest.fixture(scope="module")
def model():
    return build(tiny_config().model, NUM_CLASSES)


@pytest.fixture(scope="module")
def variables(model):
    return numpy_variables(model)


@pytest.fixture(scope="module")
def file(model, variables, tmp_path_factory):
    """Return a file of the tiny model as torchvision names its parameters, with six classes."""
    config = tiny_config()
    state = to_torchvision(variables, model, config.model)
    categories = open_source(config.data, training=False).categories
    path = tmp_path_factory.mktemp("file") / "model.safetensors"
    save_file(state, path, describe(config, categories).to_text())
    return path


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    """Return the work directory that the import made of it."""
    config = tiny_config()
    config.initialize.path = str(file)
    workdir = tmp_path_factory.mktemp("import") / "run"
    import_weights.import_weights(config, str(workdir))
    return workdir


@pytest.mark.slow
def test_an_imported_file_can_be_evaluated(run):
    loaded = maskx_jax.load(run)
    assert loaded.step == 0 and len(loaded.categories) == NUM_CLASSES
    source = open_source(loaded.config.data, training=False)
    mesh = make_mesh()
    step = make_detect_step(loaded.model, mesh)
    variables = jax.device_put(loaded.variables, replicated(mesh))
    results = list(evaluation.detect(step, variables, source, loaded.config, mesh))
    images = {image["id"] for image in source.coco_ground_truth()["images"]}
    assert results and {result["image_id"] for result in results} <= images
    assert evaluation.score(results, source.coco_ground_truth(), loaded.config, {})["segm"]["all"]["AP"] < 0.1


def test_what_was_imported_is_exported_again(run, file, tmp_path, capsys):
    output = tmp_path / "model.safetensors"
    export_weights.main([f"--workdir={run}", f"--output={output}"])
    exported, expected = load_file(output), load_file(file)
    assert sorted(exported) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(exported[name], value, rtol=1e-6, err_msg=name)
    with safe_open(output, "numpy") as new, safe_open(file, "numpy") as old:
        assert new.metadata() == old.metadata()
    text = capsys.readouterr().out.split("in PyTorch:\n\n")[1]
    compile(text, "recipe", "exec")
    assert "num_classes=7" in text and "ResNet(Bottleneck, [1, 1, 1, 1])" in text
    assert list(tmp_path.iterdir()) == [output]


def weights_of_a_run(config, monkeypatch):
    """Let an import find weights made up for a config, as of another run; return the variables."""
    source = open_source(config.data, training=False)
    model = build(config.model, len(source.categories))
    variables = numpy_variables(model)
    weights = RunWeights("OTHER", Loaded(config, model, variables, source.categories, 7))
    monkeypatch.setattr(import_weights, "initialize", lambda model, key: variables)
    monkeypatch.setattr(import_weights.pretrained, "open_weights", lambda *_: weights)
    config.initialize.path = "OTHER"
    return variables


def test_a_model_without_constants_is_imported(tmp_path, monkeypatch):
    config = tiny_config()
    config.model.backbone.norm = "group"
    variables = weights_of_a_run(config, monkeypatch)
    assert "frozen" not in variables
    import_weights.import_weights(config, str(tmp_path / "run"))
    jax.tree.map(
        np.testing.assert_array_equal, maskx_jax.load(tmp_path / "run").variables["params"], variables["params"]
    )


def test_an_imported_run_knows_the_skeleton_of_its_data(tmp_path, monkeypatch, capsys):
    config = keypoint_rcnn.get_config("size=tiny,data=shapes")
    weights_of_a_run(config, monkeypatch)
    import_weights.import_weights(config, str(tmp_path / "run"))
    assert maskx_jax.load(tmp_path / "run").categories.skeleton == SKELETON
    config.model.rcnn.keypoint_head.num_keypoints = 4
    weights_of_a_run(config, monkeypatch)
    said = answer(capsys, lambda: import_weights.import_weights(config, str(tmp_path / "other")))
    assert "config.model finds 4 keypoints an object; the data have 5" in said
    assert not (tmp_path / "other").exists()


def answer(capsys, program):
    """Return the line that a program ends with."""
    with pytest.raises(SystemExit) as left:
        errors.run(program)
    said = capsys.readouterr().err
    assert left.value.code == 1 and said.startswith("error: ") and said.count("\n") == 1, said
    return said


def not_writable(path):
    """Return a stand-in for os.access: the tests may be run by root, who may do anything."""
    return lambda asked, mode: pathlib.Path(asked).absolute() != path


def no_space(*_, **__):
    raise OSError(28, "No space left on device", "array")


def write(content):
    return lambda path: path.write_bytes(content)


def changed(arrays):
    """Return what writes the file of weights with some arrays changed; None removes one."""

    def make(path):
        state = load_file(path) | arrays
        path.unlink()
        save_file({name: value for name, value in state.items() if value is not None}, path)

    return make


PREDICTOR = "roi_heads.box_predictor.cls_score.bias"


# What is done to the file of weights, options of config.initialize, what the error says.
@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (None, {"path": ""}, "expected --config.initialize.path"),
        (lambda path: path.unlink(), {}, "found no file"),
        (lambda path: (path.unlink(), path.mkdir()), {}, "expected the work directory of a run"),
        (lambda path: (path.unlink(), os.mkfifo(path)), {}, "found no file"),
        (write(b""), {}, "cannot be read as weights"),
        (write(b"<!DOCTYPE html>"), {}, "cannot be read as weights"),
        (write(b"PK\x03\x04 and nothing else"), {}, "cannot be read as weights"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), {}, "cannot be read as weights"),
        (write(b"\x80\x04cposix\nsystem\n."), {}, "cannot be read as weights"),
        (lambda path: save_file({"blocks.0.qkv": np.ones(1)}, path), {}, "of no known network"),
        (None, {"preset": "caffe"}, "got preset 'caffe'"),
        (None, {"preset": "torchvision_coco"}, "epsilon is 1e-05; with preset torchvision_coco 0"),
        (None, {"preset": "detectron"}, "does not fit the model: "),
        (None, {"keep": ("pixels.mean",)}, "got ['pixels.mean'] in initialize.keep"),
        (None, {"new": ("rpm/.*",)}, "pattern 'rpm/.*' of the new parameters matches none"),
        (None, {"new": ("(",)}, "pattern '(' in initialize is no regular expression"),
        (None, {"unused": ("*",)}, "pattern '*' in initialize is no regular expression"),
        (None, {"classes": ("cat",)}, "names its own"),
        (changed({}), {"classes": ("cat",)}, "initialize.classes names 1 classes; the predictor has 6"),
        (changed({PREDICTOR: None}), {}, "1 missing, such as box_head/classification/bias"),
        (changed({"keypoints": np.ones(1, np.float32)}), {}, "1 unexpected, such as keypoints"),
        (changed({PREDICTOR: np.ones(9, np.float32)}), {}, "that do not fit"),
        (changed({PREDICTOR: np.full(7, np.nan, np.float32)}), {}, "1 that do not fit, such as box_head"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_an_import_that_cannot_be_done_is_answered_by_one_line(
    file, variables, tmp_path, monkeypatch, capsys, make, options, message
):
    monkeypatch.setattr(import_weights, "initialize", lambda model, key: variables)
    path = tmp_path / "model.safetensors"
    shutil.copy(file, path)
    if make is not None:
        make(path)
    config = tiny_config()
    config.initialize.update({"path": str(path)} | options)
    assert message in answer(capsys, lambda: import_weights.import_weights(config, str(tmp_path / "new/run")))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ("a run", "holds checkpoints, config.json; expected a new or an empty work directory"),
        ("a file", "is no directory"),
        ("below a file", "is no directory"),
        ("not empty", "holds notes.txt; expected a new or an empty work directory"),
        ("read-only", "may not be written to"),
        ("no data", "data.directory is not set"),
        ("no source", "got data.source 'coco'"),
        ("no space", "No space left on device"),
        ("no space, empty directory", "No space left on device"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_import_leaves_a_place_as_it_was(file, variables, run, tmp_path, monkeypatch, capsys, make, message):
    monkeypatch.setattr(import_weights, "initialize", lambda model, key: variables)
    config, workdir = tiny_config(), tmp_path / "run"
    config.initialize.path = str(file)
    if make == "a run":
        workdir = run
    elif make == "a file":
        workdir.write_text("a")
    elif make == "below a file":
        workdir.write_text("a")
        workdir = workdir / "deeper/still"
    elif make == "not empty":
        workdir.mkdir()
        (workdir / "notes.txt").write_text("a")
    elif make == "read-only":
        monkeypatch.setattr(os, "access", not_writable(tmp_path))
    elif make == "no data":
        config.data.source = "prepared"
    elif make == "no source":
        config.data.source = "coco"
    else:
        monkeypatch.setattr(import_weights.Checkpoints, "save", no_space)
        if "empty" in make:
            workdir.mkdir()
    before = sorted(tmp_path.rglob("*")), sorted(run.rglob("*"))
    assert message in answer(capsys, lambda: import_weights.import_weights(config, str(workdir)))
    assert (sorted(tmp_path.rglob("*")), sorted(run.rglob("*"))) == before


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (None, {"workdir": "nothing"}, "expected the work directory of a run"),
        (None, {"workdir": "."}, "expected the work directory of a run"),
        (lambda here: write_config(here, tiny_config()), {"workdir": "."}, "expected any checkpoint"),
        (None, {"step": "7"}, "7"),
        (None, {"step": "last"}, "invalid int value: 'last'"),
        (None, {"format": "pth"}, "unrecognized arguments: --format=pth"),
        (None, {"output": "model.pth"}, "expected a name that ends in .safetensors"),
        (None, {"output": "missing/model.safetensors"}, "there is no directory"),
        (lambda here: (here / "model.safetensors").write_text("a"), {}, "exists; expected a new file"),
        (lambda here: (here / "model.safetensors").mkdir(), {}, "exists; expected a new file"),
        ("read-only", {}, "may not be written to"),
        ("no space", {}, "No space left on device"),
        ("mlp", {}, "torchvision's Mask R-CNN cannot express model.rcnn.mask_head.mlp = 'light'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_export_that_cannot_be_done_is_answered_by_one_line(
    run, tmp_path, monkeypatch, capsys, make, arguments, message
):
    here = tmp_path / "here"
    here.mkdir()
    if callable(make):
        make(here)
    elif make == "read-only":
        monkeypatch.setattr(os, "access", not_writable(here))
    elif make == "no space":
        monkeypatch.setattr(files, "write_bytes", no_space)
    elif make == "mlp":
        config = tiny_config()
        config.model.rcnn.mask_head.mlp = "light"
        model = build(config.model, NUM_CLASSES)
        loaded = Loaded(config, model, {}, [], 0)
        monkeypatch.setattr(maskx_jax, "load", lambda *_: loaded)
    before = sorted(here.rglob("*"))
    options = {"workdir": run, "output": "model.safetensors"} | arguments
    monkeypatch.chdir(here)
    given = [f"--{name}={value}" for name, value in options.items()]
    assert message in answer(capsys, lambda: export_weights.main(given))
    assert sorted(here.rglob("*")) == before
