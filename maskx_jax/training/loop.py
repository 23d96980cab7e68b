"""How a model is trained: step after step, with evaluations, checkpoints and reports between them.

`train` puts a run together from its config; `Loop` takes it from its present step to the last one.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from maskx_jax.data import pipeline, sources
from maskx_jax.data.records import Source
from maskx_jax.distributed.interruption import InterruptedRun, Interruption
from maskx_jax.distributed.mesh import global_batch, make_mesh
from maskx_jax.distributed.processes import from_first_process
from maskx_jax.distributed.watchdog import Watchdog
from maskx_jax.evaluation.scores import flatten, format_table
from maskx_jax.inference import DetectStep, make_detect_step
from maskx_jax.models.build import build
from maskx_jax.runs import evaluation
from maskx_jax.runs import workdir as workdirs
from maskx_jax.runs.checkpoints import Checkpoints
from maskx_jax.runs.environment import describe_environment
from maskx_jax.runs.logs import MetricLog, Pace, RecentLosses, info
from maskx_jax.structures import Batch, TrainState
from maskx_jax.training import optimizer as optimizers
from maskx_jax.training import start as starts
from maskx_jax.training.checks import check_config
from maskx_jax.training.examples import Examples, open_examples
from maskx_jax.training.feature_cache import open_cache
from maskx_jax.training.steps import TrainStep, make_train_step

# Every evaluation measures it.
_ALWAYS_MEASURED = "bbox/all/AP"


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run is put together from. Tests hand in others: a model that compiles quickly, a fault at a phase.

    Attributes:
      open_source: as `sources.open_source`.
      build: as `models.build.build`.
      make_train_step: as `steps.make_train_step`.
      make_detect_step: as `inference.make_detect_step`.
      score: as `runs.evaluation.score`.
      on_phase: called with the phase and the step that the run enters.
      on_batch: (step, batch) -> the batch that is trained on.
    """

    open_source: Callable[..., Source] = sources.open_source
    build: Callable[[ConfigDict, int], Any] = build
    make_train_step: Callable[..., TrainStep] = make_train_step
    make_detect_step: Callable[..., DetectStep] = make_detect_step
    score: Callable[..., dict[str, Any]] = evaluation.score
    on_phase: Callable[[str, int], None] = lambda phase, step: None
    on_batch: Callable[[int, Batch], Batch] = lambda step, batch: batch


PARTS = Parts()


def train(
    config: ConfigDict,
    workdir: str,
    change_config: bool = False,
    restart: bool = False,
    parts: Parts = PARTS,
) -> dict[str, Any]:
    """Train to the last step; return the metrics of the last evaluation, if there was one.

    Args:
      config: see configs/base.py.
      workdir: of the run; created, or continued.
      change_config: continue a run although its training data or fields of its config have changed that decide on what
        it learns.
      restart: begin at step 0 although all checkpoints of the run were put aside as damaged.
      parts: what the run is put together from.

    Raises:
      InterruptedRun: SIGTERM or SIGINT came, and the state is saved.
      ValueError: a field of the config is out of range, or the config does not fit the data, the weights or the run
        that it continues.
      FloatingPointError: a loss is not finite.
      OSError: the work directory cannot be read or written.
      RuntimeError: no checkpoint of the run is whole.
    """
    check_config(config, jax.device_count(), jax.process_count())
    watchdog = Watchdog(workdir, peer_timeout=config.distributed.peer_timeout, **config.watchdog.to_dict())

    def enter(phase: str, step: int) -> None:
        watchdog.enter(phase, step)
        parts.on_phase(phase, step)

    with contextlib.closing(workdirs.lock(workdir)), watchdog:
        start = starts.find_start(config, workdir, change_config, restart)
        enter("open", 0)
        examples = open_examples(config, workdir, parts.open_source)
        if start.resumes and not change_config:
            workdirs.check_data_identity(workdir, examples.train_source.identity)
        return _train_on(examples, config, workdir, start, parts, enter)


