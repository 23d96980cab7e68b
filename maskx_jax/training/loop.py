"""How a model is trained: from a config to the last step, through evaluations, checkpoints and restarts."""

import contextlib
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from maskx_jax.coco import mask_classes
from maskx_jax.coco.categories import same_classes
from maskx_jax.data import pipeline
from maskx_jax.data.schedule import Schedule, repeat_factors
from maskx_jax.data.sources import open_source
from maskx_jax.data.transforms import Transform
from maskx_jax.distributed.interruption import InterruptedRun, Interruption
from maskx_jax.distributed.mesh import global_batch, make_mesh, state_shardings
from maskx_jax.distributed.watchdog import Watchdog
from maskx_jax.evaluation.scores import flatten, format_table
from maskx_jax.inference import make_detect_step
from maskx_jax.models.build import build, initialize
from maskx_jax.runs import checkpoints as checkpointing
from maskx_jax.runs import evaluation
from maskx_jax.runs import workdir as runs
from maskx_jax.runs.checkpoints import Checkpoints
from maskx_jax.runs.logs import MetricLog, RecentLosses, describe_environment
from maskx_jax.structures import PyTree
from maskx_jax.training.checks import check_config, choose_best_metric
from maskx_jax.training.optimizer import learning_rate_schedule, make_optimizer, num_parameters, split_params
from maskx_jax.training.steps import make_state, make_train_step
from maskx_jax.weights import pretrained

# Every evaluation measures it.
_ALWAYS_MEASURED = "bbox/all/AP"


