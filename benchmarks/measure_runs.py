"""Measure how fast trained runs are, in images a second of training and of detection, on all devices of this machine.

    python -m benchmarks.measure_runs SWEEP/one_stage_embedmask_ijcai-seed0 SWEEP/2_r50_oracle-seed0

It writes a Markdown table. The batches are those of the run's config, made before the clock starts; all runs are timed
in turn, round by round, so that what else the machine does meets all of them alike. A detector's time depends on what
it finds, which is why the parameters are trained ones.
"""

import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.measure_classes import median_seconds
from maskx_jax import errors, load
from maskx_jax.coco.mask_classes import mask_labels
from maskx_jax.data.pipeline import evaluation_batches, train_batches
from maskx_jax.data.schedule import Schedule
from maskx_jax.data.sources import open_source
from maskx_jax.data.transforms import Transform
from maskx_jax.distributed.mesh import global_batch, make_mesh, replicated
from maskx_jax.inference import images_of, make_detect_step
from maskx_jax.runs.loading import Loaded
from maskx_jax.structures import Batch, PyTree
from maskx_jax.training.optimizer import from_config
from maskx_jax.training.steps import make_state, make_train_step

# (name of the measure, images that a call works through, the call)
Timed = tuple[str, int, Callable[[], Any]]


def main() -> None:
    """Measure the runs that the arguments name."""
    parser = errors.ArgumentParser(prog="python -m benchmarks.measure_runs", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", help="work directories of train.py")
    parser.add_argument("--rounds", type=int, default=5, help="times that the runs are timed in turn")
    parser.add_argument("--batches", type=int, default=4, help="batches of a measurement; their median counts")
    options = parser.parse_args()
    timed = {run: [training(loaded), detection(loaded)] for run in options.runs for loaded in [load(run)]}
    seconds: dict[tuple[str, str], list[float]] = {}
    for _, (run, measures) in itertools.product(range(options.rounds), timed.items()):
        for name, _, call in measures:
            seconds.setdefault((run, name), []).append(median_seconds(call, options.batches))
    print(f"| run | training, images/s | detection, images/s |\n|---|---|---|\n{rows(timed, seconds)}")
    print(f"\n{jax.device_count()} devices; median of {options.rounds} rounds, smallest and largest in brackets")


def rows(timed: dict[str, list[Timed]], seconds: dict[tuple[str, str], list[float]]) -> str:
    """Return the lines of the table."""

    def cell(run: str, name: str, num_images: int) -> str:
        rates = num_images / np.array(seconds[run, name])
        return f"{np.median(rates):.1f} ({rates.min():.1f} to {rates.max():.1f})"

    return "\n".join(
        f"| {pathlib.Path(run).name} | {' | '.join(cell(run, name, count) for name, count, _ in measures)} |"
        for run, measures in timed.items()
    )


def training(run: Loaded) -> Timed:
    """Return steps of training from the run's parameters, on its first batches."""
    config = run.config
    source = open_source(config.data, training=True, seed=config.seed)
    transform = Transform(**config.data.transform)
    schedule = Schedule(source.sizes, config.train.batch_size, seed=config.seed, single_canvas=transform.single_canvas)
    allowed = mask_labels(config.data.mask_classes, source.categories)
    batches = train_batches(source, schedule, transform, allowed)
    mesh = make_mesh()
    few = itertools.cycle([global_batch(mesh, next(batches)) for _ in range(3)])
    _, optimizer = from_config(config)
    # A step donates its state, and detection needs these parameters too.
    state = make_state(_everywhere(run, mesh), optimizer, config.optimizer.untrained, ema=False)
    step = make_train_step(run.model, optimizer, mesh, seed=config.seed)

    def call() -> Any:
        nonlocal state
        state, losses = step(state, next(few))
        return losses

    return "training", config.train.batch_size, call


def detection(run: Loaded) -> Timed:
    """Return detection on the run's first images for evaluation, without pasting and scoring."""
    config = run.config
    source = open_source(config.data, training=False, seed=config.seed)
    size = config.evaluation.batch_size
    mesh = make_mesh()
    first: list[Batch] = list(itertools.islice(evaluation_batches(source, Transform(**config.data.transform), size), 3))
    few = itertools.cycle([global_batch(mesh, images_of(batch)) for batch in first])
    step = make_detect_step(run.model, mesh)
    variables = _everywhere(run, mesh)
    return "detection", size, lambda: step(variables, *next(few))


def _everywhere(run: Loaded, mesh: Mesh) -> PyTree:
    """Return a copy of the run's variables on every device."""
    return jax.device_put(jax.tree.map(np.asarray, run.variables), replicated(mesh))


if __name__ == "__main__":
    errors.run(main)