def _train_on(
    examples: Examples,
    config: ConfigDict,
    workdir: str,
    start: starts.Start,
    parts: Parts,
    enter: Callable[[str, int], None],
) -> dict[str, Any]:
    """Train on the examples, from where the run starts."""
    mesh = make_mesh()
    model = parts.build(config.model, len(examples.categories))
    learning_rate, optimizer = optimizers.from_config(config)
    abstract = starts.abstract_state(config, model, optimizer, mesh)
    info(f"{optimizers.num_parameters(abstract.params):,} parameters on {mesh.size} devices")
    for name, steps in getattr(model, "warmups", {}).items():
        if steps > config.train.num_steps:
            info(f"warning: the weight of the loss {name} rises over {steps:,} steps, of {config.train.num_steps:,}")
    if not start.resumes:
        enter("initialize", 0)
        state = starts.fresh_state(config, model, optimizer, abstract, start.weights, examples.categories.names)
    train_step = parts.make_train_step(
        model,
        optimizer,
        mesh,
        seed=config.seed,
        state_shardings=jax.tree.map(lambda x: x.sharding, abstract),
        num_microbatches=config.optimizer.num_microbatches,
        ema_decay=config.optimizer.ema_decay,
    )
    detect_step = parts.make_detect_step(model, mesh)
    checkpoints = Checkpoints(workdir, keep=config.train.keep_checkpoints, writes=True)
    with Interruption() as interruption, checkpoints:
        if start.resumes:
            enter("restore", 0)
            state = starts.resumed_state(checkpoints, abstract)
        # From here on it is this config's run: a restore that was refused has changed nothing.
        from_first_process(
            lambda: workdirs.write_description(
                workdir, config, examples.train_source, examples.groups, describe_environment()
            )
        )
        with contextlib.closing(MetricLog(workdir, int(state.step))) as metric_log:
            loop = Loop(
                config=config,
                examples=examples,
                mesh=mesh,
                state=state,
                add_kept=open_cache(config, model, state, mesh),
                train_step=train_step,
                detect_step=detect_step,
                learning_rate=learning_rate,
                checkpoints=checkpoints,
                metric_log=metric_log,
                interruption=interruption,
                enter=enter,
                parts=parts,
            )
            return loop.run()


