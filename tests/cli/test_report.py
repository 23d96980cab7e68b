"""The verb `report`: of runs and of files, and what is wrong with its arguments in one line."""

import json

import pytest

from maskx_jax import files
from maskx_jax.cli import report
from maskx_jax.data.sources import open_source
from maskx_jax.evaluation.results import write_results
from maskx_jax.report.writing import ASSETS
from maskx_jax.runs.workdir import write_config
from tests.models.build import tiny_config
from tests.report.made import results


def data(page, name):
    text = (page / "data" / f"{name}.js").read_text()
    begin = f'maskx.receive("{name}",'
    assert text.startswith(begin) and text.endswith(");\n")
    return json.loads(text[len(begin) : -3])


def small_config():
    config = tiny_config()
    config.data.shapes.num_eval = 6
    return config


@pytest.fixture
def runs(tmp_path):
    """Return the work directories of two runs on made-up images, as `evaluate` leaves them."""
    config = small_config()
    source = open_source(config.data, training=False, seed=config.seed)
    names = source.categories.names
    for number, name in enumerate(("one", "two")):
        write_config(tmp_path / name, config)
        files.write_json(tmp_path / name / "data.json", {"groups": {"A": names[:-1], "B": names[-1:]}})
        (tmp_path / name / "evaluation/8").mkdir(parents=True)
        write_results(tmp_path / name / "evaluation/8/results.json", results(source.coco_ground_truth(), seed=number))
        lines = [json.dumps({"step": step, "train/total": 1 / step}) for step in (1, 2)]
        # A run that is killed may leave half of a line.
        (tmp_path / name / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 3, "tr']))
    return [tmp_path / "one", tmp_path / "two"]


def test_a_run_is_reported_beside_its_results(runs, capsys):
    assert report.main([str(runs[0]), "--draws=5"]) == 0
    page = runs[0] / "evaluation/8/report"
    assert capsys.readouterr().out == f"wrote {page / 'index.html'}\n"
    assert {path.name for path in page.iterdir()} == {*ASSETS, "data", "pictures"}
    summary = data(page, "summary")
    assert [model["title"] for model in summary["models"]] == ["one"] and list(summary["groups"]) == ["all", "A", "B"]
    assert summary["learning"] == [{"train/total": [[1, 1.0], [2, 0.5]]}]
    assert len(list((page / "pictures").iterdir())) == summary["num_images"] == len(data(page, "index")["images"])
    # Again: it is replaced.
    (page / "pictures/0.jpg").unlink()
    assert report.main([str(runs[0]), "--draws=5"]) == 0
    assert (page / "pictures/0.jpg").exists() and {path.name for path in page.parent.iterdir()} == {
        "report",
        "results.json",
    }


def test_a_run_is_reported_on_the_images_that_it_was_evaluated_on(runs):
    config = small_config()
    config.data.shapes.num_eval = 9
    write_config(runs[0] / "evaluation/8", config)
    source = open_source(config.data, training=False, seed=config.seed)
    write_results(runs[0] / "evaluation/8/results.json", results(source.coco_ground_truth(), seed=0))
    assert report.main([str(runs[0]), "--draws=5"]) == 0
    assert data(runs[0] / "evaluation/8/report", "summary")["num_images"] == 9


def test_two_runs_and_a_file_are_compared(runs, tmp_path):
    other = runs[1] / "evaluation/8/results.json"
    arguments = [*map(str, runs), f"--results=same as two={other}", f"--output={tmp_path / 'both'}", "--draws=5"]
    assert report.main(arguments) == 0
    first, second, third = data(tmp_path / "both", "summary")["models"]
    assert first["difference"] is None and second["difference"] == third["difference"]
    assert second["measured"] == third["measured"] != first["measured"]


def test_files_need_no_run_and_no_pictures(runs, tmp_path):
    config = small_config()
    truth = open_source(config.data, training=False, seed=config.seed).coco_ground_truth()
    files.write_json(tmp_path / "gt.json", truth)
    results_path = runs[0] / "evaluation/8/results.json"
    arguments = [f"--results=one={results_path}", f"--annotations={tmp_path / 'gt.json'}", "--draws=5"]
    assert report.main([*arguments, f"--output={tmp_path / 'page'}"]) == 0
    assert not (tmp_path / "page/pictures").exists() and not data(tmp_path / "page", "summary")["pictures"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "^expected RUN, or --results=TITLE=FILE with --annotations=FILE and --output=FOLDER"),
        (
            ["RUN", "--annotations=gt.json", "--boundary"],
            "^got --annotations, --boundary with a run, whose config says",
        ),
        (["--results=a=b", "--annotations=c", "--output=d", "--step=3"], "^got --step without a run"),
        (["RUN", "--results=b"], "^--results: got 'b'; expected title=results.json"),
        (["RUN", "--results=a=b", "--results=a=c"], "^--results: the title 'a' is given twice"),
        (["RUN", "--draws=0"], "^--draws: got 0; expected 1 or more"),
        (["RUN", "--min_score=2"], "^--min_score: got 2.0; expected 0 to 1"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        report.main(arguments)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_runs_is_one_line(runs, tmp_path):
    def said(*arguments):
        with pytest.raises((ValueError, OSError)) as caught:
            report.main([*map(str, arguments), "--draws=5"])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "expected an evaluation of step 9, found of steps [8]; python -m maskx_jax evaluate" in said(
        runs[0], "--step=9"
    )
    assert "found none" in said(tmp_path / "nowhere")
    assert "got a run twice" in said(runs[0], runs[0])
    assert "holds something else than a report" in said(runs[0], f"--output={runs[1]}")
    config = small_config()
    config.seed += 1
    write_config(runs[1], config)
    assert "were not evaluated on the same images" in said(*runs)
    (runs[0] / "evaluation/8/results.json").write_text('[{"image_id": 1}]')
    assert f"{runs[0] / 'evaluation/8'}: results[0]: missing" in said(runs[0])
