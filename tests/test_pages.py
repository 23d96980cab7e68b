"""The pages are true: what docs/extending.md shows is what runs, rooms and files exist, links lead somewhere."""

import importlib.util
import pkgutil
import re
import sys

import numpy as np
import pytest

import maskx_jax.__main__ as program
from maskx_jax import cli
from maskx_jax.data import sources
from maskx_jax.data.pipeline import evaluation_batches, train_batches
from maskx_jax.data.records import check_record
from maskx_jax.data.roles import class_roles
from maskx_jax.data.schedule import Schedule
from maskx_jax.data.transforms import Transform
from maskx_jax.evaluation import metrics, scores
from maskx_jax.files import write_json
from maskx_jax.training.checks import check_config
from tests.models.build import tiny_config
from tests.processes import ROOT
from tests.toy import metric
from tests.toy.source import Squares, open_squares

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted((ROOT / "docs").glob("*.md"))

PAGES_OF_SITE = [path for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".ipynb")]


def test_the_examples_of_extending_are_the_code_that_the_tests_run():
    text = (ROOT / "docs/extending.md").read_text()
    examples = re.findall(r"<!-- (\S+) -->\n```python\n(.*?)\n```", text, re.DOTALL)
    assert len(examples) == 7 and text.count("```python") == len(examples)
    for path, code in examples:
        assert code in (ROOT / path).read_text(), f"docs/extending.md shows another {path}"


def test_the_scripts_of_export_are_those_that_the_tests_run():
    text = (ROOT / "docs/export.md").read_text()
    shown = dict(re.findall(r"<!-- (tests/export/\S+) -->\n```python\n(.*?)```", text, re.DOTALL))
    scripts = {f"tests/export/foreign/{path.name}" for path in (ROOT / "tests/export/foreign").glob("*.py")}
    assert shown.keys() == scripts
    for path, code in shown.items():
        assert code == (ROOT / path).read_text(), f"docs/export.md shows another {path}"


def test_the_rooms_of_architecture_are_those_of_the_package():
    text = (ROOT / "docs/architecture.md").read_text().split("## Rooms")[1].split("\n## ")[0]
    named = {
        name.strip("/")
        for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
        for name in re.findall(r"`(\S+)`", row)
    }
    package = ROOT / "maskx_jax"
    rooms = {path.name for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    files = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert named == rooms | files


def test_every_page_is_in_the_contents_of_the_site():
    contents = re.findall(r"^(\w+)$", (ROOT / "docs/index.md").read_text(), re.MULTILINE)
    assert sorted(contents) == sorted(path.stem for path in PAGES_OF_SITE if path.stem != "index")


@pytest.mark.parametrize("page", ["architecture.md", "extending.md"])
def test_names_within_rooms_exist(page):
    rooms = {path.stem for path in (ROOT / "maskx_jax").iterdir()}
    for name in re.findall(r"`([a-z_]+(?:\.\w+)+)", (ROOT / "docs" / page).read_text()):
        if name.partition(".")[0] in rooms and not name.endswith(".py"):
            pkgutil.resolve_name(f"maskx_jax.{name}")


def test_the_map_of_the_readme_names_what_exists():
    lines = (ROOT / "README.md").read_text().split("## Finding your way")[1].split("```")[1].splitlines()
    names = [match[1] for line in lines if (match := re.match(r" {0,2}([\w/.]+) ", line))]
    assert len(names) > 15
    for name in names:
        assert (ROOT / name).exists() or (ROOT / "maskx_jax" / name).exists(), name


CONFIGS = sorted((ROOT / "configs").rglob("*.py"))


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=lambda page: page.name)
def test_names_and_paths_of_the_package_exist(page):
    text = page.read_text()
    for path in re.findall(r"\b(?:maskx_jax|benchmarks|tools|configs|tests)/[a-z0-9_/]+\.py\b", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"\bmaskx_jax(?:\.\w+)+", text):
        pkgutil.resolve_name(name)
    for module in re.findall(r"python -m ((?:tools|benchmarks|tests)[\w.]*)", text):
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, heading = target.partition("#")
        if "://" in path:
            continue
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_a_data_source_is_an_entry_with_its_section(monkeypatch):
    monkeypatch.setitem(sources.SOURCES, "squares", open_squares)
    config = tiny_config()
    config.data.source = "squares"
    config.data.squares = {"num_images": 6}
    check_config(config)
    source = sources.open_source(config.data, training=True)
    assert isinstance(source, Squares) and len(source) == 6
    for index in range(6):
        check_record(source[index], len(source.categories))
    allowed = np.ones(3, bool)
    assert set(class_roles(source, allowed)[1:]) == {"A"}
    transform = Transform(canvas=(64, 64), short_sides=(64,), max_long_side=64, flip_probability=0.0, num_slots=2)
    batch = next(train_batches(source, Schedule(source.sizes, 2, seed=0, single_canvas=True), transform, allowed))
    assert batch.ground_truth.valid.tolist() == [[True, False]] * 2
    batches = list(evaluation_batches(source, transform, 4))
    ids = np.concatenate([batch.image_ids[batch.valid] for batch in batches])
    assert ids.tolist() == source.image_ids.tolist()
    # What is found where the objects are is right.
    ground_truth = source.coco_ground_truth()
    fields = ("image_id", "category_id", "bbox", "segmentation")
    found = [{name: entry[name] for name in fields} | {"score": 0.9} for entry in ground_truth["annotations"]]
    assert metrics.score(ground_truth, found, ("bbox",))["bbox"]["all"]["AP"] == 1.0


def test_a_metric_is_an_entry_of_the_definitions(monkeypatch):
    definitions = metrics.metric_definitions

    def extended(max_detections=100, has_frequencies=False):
        return definitions(max_detections, has_frequencies) | metric.strict_precision(max_detections)

    monkeypatch.setattr(metrics, "metric_definitions", extended)
    ground_truth = Squares(4, seed=0).coco_ground_truth()
    # A tenth wider than the objects: right at an IoU of 0.5 and wrong at 0.95.
    found = [
        {"image_id": entry["image_id"], "category_id": entry["category_id"], "score": 0.9}
        | {"bbox": [*entry["bbox"][:2], 1.15 * entry["bbox"][2], entry["bbox"][3]]}
        for entry in ground_truth["annotations"]
    ]
    measured = metrics.score(ground_truth, found, ("bbox",))
    assert measured["bbox"]["all"]["AP50"] == 1.0 and measured["bbox"]["all"]["AP90"] == 0.0
    assert "bbox/all/AP90" in scores.metric_names(("bbox",), (), 100)
    assert "AP90" in scores.format_table(measured)


def test_a_verb_is_a_file_with_main(monkeypatch, tmp_path, capsys):
    folder = ROOT / "tests/toy/verbs"
    monkeypatch.setattr(program, "CLI", folder)
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(folder)])
    assert program.verbs() == {"classes": "Print the classes of a prepared dataset."}
    write_json(tmp_path / "categories.json", [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}])
    monkeypatch.setattr(sys, "argv", ["maskx_jax", "classes", f"--directory={tmp_path}"])
    assert program.main() == 0
    assert capsys.readouterr().out == "cat\ndog\n"
