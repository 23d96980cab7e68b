"""Evaluate a trained model, or score a stored results file.

    python eval.py --workdir=RUN
    python eval.py --results=results.json --annotations=instances_val2017.json --mask_split=voc

The first restores the latest checkpoint of a run and its config, detects over the evaluation split, and writes
results.json (COCO format, boxes and masks), metrics.json, table.txt and pictures into RUN/evaluation/<step>. The second
needs no model.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags, logging

import maskx_jax
from maskx_jax import errors, files
from maskx_jax.data import splits
from maskx_jax.data.categories import Categories
from maskx_jax.data.sources import open_source
from maskx_jax.evaluate import check_categories, detect, draw, mask_groups, score
from maskx_jax.evaluation import coco_metrics, coco_results
from maskx_jax.training import distributed
from maskx_jax.training.sharding import make_mesh, replicated
from maskx_jax.training.steps import make_detect_step

_WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of a run of train.py.")
_STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the latest by default.")
_DIRECTORY = flags.DEFINE_string("directory", None, "Prepared dataset, where it is not the one of the run.")
_SPLIT = flags.DEFINE_string("split", None, "Split to evaluate on, where it is not the one of the run.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the results; RUN/evaluation/<step> by default.")
_COMPARE = flags.DEFINE_multi_string(
    "compare", [], "title=results.json of another model on the same images: one more panel in the pictures."
)
_RESULTS = flags.DEFINE_string("results", None, "Stored COCO results to score instead of running a model.")
_ANNOTATIONS = flags.DEFINE_string("annotations", None, "COCO annotations to score --results against.")
_MASK_SPLIT = flags.DEFINE_string("mask_split", "all", "With --results: the split that says which classes are A.")
_BOUNDARY = flags.DEFINE_bool("boundary", False, "Score the borders of masks too (Boundary AP).")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes of a pod (docs/scaling.md).")
_BACKEND = flags.DEFINE_enum("backend", "hotcoco", coco_metrics.BACKENDS, "With --results: who matches detections.")


def main(_: list[str]) -> None:
    """Score stored results, or evaluate a run."""
    logging.set_verbosity(logging.WARNING)
    coco_metrics.check_backend(_BACKEND.value)
    if _RESULTS.value:
        if not _ANNOTATIONS.value:
            raise ValueError("--results needs --annotations")
        with open(_ANNOTATIONS.value) as file:
            ground_truth = json.load(file)
        results = coco_results.read_results(_RESULTS.value)
        categories = Categories.from_coco(ground_truth["categories"])
        groups = mask_groups(categories, splits.mask_labels(_MASK_SPLIT.value, categories))
        metrics = coco_metrics.evaluate(ground_truth, results, _kinds(results, _BOUNDARY.value), groups, _BACKEND.value)  # type: ignore[arg-type]
        report(metrics, _OUTPUT.value)
        return
    if not _WORKDIR.value:
        raise ValueError("expected --workdir, or --results with --annotations")
    distributed.join(enabled=_DISTRIBUTED.value)
    loaded = maskx_jax.load(_WORKDIR.value, _STEP.value)
    data = loaded.config.data
    source = open_source(
        data.source,
        _DIRECTORY.value or data.directory,
        _SPLIT.value or data.eval_split,
        data.shapes,
        training=False,
        seed=loaded.config.seed,
    )
    check_categories(source.categories, loaded.categories)
    loaded.config.evaluation.boundary |= _BOUNDARY.value
    mesh = make_mesh()
    variables = jax.device_put(loaded.variables, replicated(mesh))
    results = detect(make_detect_step(loaded.model, mesh), variables, source, loaded.config, mesh)
    output = _OUTPUT.value or pathlib.Path(_WORKDIR.value) / "evaluation" / str(loaded.step)
    if jax.process_index() == 0:
        metrics = score(results, source, loaded.config)
        report(metrics, output)
        coco_results.write_results(pathlib.Path(output) / "results.json", results)
        others = {title: coco_results.read_results(path) for title, path in map(_title_and_path, _COMPARE.value)}
        draw({"predictions": results, **others}, source, loaded.config, pathlib.Path(output) / "pictures")


def report(metrics: Mapping[str, Any], output: str | pathlib.Path | None) -> None:
    """Print the table of metrics; write it and the metrics into a folder, if one is given."""
    table = coco_metrics.format_table(metrics)
    print(f"AP in percent; A: classes with masks in training, B: without\n{table}")
    if output is not None:
        folder = pathlib.Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / "metrics.json", metrics)
        files.write_text(folder / "table.txt", f"{table}\n\n{coco_metrics.format_class_table(metrics)}\n")
        print(f"wrote {folder}")


def _title_and_path(text: str) -> tuple[str, str]:
    title, separator, path = text.partition("=")
    if not separator:
        raise ValueError(f"--compare: got {text!r}; expected title=results.json")
    return title, path


def _kinds(results: list[dict[str, Any]], boundary: bool) -> tuple[str, ...]:
    if not any("segmentation" in result for result in results):
        return ("bbox",)
    return ("bbox", "segm", "boundary") if boundary else ("bbox", "segm")


if __name__ == "__main__":
    errors.run_with_flags(main)
