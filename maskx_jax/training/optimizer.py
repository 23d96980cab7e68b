"""SGD and AdamW as detectors use them, and the rule that says which parameters are trained."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from flax import traverse_util

from maskx_jax.structures import PyTree


def learning_rate_schedule(
    base: float,
    *,
    schedule: str,
    num_steps: int,
    decay_steps: Sequence[int] = (),
    decay_factor: float = 0.1,
    warmup_steps: int = 500,
    warmup_factor: float = 1 / 3,
) -> optax.Schedule:
    """Return the learning rate by step: linear warm-up from `warmup_factor`, then "step" decay or "cosine" to 0.

    Detectron's rule: the warm-up is laid over the schedule, whose steps count from the start of training.

    Raises:
      ValueError: the schedule is unknown.
    """
    if schedule == "step":
        after = optax.piecewise_constant_schedule(base, {int(step): decay_factor for step in decay_steps})
    elif schedule == "cosine":
        after = optax.cosine_decay_schedule(base, max(num_steps, 1))
    else:
        raise ValueError(f"got schedule {schedule!r}; expected 'step' or 'cosine'")
    if warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(warmup_factor, 1.0, warmup_steps)
    return lambda step: after(step) * warmup(step)


def make_optimizer(
    learning_rate: optax.Schedule,
    *,
    name: str,
    momentum: float,
    weight_decay: float,
    bias_learning_rate_factor: float,
    clip_norm: float | None,
) -> optax.GradientTransformation:
    """Return the update rule: biases (and norm scales) get no weight decay, biases a learning-rate factor.

    Args:
      learning_rate: by step.
      name: "sgd" (with momentum, the papers') or "adamw" (for training from scratch).
      momentum: of SGD.
      weight_decay: of kernels.
      bias_learning_rate_factor: 2 in Detectron.
      clip_norm: largest global norm of the gradient, or None.

    Raises:
      ValueError: the name is unknown.
    """

    def decayed(params: PyTree) -> PyTree:
        return _map_with_path(lambda path, _: path.endswith("/kernel"), params)

    def biases(params: PyTree) -> PyTree:
        return _map_with_path(lambda path, _: path.endswith("/bias"), params)

    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    decay = optax.add_decayed_weights(weight_decay, mask=decayed)
    faster_biases = optax.masked(optax.scale(bias_learning_rate_factor), biases)
    if name == "sgd":
        rule = optax.chain(clip, decay, optax.trace(momentum))
    elif name == "adamw":
        rule = optax.chain(clip, optax.scale_by_adam(), decay)
    else:
        raise ValueError(f"got optimizer {name!r}; expected 'sgd' or 'adamw'")
    return optax.chain(rule, faster_biases, optax.scale_by_learning_rate(learning_rate))


def from_config(config: Any) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Return the learning rate by step and the update rule of a run."""
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
    rule = make_optimizer(
        learning_rate,
        name=fields.name,
        momentum=fields.momentum,
        weight_decay=fields.weight_decay,
        bias_learning_rate_factor=fields.bias_learning_rate_factor,
        clip_norm=fields.clip_norm or None,
    )
    return learning_rate, rule


def split_params(params: PyTree, untrained: Sequence[str]) -> tuple[PyTree, PyTree]:
    """Split a parameter tree into the trained part and the untrained one; `structures.merge` undoes it.

    Args:
      params: nested dicts.
      untrained: regular expressions; a parameter is not trained if one of them matches its whole path, such as
        "backbone/res2_block0/conv1/kernel".

    Raises:
      ValueError: a pattern matches no parameter, or none is left to train.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    for pattern in untrained:
        if not any(re.fullmatch(pattern, path) for path in flat):
            modules = sorted({path.split("/")[0] for path in flat})
            raise ValueError(f"pattern {pattern!r} of optimizer.untrained matches no parameter; top modules: {modules}")
    trained = {path: v for path, v in flat.items() if not any(re.fullmatch(pattern, path) for pattern in untrained)}
    if not trained:
        raise ValueError(f"the patterns {list(untrained)} of optimizer.untrained leave no parameter to train")
    rest = {path: value for path, value in flat.items() if path not in trained}
    return traverse_util.unflatten_dict(trained, sep="/"), traverse_util.unflatten_dict(rest, sep="/")


def _map_with_path(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    flat = traverse_util.flatten_dict(tree, sep="/")
    return traverse_util.unflatten_dict({path: function("/" + path, leaf) for path, leaf in flat.items()}, sep="/")


def num_parameters(params: PyTree) -> int:
    """Return the number of scalars in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
