"""Evaluate a trained model: detect over a dataset, score what is found, and draw it.

    python -m maskx_jax evaluate --workdir=RUN

The latest checkpoint of a run and its config are restored; results.json (COCO format), metrics.json,
table.txt and pictures are written into RUN/evaluation/<step>. --config.FIELD=VALUE sets how it is evaluated otherwise
than in the run, such as --config.evaluation.batch_size=8 (docs/config.md).
"""

import pathlib
from collections.abc import Mapping, Sequence

import jax
from absl import flags, logging
from ml_collections import ConfigDict

from maskx_jax import errors, files
from maskx_jax.cli.evaluate_or_score import define_evaluate
from maskx_jax.cli.flags import changed_config, command_line, parse, split_changes
from maskx_jax.coco.categories import same_classes
from maskx_jax.data.records import Source
from maskx_jax.distributed import processes
from maskx_jax.distributed.mesh import make_mesh, replicated
from maskx_jax.evaluation import checks, scores
from maskx_jax.evaluation.results import read_results
from maskx_jax.inference import make_detect_step
from maskx_jax.runs import compilation, evaluation
from maskx_jax.runs.loading import Loaded, load
from maskx_jax.training.checks import check_evaluation


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate as the flags say; return the exit code."""
    argv, changes = split_changes(command_line(arguments))
    values = flags.FlagValues()
    define_evaluate(values)
    parse(values, argv, __doc__)
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    # What others made is read before the model runs.
    others = {title: read_results(path) for title, path in map(_title_and_path, values.compare)}
    compilation.use_cache()
    processes.join(enabled=values.distributed)
    loaded = load(values.workdir, values.step)
    config = changed_config(loaded.config, changes, evaluation.MAY_CHANGE)
    config.evaluation.boundary |= values.boundary
    check_evaluation(config, jax.device_count())
    source = evaluation.open_evaluated(config, values.directory, values.split)
    same_classes(source.categories, loaded.categories, "the dataset and the checkpoint")
    evaluation.check_ground_truth(config, source)
    processes.from_first_process(lambda: _check_others(others, source))
    groups = evaluation.groups_of_run(values.workdir, loaded.config, source.categories, config)
    output = None
    if jax.process_index() == 0:
        output = files.folder_in(*((values.output,) if values.output else (values.workdir, "evaluation", loaded.step)))
    found = _detect(loaded, source, config)
    if output is not None and found is not None:
        print(scores.titled_table(evaluation.write(found, source, config, output, groups, others)))
        print(f"wrote {output}")
    return 0


def _detect(loaded: Loaded, source: Source, config: ConfigDict) -> evaluation.Entries | None:
    mesh = make_mesh()
    variables = jax.device_put(loaded.variables, replicated(mesh))
    return evaluation.detect(make_detect_step(loaded.model, mesh), variables, source, config, mesh)


def _check_others(others: Mapping[str, evaluation.Entries], source: Source) -> None:
    ground_truth = source.coco_ground_truth() if others else {}
    for title, found in others.items():
        try:
            checks.check_results(found, ground_truth, scores.kinds_of(found))
        except ValueError as error:
            raise ValueError(f"--compare={title}: {error}") from None


def _title_and_path(text: str) -> tuple[str, pathlib.Path]:
    title, separator, path = text.partition("=")
    if not separator:
        raise ValueError(f"--compare: got {text!r}; expected title=results.json")
    return title, pathlib.Path(path)


if __name__ == "__main__":
    errors.run(main)