def train(config: ConfigDict, workdir: str, change_config: bool = False, restart: bool = False) -> dict[str, Any]:
    """Train to the last step; return the metrics of the last evaluation, if there was one.

    Args:
      config: see configs/base.py.
      workdir: of the run; created, or continued.
      change_config: continue a run although its training data or fields of its config have changed that decide on what
        it learns.
      restart: begin at step 0 although all checkpoints of the run were put aside as damaged.

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
    with contextlib.closing(runs.lock(workdir)), watchdog:
        return _train(config, workdir, change_config, restart, watchdog)


def _train(config: ConfigDict, workdir: str, change_config: bool, restart: bool, watchdog: Watchdog) -> dict[str, Any]:
    is_first_process = jax.process_index() == 0

    def say(text: str) -> None:
        if is_first_process:
            tqdm.write(text)

    # Where the parameters come from: the run itself, if it has begun, or weights from elsewhere. Either brings the
    # conventions that they were trained with.
    weights = None
    resumes = checkpointing.has_checkpoint(workdir)
    if not (resumes or restart):
        checkpointing.check_beginning(workdir)
    if resumes:
        begun = runs.read_config(workdir)
        pretrained.apply_conventions(config, pretrained.conventions_of(begun), say=say)
        if not change_config:
            runs.check_resumable(begun, config)
    elif config.initialize.path:
        weights = pretrained.open_weights(config.initialize.path, config.initialize.preset, config.initialize.classes)
        pretrained.apply_conventions(config, weights.conventions, config.initialize.keep, say)

    # Data: which examples, in which order, and whose masks may be used.
    data = config.data
    train_source = open_source(data, training=True, seed=config.seed)
    eval_source = open_source(data, training=False, seed=config.seed)
    categories = train_source.categories
    if resumes and not change_config:
        runs.check_data_identity(workdir, train_source.identity)
    same_classes(eval_source.categories, categories, "the evaluation and the training data")
    allowed_masks = mask_classes.mask_labels(data.mask_classes, categories)
    say(f"{len(train_source)} training images\n{pipeline.class_table(train_source, allowed_masks)}")
    groups = evaluation.trained_groups(train_source, config)
    best_metric = None
    if config.train.eval_every > 0:
        best_metric = choose_best_metric(
            config.train.best_metric, evaluation.measured_metrics(config, groups, eval_source)
        )
    transform = Transform(**data.transform)
    factors = repeat_factors(train_source.image_labels, len(categories), data.repeat_threshold, data.keep_empty_images)
    if not data.keep_empty_images:
        say(f"{(factors == 0).sum()} of them without objects are left out")
    order = Schedule(train_source.sizes, config.train.batch_size, config.seed, factors, transform.single_canvas)

    # Model, optimizer and state, laid out on the devices.
    mesh = make_mesh()
    model = build(config.model, len(categories))
    learning_rate, optimizer = _make_optimizer(config)
    init = jax.jit(lambda key: initialize(model, key))
    key = jax.random.key(config.seed)
    # Before anything is compiled: whether the patterns fit the parameters.
    split_params(init.eval_shape(key)["params"], config.optimizer.untrained)
    variables = init(key)
    if not resumes:
        fresh, variables = variables, _with_weights(variables, config, weights, categories.names, say)
        for line in pretrained.untrained_without_source(fresh, variables, config.optimizer.untrained):
            say(f"warning: {line}")
    ema_decay = config.optimizer.ema_decay or None
    state = make_state(variables, optimizer, config.optimizer.untrained, ema=ema_decay is not None)
    shardings = state_shardings(mesh, state, config.train.state_sharding)
    state = jax.device_put(state, shardings)
    train_step = make_train_step(
        model,
        optimizer,
        mesh,
        seed=config.seed,
        state_shardings=shardings,
        num_microbatches=config.optimizer.num_microbatches,
        ema_decay=ema_decay,
    )
    detect_step = make_detect_step(model, mesh)
    say(f"{num_parameters(state.params):,} parameters on {mesh.size} devices")

    checkpoints = Checkpoints(workdir, keep=config.train.keep_checkpoints, writes=True)
    with Interruption(mesh) as interruption, checkpoints:
        if resumes:
            watchdog.at("restore", 0)
            state = checkpoints.restore_newest(state, say)
            say(f"resumed from step {int(state.step)}")
        # From here on it is this config's run: a restore that was refused has changed nothing.
        runs.from_first_process(
            lambda: runs.write_description(workdir, config, train_source, groups, describe_environment())
        )
        start, num_steps = int(state.step), config.train.num_steps
        metrics: dict[str, Any] = {}

        def evaluates_at(step: int) -> bool:
            return config.train.eval_every > 0 and (step == num_steps or step % config.train.eval_every == 0)

        def evaluate_state() -> dict[str, Any]:
            # What evaluating meets, memory above all, must not cost the steps before.
            checkpoints.wait()
            step = int(state.step)

            def before_batch(number: int) -> None:
                watchdog.at("evaluation", number)
                if interruption.poll():
                    leave()

            results = evaluation.detect(detect_step, state.variables, eval_source, config, mesh, before_batch)
            watchdog.at("scores", step)
            metrics = runs.from_first_process(
                lambda: evaluation.score(results, eval_source.coco_ground_truth(), config, groups)
            )
            flat = flatten(metrics)
            log.write(step, flat)
            if best_metric is not None and (value := flat.get(best_metric)) is not None:
                scores[step] = value
            say(format_table(metrics))
            return metrics

        def save() -> None:
            watchdog.at("checkpoint", int(state.step))
            checkpoints.save(state, categories.to_coco(), scores)

        def leave() -> NoReturn:
            """Save, if this step is not saved already, and leave."""
            step = int(state.step)
            if step > 0 and checkpoints.latest_step() != step:
                save()
            saved = ", which is saved" if step > 0 else ""
            raise InterruptedRun(f"asked to leave after step {step}{saved}; start the command again to go on")

        with contextlib.closing(MetricLog(workdir, start)) as log:
            evaluated = _history(log, _ALWAYS_MEASURED)
            scores = {step: value for step, value in _history(log, best_metric).items() if value is not None}
            if start > 0 and evaluates_at(start) and start not in evaluated:
                # The run ended in the middle of this evaluation.
                metrics = evaluate_state()
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
                max_broken_records=data.max_broken_records,
                statistics=statistics,
            )
            recent = RecentLosses()
            since = time.monotonic()
            waited = 0.0
            progress = tqdm(
                range(start + 1, num_steps + 1), initial=start, total=num_steps, disable=not is_first_process
            )
            for step in progress:
                if interruption.poll():
                    recent.read()
                    leave()
                watchdog.at("data", step)
                asked = time.monotonic()
                batch = next(batches)
                waited += time.monotonic() - asked
                watchdog.at("step", step)
                state, losses = train_step(state, global_batch(mesh, batch))
                recent.add(step, losses)
                checkpoints.check()

                evaluates = evaluates_at(step)
                saves = evaluates or step == num_steps or step % config.train.checkpoint_every == 0
                logs = step % config.train.log_every == 0
                # Before a save too: what is not finite must not become a checkpoint.
                if logs or saves:
                    recent.read()
                if logs:
                    passed = time.monotonic() - since
                    rates = {
                        "learning_rate": float(learning_rate(step - 1)),
                        "images_per_second": len(recent) * config.train.batch_size / passed,
                        # Of the time; as long as it is near 0 the devices never wait for data.
                        "waiting_for_data": waited / passed,
                        "epoch": order.epoch_of(step),
                    }
                    averages = recent.averages()
                    log.write(step, {f"train/{name}": value for name, value in (averages | rates).items()})
                    shown = averages | {"images/s": rates["images_per_second"]}
                    progress.set_postfix({name: f"{value:.3g}" for name, value in shown.items()})
                    since, waited = time.monotonic(), 0.0
                pause = time.monotonic()
                if saves:
                    save()
                if evaluates:
                    metrics = evaluate_state()
                # Evaluating and saving do not count as training time.
                since += time.monotonic() - pause
            watchdog.at("last checkpoint", num_steps)
    say(
        f"{statistics.num_examples} examples made; objects left out: {statistics.overflow} for want of "
        f"ground-truth slots, {statistics.outside} cropped away or too small; broken records skipped: "
        f"{len(statistics.broken)}"
    )
    return metrics


def _history(log: MetricLog, name: str | None) -> dict[int, float | None]:
    """Return the earlier values of a metric by step, the same on all processes."""
    if name is None:
        return {}
    return {step: value for step, value in runs.from_first_process(lambda: list(log.history(name).items()))}


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