@dataclasses.dataclass(kw_only=True)
class Loop:
    """A run that goes from its present step to the last one.

    Attributes:
      config: of the run.
      examples: that it learns from and is scored on.
      mesh: of the devices.
      state: at the present step; a step donates its buffers.
      add_kept: gives a batch what is kept of its images, see `feature_cache`.
      train_step: one update.
      detect_step: of evaluations.
      learning_rate: by step, to report it.
      checkpoints: to save to.
      metric_log: to write metrics to.
      interruption: says whether the run was asked to leave.
      enter: called with the phase and the step that the run enters.
      parts: for `score` and `on_batch`.
      statistics: of the examples that this process made.
      recent: losses since the last report.
      pace: of the steps since the last report.
      scores: of the best metric, by step.
      metrics: of the last evaluation.
    """

    config: ConfigDict
    examples: Examples
    mesh: Mesh
    state: TrainState
    add_kept: Callable[[Batch], Batch]
    train_step: TrainStep
    detect_step: DetectStep
    learning_rate: optax.Schedule
    checkpoints: Checkpoints
    metric_log: MetricLog
    interruption: Interruption
    enter: Callable[[str, int], None]
    parts: Parts
    statistics: pipeline.Statistics = dataclasses.field(default_factory=pipeline.Statistics)
    recent: RecentLosses = dataclasses.field(default_factory=RecentLosses)
    pace: Pace = dataclasses.field(default_factory=Pace)
    scores: dict[int, float] = dataclasses.field(default_factory=dict)
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Train to the last step; return the metrics of the last evaluation, if there was one.

        Raises:
          InterruptedRun: the run was asked to leave.
          FloatingPointError: a loss is not finite.
          OSError: a checkpoint cannot be written.
        """
        start, num_steps = int(self.state.step), self.config.train.num_steps
        history = self._history(self.examples.best_metric)
        self.scores = {step: value for step, value in history.items() if value is not None}
        if start > 0 and self.evaluates_at(start) and start not in self._history(_ALWAYS_MEASURED):
            # The run ended in the middle of this evaluation.
            self.evaluate()
        batches = self.examples.batches(self.config, start, self.statistics)
        self.pace = Pace()
        steps = range(start + 1, num_steps + 1)
        with tqdm(steps, initial=start, total=num_steps, disable=jax.process_index() > 0) as progress:
            for step in progress:
                if self.interruption.poll():
                    self.leave()
                self.update(step, batches)
                saves, logs = self.saves_at(step), step % self.config.train.log_every == 0
                # Before a save too: what is not finite must not become a checkpoint.
                if logs or saves:
                    self.recent.read()
                if logs:
                    progress.set_postfix(self.report(step))
                with self.pace.paused():
                    if saves:
                        self.save()
                    if self.evaluates_at(step):
                        self.evaluate()
        self.enter("last checkpoint", num_steps)
        info(self.summary())
        return self.metrics

    def update(self, step: int, batches: Iterator[Batch]) -> None:
        """Make one step with the next batch."""
        self.enter("data", step)
        with self.pace.waiting():
            batch = self.add_kept(next(batches))
        batch = self.parts.on_batch(step, batch)
        self.enter("step", step)
        self.state, losses = self.train_step(self.state, global_batch(self.mesh, batch))
        self.recent.add(step, losses)
        self.checkpoints.check()

    def report(self, step: int) -> dict[str, str]:
        """Log the averages of the steps since the last report; return what the progress bar shows of them."""
        rates = self.pace.report(len(self.recent) * self.config.train.batch_size)
        averages = self.recent.averages()
        position = {"learning_rate": float(self.learning_rate(step - 1)), "epoch": self.examples.order.epoch_of(step)}
        values = averages | position | rates
        self.metric_log.write(step, {f"train/{name}": value for name, value in values.items()})
        shown = averages | {"images/s": rates["images_per_second"]}
        return {name: f"{value:.3g}" for name, value in shown.items()}

    def evaluates_at(self, step: int) -> bool:
        """Return whether the model is evaluated after a step."""
        every = self.config.train.eval_every
        return every > 0 and (step == self.config.train.num_steps or step % every == 0)

    def saves_at(self, step: int) -> bool:
        """Return whether the state is saved after a step: before each evaluation, which may meet anything."""
        train = self.config.train
        return self.evaluates_at(step) or step == train.num_steps or step % train.checkpoint_every == 0

    def save(self) -> None:
        """Begin to write a checkpoint of the state."""
        self.enter("checkpoint", int(self.state.step))
        self.checkpoints.save(self.state, self.examples.categories, self.scores)

    def evaluate(self) -> None:
        """Detect on the evaluation data and score what was found; log and print the metrics."""
        # What evaluating meets, memory above all, must not cost the steps before.
        self.checkpoints.wait()
        step, examples = int(self.state.step), self.examples

        def before_batch(number: int) -> None:
            self.enter("evaluation", number)
            if self.interruption.poll():
                self.leave()

        found = evaluation.detect(
            self.detect_step, self.state.variables, examples.eval_source, self.config, self.mesh, before_batch
        )
        self.enter("scores", step)
        self.metrics = from_first_process(
            lambda: self.parts.score(found, examples.eval_source.coco_ground_truth(), self.config, examples.groups)
        )
        flat = flatten(self.metrics)
        self.metric_log.write(step, flat)
        if examples.best_metric is not None and (value := flat.get(examples.best_metric)) is not None:
            self.scores[step] = value
        info(format_table(self.metrics))

    def leave(self) -> NoReturn:
        """Save, if this step is not saved already, and end the run.

        Raises:
          InterruptedRun: always.
          FloatingPointError: a loss is not finite.
          OSError: the checkpoint cannot be written.
        """
        self.recent.read()
        step = int(self.state.step)
        if step > 0 and self.checkpoints.latest_step() != step:
            self.save()
        # What is said to be saved must be.
        self.checkpoints.wait()
        after = f"after step {step}, which is saved" if step > 0 else "before the first step"
        raise InterruptedRun(f"asked to leave {after}; start the command again to go on")

    def summary(self) -> str:
        """Return what became of the examples that this process made."""
        made = self.statistics
        return (
            f"{made.num_examples} examples made; objects left out: {made.overflow} for want of ground-truth slots, "
            f"{made.outside} cropped away or too small; broken records skipped: {len(made.broken)}"
        )

    def _history(self, name: str | None) -> Mapping[int, float | None]:
        """Return the earlier values of a metric by step, the same on all processes."""
        if name is None:
            return {}
        history = from_first_process(lambda: list(self.metric_log.history(name).items()))
        return {step: value for step, value in history}
