"""Evaluate a trained model, or score a stored results file.

    python eval.py --workdir=RUN
    python eval.py --results=results.json --annotations=instances_val2017.json --mask_classes=voc

The first restores the latest checkpoint of a run and its config, detects over the evaluation split, and writes
results.json (COCO format, boxes and masks), metrics.json, table.txt and pictures into RUN/evaluation/<step>. The second
needs no model; LVIS' annotations are scored by LVIS' rules.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags, logging

import maskx_jax
from configs import base
from maskx_jax import errors, files
from maskx_jax.coco.categories import Categories, same_classes
from maskx_jax.data.sources import open_source
from maskx_jax.distributed import processes as distributed
from maskx_jax.distributed.mesh import make_mesh, replicated
from maskx_jax.evaluation import checks as coco_checks
from maskx_jax.evaluation import matching, scores
from maskx_jax.evaluation import results as coco_results
from maskx_jax.inference import make_detect_step
from maskx_jax.runs import compilation
from maskx_jax.runs import evaluation as scoring
from maskx_jax.runs import workdir as runs

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
_MASK_CLASSES = flags.DEFINE_string("mask_classes", "all", "With --results: the classes of A, such as voc.")
_MAX_DETECTIONS = flags.DEFINE_integer(
    "max_detections", None, "With --results: detections an image that count; by default 100, or 300 of LVIS."
)
_BOUNDARY = flags.DEFINE_bool("boundary", False, "Score the borders of masks too (Boundary AP).")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes of a pod (docs/scaling.md).")
_BACKEND = flags.DEFINE_enum("backend", "hotcoco", matching.BACKENDS, "With --results: who matches detections.")


def main(_: list[str]) -> None:
    """Score stored results, or evaluate a run."""
    logging.set_verbosity(logging.WARNING)
    if _RESULTS.value:
        matching.check_backend(_BACKEND.value)
        if not _ANNOTATIONS.value:
            raise ValueError("--results needs --annotations")
        metrics = scores.score_file(
            _RESULTS.value,
            _ANNOTATIONS.value,
            _MASK_CLASSES.value,
            boundary=_BOUNDARY.value,
            backend=_BACKEND.value,
            max_detections=_MAX_DETECTIONS.value,
        )
        _report(metrics, files.folder_in(_OUTPUT.value) if _OUTPUT.value else None)
        return
    if not _WORKDIR.value:
        raise ValueError("expected --workdir, or --results with --annotations")
    # What others made is read before the model runs.
    others = {title: coco_results.read_results(path) for title, path in map(_title_and_path, _COMPARE.value)}
    compilation.use_cache()
    distributed.join(enabled=_DISTRIBUTED.value)
    loaded = maskx_jax.load(_WORKDIR.value, _STEP.value)
    # A run of an older version lacks fields.
    evaluation = base.get_config().evaluation
    evaluation.update(loaded.config.evaluation)
    evaluation.boundary |= _BOUNDARY.value
    loaded.config.evaluation = evaluation
    # What these cannot do is known before anything is detected.
    scoring.check(loaded.config)
    data = loaded.config.data
    data.directory = _DIRECTORY.value or data.directory
    data.eval_split = _SPLIT.value or data.eval_split
    source = open_source(data, training=False, seed=loaded.config.seed)
    trained = Categories.from_coco(loaded.categories)
    same_classes(source.categories, trained, "the dataset and the checkpoint")
    for title, results in others.items():
        try:
            coco_checks.check_results(results, source.coco_ground_truth(), scores.kinds_of(results))
        except ValueError as error:
            raise ValueError(f"--compare={title}: {error}") from None
    groups = runs.read_groups(_WORKDIR.value, source.categories)
    is_first_process = jax.process_index() == 0
    output = None
    if is_first_process:
        output = files.folder_in(*((_OUTPUT.value,) if _OUTPUT.value else (_WORKDIR.value, "evaluation", loaded.step)))
    mesh = make_mesh()
    variables = jax.device_put(loaded.variables, replicated(mesh))
    results = scoring.detect(make_detect_step(loaded.model, mesh), variables, source, loaded.config, mesh)
    if output is not None:
        if groups is None:
            groups = scoring.scored_groups(source.categories, loaded.config)
        _report(scoring.write(results, source, loaded.config, output, groups, others), output)


def _report(metrics: Mapping[str, Any], folder: pathlib.Path | None) -> None:
    print(f"AP in percent; A: classes with masks in training, B: without\n{scores.format_table(metrics)}")
    if folder is not None:
        scores.write(metrics, folder)
        print(f"wrote {folder}")


def _title_and_path(text: str) -> tuple[str, str]:
    title, separator, path = text.partition("=")
    if not separator:
        raise ValueError(f"--compare: got {text!r}; expected title=results.json")
    return title, path


if __name__ == "__main__":
    errors.run_with_flags(main)
