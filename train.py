"""Train a detector.

    python train.py --config=configs/maskx_rcnn.py:split=voc,schedule=1x --config.data.directory=DIR --workdir=RUN

Starting and resuming are the same command: a run continues from the latest checkpoint in its work directory, if there
is one. The work directory holds checkpoints, config.json, environment.json, metrics.jsonl, TensorBoard logs and the
evaluations.
"""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from maskx_jax import evaluate
from maskx_jax.data import pipeline, splits
from maskx_jax.data.schedule import Schedule, repeat_factors
from maskx_jax.data.sources import open_source
from maskx_jax.data.transforms import Transform
from maskx_jax.evaluation.coco_metrics import format_table
from maskx_jax.models import rcnn
from maskx_jax.structures import PyTree, TrainState
from maskx_jax.training import pretrained
from maskx_jax.training.checkpoints import Checkpoints, has_checkpoint, read_config, write_config
from maskx_jax.training.logging import ENVIRONMENT_FILE, MetricLog, describe_environment
from maskx_jax.training.optimizer import learning_rate_schedule, make_optimizer, num_parameters
from maskx_jax.training.sharding import global_batch, make_mesh, state_shardings
from maskx_jax.training.steps import initialize, make_detect_step, make_state, make_train_step

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, logs and evaluations go.", required=True)


def main(_: list[str]) -> None:
    """Train as the flags say."""
    # Orbax and TensorFlow write a page for every checkpoint at the level below.
    logging.set_verbosity(logging.WARNING)
    if _CONFIG.value.distributed:
        jax.distributed.initialize()
    train(_CONFIG.value, _WORKDIR.value)


