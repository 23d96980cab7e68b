"""The flags of eval.py: those of one verb, and none of the other's is ignored."""

import json
import subprocess
import sys
import types

import pytest

from configs import mask_rcnn
from maskx_jax import files
from maskx_jax.cli import evaluate_or_score, score
from maskx_jax.cli.flags import changed_config, split_changes
from maskx_jax.data.shapes.source import ShapesSource
from maskx_jax.runs import evaluation, workdir
from maskx_jax.training.checks import check_evaluation
from tests.processes import ROOT

OF_A_RUN = {"step": "3", "directory": "DATA", "split": "val", "compare": "other=results.json", "distributed": None}
OF_RESULTS = {"annotations": "gt.json", "mask_classes": "voc", "max_detections": "20", "backend": "hotcoco"}


def flag(name, value):
    return f"--{name}" if value is None else f"--{name}={value}"


@pytest.mark.parametrize("name", OF_A_RUN)
def test_a_flag_of_a_run_is_refused_with_results(name):
    with pytest.raises(ValueError, match=rf"^got --{name} with --results; expected with it only --annotations, "):
        evaluate_or_score.run(["--results=R", "--annotations=A", flag(name, OF_A_RUN[name])])


@pytest.mark.parametrize("name", OF_RESULTS)
def test_a_flag_of_results_is_refused_with_a_run(name):
    with pytest.raises(ValueError, match=rf"^got --{name} with --workdir; expected with it only --boundary, "):
        evaluate_or_score.run(["--workdir=RUN", flag(name, OF_RESULTS[name])])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "^expected --workdir=RUN, or --results=FILE with --annotations=FILE$"),
        (["--annotations=A"], "^expected --workdir=RUN, or --results"),
        (["--workdir=RUN", "--results=R"], "^got --workdir with --results"),
        (["--results=R", "--nodistributed"], "^got --distributed with --results"),
        (["--results=R", "-step", "3", "--compare=a=b"], "^got --compare, --step with --results"),
        (["--results=R"], "--annotations must have a value"),
        (["--results=R", "--annotations=A", "--outptu=O"], "Unknown command line flag 'outptu'. Did you mean: output"),
        (["--workdir=RUN", "--compare=results.json"], "^--compare: got 'results.json'; expected title=results.json"),
        (["--results=R", "--annotations=A", "--max_detections=0"], "max_detections"),
    ],
)
def test_what_else_is_wrong_with_flags_is_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        evaluate_or_score.run(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "verb"),
    [
        (["--workdir=RUN", "--noboundary", "--distributed", *(flag(*pair) for pair in OF_A_RUN.items())], "evaluate"),
        (["--results=R", "--boundary", "--output=O", *(flag(*pair) for pair in OF_RESULTS.items())], "score"),
        (["--help"], "evaluate"),
    ],
)
def test_the_flags_of_one_verb_choose_it(arguments, verb):
    assert evaluate_or_score.choose(arguments) == verb


@pytest.mark.parametrize("flags", [("DATA", None), (None, "val")])
def test_a_dataset_is_not_named_for_a_run_on_synthetic_images(flags):
    config = types.SimpleNamespace(data=types.SimpleNamespace(source="shapes"))
    with pytest.raises(ValueError, match=r"^got --directory or --split for data\.source 'shapes'; expected them with"):
        evaluation.open_evaluated(config, *flags)


def changed(*changes):
    """Return the config of a run, changed as the flags of eval.py say."""
    config = mask_rcnn.get_config("size=tiny,data=shapes")
    rest, changes = split_changes(["eval.py", "--workdir=RUN", *changes])
    assert rest == ["eval.py", "--workdir=RUN"]
    return changed_config(config, changes, evaluation.MAY_CHANGE)


