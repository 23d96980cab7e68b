"""The folder for the Hugging Face Hub: read back it is the run, and others read its weights without this package."""

import json

import jax
import numpy as np
import pytest
import yaml
from flax import traverse_util
from safetensors.numpy import load_file, save_file

import maskx_jax
from maskx_jax import files
from maskx_jax.cli.export import main
from maskx_jax.evaluation import scores
from maskx_jax.export.hugging_face import card, scores_table
from maskx_jax.runs.workdir import read_groups


@pytest.fixture(scope="module")
def folder(workdir, tmp_path_factory):
    """Return what the verb wrote."""
    folder = tmp_path_factory.mktemp("out") / "hf"
    assert main([f"--workdir={workdir}", "--format=hf", f"--output={folder}"]) == 0
    return folder


@pytest.fixture
def copied(folder, tmp_path):
    """Return a copy of it, to be damaged."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_it_loads_as_the_run_bit_by_bit(folder, workdir):
    run, again = maskx_jax.load(workdir), maskx_jax.load(folder)
    assert (again.step, again.categories, again.model) == (run.step, run.categories, run.model)
    theirs, ours = again.config.to_dict(), run.config.to_dict()
    assert theirs["data"].pop("directory") is None and ours["data"].pop("directory") == "/home/someone/data"
    assert theirs == ours
    assert jax.tree.structure(again.variables) == jax.tree.structure(run.variables)
    for one, other in zip(jax.tree.leaves(again.variables), jax.tree.leaves(run.variables), strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other) and one.sharding == other.sharding
    assert read_groups(folder, again.categories) == read_groups(workdir, run.categories) != None  # noqa: E711


def test_another_step_is_refused(folder):
    with pytest.raises(FileNotFoundError, match=r"^expected a checkpoint of step 7; .* holds that of step 3$"):
        maskx_jax.load(folder, 7)


def test_a_process_without_this_package_reads_weights_and_names(folder, run, run_elsewhere):
    found = run_elsewhere("read_folder.py", folder)
    assert tuple(found.pop("names")) == run.categories.names
    expected = traverse_util.flatten_dict(run.variables, sep="/")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_nothing_of_this_machine_is_in_it(folder):
    for path in folder.glob("*.*"):
        assert b"/home/someone" not in path.read_bytes()


def test_the_card_says_what_the_model_is(folder):
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header)["pipeline_tag"] == "image-segmentation"
    assert "# Mask^X R-CNN, 6 classes" in text and "red solid, red horizontal" in text
    assert "Not evaluated." in text and "## Licence" in text


def test_the_card_has_the_table_of_the_evaluation(run, tmp_path):
    assert scores_table(tmp_path, 3) is None
    measured = {"federated": False, "max_detections": 100, "num_areas_replaced": 0, "bbox": {"all": {"AP": 0.25}}}
    path = tmp_path / "evaluation/3/metrics.json"
    path.parent.mkdir(parents=True)
    files.write_json(path, measured)
    assert scores.titled_table(measured) in card(run, scores_table(tmp_path, 3))
    files.write_json(path, [1])
    with pytest.raises(ValueError, match=r"metrics\.json: cannot be read as the scores of an evaluation"):
        scores_table(tmp_path, 3)


def change_weights(change):
    def damage(folder):
        arrays = load_file(folder / "model.safetensors")
        change(arrays)
        save_file(arrays, folder / "model.safetensors")

    return damage


def change_config(**fields):
    return lambda folder: files.write_json(
        folder / "config.json", json.loads((folder / "config.json").read_text()) | fields
    )


KERNEL = "params/rpn/conv/kernel"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_weights(lambda a: a.pop(KERNEL)), rf"does not hold the arrays of .*: 1 missing \({KERNEL}\)$"),
        (change_weights(lambda a: a.update(more=a[KERNEL])), r": 1 unknown \(more\)$"),
        (change_weights(lambda a: a.update({KERNEL: a[KERNEL][..., 1:]})), r": 1 of another shape or type"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"0" * 100), r"cannot be read as safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is no JSON"),
        (change_config(model_type="bert"), r"config\.json: found the model_type 'bert'; expected 'maskx_jax'"),
        (change_config(config={}), r"config\.json: found no seed; expected the config of a run"),
        (change_config(categories=[{"id": 1}]), r"its categories or its step cannot be read"),
    ],
)
def test_what_is_damaged_is_named_in_one_line(copied, damage, message):
    damage(copied)
    with pytest.raises(ValueError, match=message) as caught:
        maskx_jax.load(copied)
    assert "\n" not in str(caught.value)


def test_a_batch_size_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^got --batch_size with --format=hf; expected it with stablehlo"):
        main(["--workdir=RUN", "--format=hf", f"--output={tmp_path / 'hf'}", "--batch_size=2"])
    assert not list(tmp_path.iterdir())