def train(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Train to the last step; return the metrics of the last evaluation, if there was one."""
    is_first_process = jax.process_index() == 0

    def say(text: str) -> None:
        if is_first_process:
            tqdm.write(text)

    # Where the parameters come from: the run itself, if it has begun, or weights from elsewhere. Either brings the
    # conventions that they were trained with.
    weights = None
    resumes = has_checkpoint(workdir)
    if resumes:
        pretrained.apply_conventions(config.model, pretrained.conventions_of(read_config(workdir).model), say=say)
    elif config.initialize.path:
        weights = pretrained.open_weights(config.initialize.path, config.initialize.preset)
        pretrained.apply_conventions(config.model, weights.conventions, config.initialize.keep, say)

    # Data: which examples, in which order, and whose masks may be used.
    data = config.data
    train_source = open_source(
        data.source, data.directory, data.train_split, data.shapes, training=True, seed=config.seed
    )
    eval_source = open_source(
        data.source, data.directory, data.eval_split, data.shapes, training=False, seed=config.seed
    )
    categories = train_source.categories
    evaluate.check_categories(eval_source.categories, categories.to_coco())
    allowed_masks = splits.mask_labels(data.mask_split, categories)
    say(f"{len(train_source)} training images\n{pipeline.class_table(train_source, allowed_masks)}")
    transform = Transform(**data.transform)
    factors = None
    if data.repeat_threshold > 0:
        factors = repeat_factors(train_source.image_labels, len(categories), data.repeat_threshold)
    order = Schedule(train_source.sizes, config.train.batch_size, config.seed, factors, transform.single_canvas)

    # Model, optimizer and state, laid out on the devices.
    mesh = make_mesh()
    model = rcnn.build(len(categories), **config.model.to_dict())
    learning_rate, optimizer = _make_optimizer(config)
    variables = jax.jit(lambda key: initialize(model, key))(jax.random.key(config.seed))
    if not resumes:
        variables = _with_weights(variables, config, weights, categories.names, say)
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    if is_first_process:
        write_config(workdir, config)
        environment = json.dumps(describe_environment(), indent=2)
        (pathlib.Path(workdir) / ENVIRONMENT_FILE).write_text(environment + "\n")
    ema_decay = config.optimizer.ema_decay or None
    state = make_state(variables, optimizer, config.optimizer.frozen, ema=ema_decay is not None)
    shardings = state_shardings(mesh, state, config.train.state_sharding)
    state = jax.device_put(state, shardings)
    train_step = make_train_step(
        model,
        optimizer,
        mesh,
        seed=config.seed,
        state_shardings=shardings,
        frozen_patterns=config.optimizer.frozen,
        num_microbatches=config.optimizer.num_microbatches,
        ema_decay=ema_decay,
    )
    detect_step = make_detect_step(model, mesh)
    say(f"{num_parameters(state.params):,} parameters on {mesh.size} devices")

    def run_evaluation(state: TrainState) -> dict[str, Any]:
        params = state.params if state.ema_params is None else state.ema_params
        variables = {"params": params, "frozen": state.frozen}
        results = evaluate.detect(detect_step, variables, eval_source, config, mesh)
        return evaluate.score(results, eval_source, config)

    with (
        contextlib.closing(
            Checkpoints(workdir, keep=config.train.keep_checkpoints, best_metric=config.train.best_metric or None)
        ) as checkpoints,
        contextlib.closing(MetricLog(workdir)) as log,
    ):
        if checkpoints.latest_step() is not None:
            state = checkpoints.restore(state)
            say(f"resumed from step {int(state.step)}")
        start, num_steps = int(state.step), config.train.num_steps
        statistics = pipeline.Statistics()
        batches = pipeline.train_batches(
            train_source,
            order,
            transform,
            allowed_masks,
            start_step=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            loader=data.loader,
            num_workers=data.num_workers,
            prefetch=data.prefetch,
            statistics=statistics,
        )
        metrics: dict[str, Any] = {}
        losses: dict[str, jax.Array] = {}
        recent: list[dict[str, float]] = []
        since = time.monotonic()
        progress = tqdm(range(start + 1, num_steps + 1), initial=start, total=num_steps, disable=not is_first_process)
        for step in progress:
            previous = losses
            state, losses = train_step(state, global_batch(mesh, next(batches)))
            # The numbers of a step are read while the device works on the next one.
            if previous:
                recent.append(_read_losses(previous, step - 1))

            is_last = step == num_steps
            evaluates = config.train.eval_every > 0 and (is_last or step % config.train.eval_every == 0)
            saves = evaluates or is_last or step % config.train.checkpoint_every == 0
            logs = step % config.train.log_every == 0
            # Before a save too: what is not finite must not become a checkpoint.
            if logs or saves:
                recent.append(_read_losses(losses, step))
                losses = {}
            if logs:
                averages = {name: float(np.mean([one[name] for one in recent])) for name in recent[0]}
                rates = {
                    "learning_rate": float(learning_rate(step - 1)),
                    "images_per_second": len(recent) * config.train.batch_size / (time.monotonic() - since),
                    "epoch": order.epoch_of(step),
                }
                log.write(step, {f"train/{name}": value for name, value in (averages | rates).items()})
                shown = averages | {"images/s": rates["images_per_second"]}
                progress.set_postfix({name: f"{value:.3g}" for name, value in shown.items()})
                recent, since = [], time.monotonic()
            pause = time.monotonic()
            if evaluates:
                metrics = run_evaluation(state)
                log.write(step, evaluate.flatten(metrics))
                say(format_table(metrics))
            if saves:
                checkpoints.save(state, categories.to_coco(), evaluate.flatten(metrics) if evaluates else None)
            # Evaluating and saving do not count as training time.
            since += time.monotonic() - pause
    say(
        f"{statistics.num_examples} examples made; objects left out: {statistics.overflow} for want of "
        f"ground-truth slots, {statistics.outside} cropped away or too small"
    )
    return metrics


def _read_losses(on_device: dict[str, jax.Array], step: int) -> dict[str, float]:
    """Bring the losses of a step to the host.

    Raises:
      FloatingPointError: one is not finite.
    """
    losses = {name: float(value) for name, value in jax.device_get(on_device).items()}
    broken = {name: value for name, value in losses.items() if not math.isfinite(value)}
    if broken:
        raise FloatingPointError(f"step {step}: not finite: {broken}; all: {losses}. The last checkpoint is unharmed.")
    return losses


def _make_optimizer(config: ConfigDict) -> tuple[Any, Any]:
    fields = config.optimizer
    learning_rate = learning_rate_schedule(
        fields.learning_rate,
        schedule=fields.schedule,
        num_steps=config.train.num_steps,
        decay_steps=fields.decay_steps,
        decay_factor=fields.decay_factor,
        warmup_steps=fields.warmup_steps,
        warmup_factor=fields.warmup_factor,
    )
    optimizer = make_optimizer(
        learning_rate,
        name=fields.name,
        momentum=fields.momentum,
        weight_decay=fields.weight_decay,
        bias_learning_rate_factor=fields.bias_learning_rate_factor,
        clip_norm=fields.clip_norm or None,
    )
    return learning_rate, optimizer


def _with_weights(
    variables: PyTree,
    config: ConfigDict,
    weights: pretrained.Weights | None,
    names: tuple[str, ...],
    say: Callable[[str], None],
) -> PyTree:
    """Return the variables with weights from elsewhere and class embeddings, where the config names them."""
    if weights is not None:
        new, unused = config.initialize.new, config.initialize.unused
        variables = pretrained.take_over(variables, weights, config.model, names, new=new, unused=unused, say=say)
    if config.embedding.path:
        table = pretrained.load_class_embeddings(config.embedding.path, names, config.embedding.table)
        variables = pretrained.with_class_embeddings(variables, table)
    return variables


if __name__ == "__main__":
    app.run(main)