def test_how_a_run_is_evaluated_may_be_changed():
    config, expected = (
        changed(
            "--config.evaluation.batch_size=6",
            "-config.evaluation.boundary=true",
            "--config.data.transform.canvas=(64, 128)",
            "--config.evaluation.mask_classes=voc",
            "--config.data.shapes.num_eval=2000",
        ),
        mask_rcnn.get_config("size=tiny,data=shapes"),
    )
    expected.evaluation.update(batch_size=6, boundary=True, mask_classes="voc")
    expected.data.transform.canvas = (64, 128)
    expected.data.shapes.num_eval = 2000
    assert config.to_dict() == expected.to_dict()
    check_evaluation(config, num_devices=3)


def test_fields_without_a_value_may_be_set_for_a_run_that_was_read(tmp_path):
    workdir.write_config(tmp_path, mask_rcnn.get_config("size=tiny,data=shapes"))
    flags = ["--config.data.num_workers=3", "--config.data.read_ahead=4", "--config.evaluation.mask_classes=voc"]
    read = workdir.read_config(tmp_path)
    config = changed_config(read, flags, evaluation.MAY_CHANGE)
    assert config.data.num_workers == 3 and config.data.read_ahead == 4 and config.evaluation.mask_classes == "voc"
    check_evaluation(config)
    config = changed_config(read, ["--config.data.num_workers=many"], evaluation.MAY_CHANGE)
    with pytest.raises(ValueError, match=r"^config\.data\.num_workers is 'many'; expected 1 or more"):
        check_evaluation(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "--config.model.max_detections=7",
            r"^got --config\.model\.max_detections for a trained run; expected a field",
        ),
        ("--config.evaluation_=7", r"^got --config\.evaluation_ for a trained run"),
        ("--config.evaluation.batchsize=7", r"--config\.FIELD names no field: .*batchsize"),
        ("--config.evaluation.batch_size=many", "many"),
        ("--config.evaluation.batch_size", r"^got --config\.evaluation\.batch_size; expected --config\.FIELD=VALUE"),
        (
            "--config.evaluation.batch_size=4",
            r"^config\.evaluation\.batch_size is 4; expected a multiple of the 3 devices",
        ),
        ("--config.evaluation.num_processes=0", r"^config\.evaluation\.num_processes is 0; expected"),
        ("--config.data.transform.canvas=(64, 100)", r"^config\.data\.transform\.canvas is \(64, 100\); expected"),
        ("--config.evaluation.mask_classes=cats", r"^config\.evaluation\.mask_classes: "),
    ],
)
def test_what_an_evaluation_cannot_change_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_evaluation(changed("--config.evaluation.batch_size=6", change), num_devices=3)
    assert "\n" not in str(caught.value)


@pytest.fixture
def scored(tmp_path):
    """Return the flags of annotations and of results that find one object of them."""
    ground_truth = ShapesSource(2, seed=1, image_size=64, num_hues=3, num_textures=2).coco_ground_truth()
    first = ground_truth["annotations"][0]
    result = {key: first[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.5}
    files.write_json(tmp_path / "gt.json", ground_truth)
    files.write_json(tmp_path / "results.json", [result])
    return [f"--results={tmp_path}/results.json", f"--annotations={tmp_path}/gt.json"]


def test_stored_results_are_scored_and_the_tables_written(scored, tmp_path, capsys):
    assert score.main([*scored, "--mask_classes=random(1,4)", f"--output={tmp_path}/scores"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("AP in percent; A: classes with masks in training, B: without\n")
    assert "mask all" in out and out.endswith(f"wrote {tmp_path}/scores\n")
    metrics = json.loads((tmp_path / "scores/metrics.json").read_text())
    assert {"all", "A", "B"} == set(metrics["segm"])
    assert (tmp_path / "scores/table.txt").read_text().startswith(out.partition("\n")[2].rpartition("wrote")[0])


def test_scoring_needs_neither_jax_nor_tensorflow(scored):
    code = "import sys; from maskx_jax.cli import evaluate_or_score; evaluate_or_score.run(sys.argv[1:]); print("
    code += "sorted({'jax', 'flax', 'tensorflow', 'cv2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, *scored], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")
