"""The jitted steps: one update of the parameters, and detection on one batch."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from maskx_jax.structures import STORED_MASK_SIDE, Batch, Detections, GroundTruth, PyTree, TrainState
from maskx_jax.training.optimizer import merge_params, split_params
from maskx_jax.training.sharding import replicated, split_batch

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
DetectStep = Callable[[PyTree, jax.Array, jax.Array], Detections]
Gradients = tuple[PyTree, dict[str, jax.Array]]


def initialize(model: nn.Module, key: jax.Array) -> PyTree:
    """Return fresh variables; their shapes do not depend on the size of the images."""
    size = 64
    gt = GroundTruth(
        boxes=jnp.zeros((1, 1, 4)),
        labels=jnp.zeros((1, 1), jnp.int32),
        masks=jnp.zeros((1, 1, STORED_MASK_SIDE, STORED_MASK_SIDE // 8), jnp.uint8),
        mask_frames=jnp.zeros((1, 1, 4)),
        has_mask=jnp.zeros((1, 1), bool),
        is_crowd=jnp.zeros((1, 1), bool),
        valid=jnp.zeros((1, 1), bool),
    )
    batch = Batch(
        images=jnp.zeros((1, size, size, 3), jnp.uint8),
        image_sizes=jnp.full((1, 2), size, jnp.float32),
        image_ids=jnp.zeros(1, jnp.int32),
        scales=jnp.ones(1),
        valid=jnp.ones(1, bool),
        ground_truth=gt,
    )
    return model.init(key, batch, key, method="losses")


def make_state(
    variables: PyTree, optimizer: optax.GradientTransformation, frozen_patterns: Sequence[str], ema: bool
) -> TrainState:
    """Return the state at step 0 for a model's initial (or imported) variables."""
    params = variables["params"]
    trained, _ = split_params(params, frozen_patterns)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=variables.get("frozen", {}),
        opt_state=optimizer.init(trained),
        # A copy: the step donates its buffers, and one buffer cannot be donated twice.
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
    )


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    state_shardings: PyTree | None = None,
    frozen_patterns: Sequence[str] = (),
    num_microbatches: int = 1,
    ema_decay: float | None = None,
) -> TrainStep:
    """Return the jitted step: (state, batch) -> (state, losses with total and gradient_norm).

    The random key is a function of (seed, step) alone. Gradients are taken of the trained parameters only, so frozen
    layers cost no backward pass. Losses are normalised over the whole batch, on however many devices it lies. The
    forward and backward pass of a device work on its own images with the whole parameters, however the state is split.

    Args:
      model: with the method "losses".
      optimizer: of the trained parameters.
      mesh: the batch is split over it.
      seed: of the sampling.
      state_shardings: where the state given and returned lies, see `training.sharding.state_shardings`; by default
        every device holds all of it.
      frozen_patterns: see `training.optimizer.split_params`.
      num_microbatches: the batch is worked through in so many parts, and their gradients averaged (each part's losses
        are normalised over that part).
      ema_decay: of the running average of the parameters, or None.
    """

    everywhere = replicated(mesh)
    if state_shardings is None:
        state_shardings = gradient_shardings = everywhere
    else:
        gradient_shardings, _ = split_params(state_shardings.params, frozen_patterns)

    def loss(trained: PyTree, rest: PyTree, frozen: PyTree, batch: Batch, key: jax.Array) -> Any:
        variables = {"params": merge_params(trained, rest), "frozen": frozen}
        return _apply(model, variables, mesh, batch, key, method="losses")

    gradient = jax.value_and_grad(loss, has_aux=True)

    def gradients(trained: PyTree, rest: PyTree, frozen: PyTree, batch: Batch, key: jax.Array) -> Gradients:
        def of_part(part: Batch, part_key: jax.Array) -> Gradients:
            (total, losses), grads = gradient(trained, rest, frozen, part, part_key)
            # A device keeps the gradients of what it updates: their sum over the devices can be a reduce-scatter.
            grads = jax.lax.with_sharding_constraint(grads, gradient_shardings)
            return grads, losses | {"total": total}

        if num_microbatches == 1:
            return of_part(batch, key)

        # Image i goes to part i % num_microbatches: every device finds its share of each part among its own images.
        parts = jax.tree.map(lambda x: x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(summed: Gradients, part_and_key: tuple[Batch, jax.Array]) -> tuple[Gradients, None]:
            return jax.tree.map(jnp.add, summed, of_part(*part_and_key)), None

        inputs = (parts, jax.random.split(key, num_microbatches))
        first = of_part(*jax.tree.map(lambda x: x[0], inputs))
        summed, _ = jax.lax.scan(add, first, jax.tree.map(lambda x: x[1:], inputs))
        return jax.tree.map(lambda x: x / num_microbatches, summed)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        trained, rest = split_params(state.params, frozen_patterns)
        grads, losses = gradients(trained, rest, state.frozen, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        params = merge_params(optax.apply_updates(trained, updates), rest)
        ema_params = state.ema_params
        if ema_decay is not None:
            ema_params = optax.incremental_update(params, ema_params, 1 - ema_decay)
        metrics = losses | {"gradient_norm": optax.tree.norm(grads)}
        new_state = dataclasses.replace(
            state, step=state.step + 1, params=params, opt_state=opt_state, ema_params=ema_params
        )
        return new_state, metrics

    return jax.jit(
        step,
        in_shardings=(state_shardings, split_batch(mesh)),
        out_shardings=(state_shardings, everywhere),
        donate_argnums=0,
    )


def make_detect_step(model: nn.Module, mesh: Mesh) -> DetectStep:
    """Return the jitted (variables, images, image_sizes) -> Detections, each image on its own device.

    The variables may lie on the mesh as they like: replicated, or split as a step with "fsdp" left them.
    """

    def detect(variables: PyTree, images: jax.Array, image_sizes: jax.Array) -> Any:
        return _apply(model, variables, mesh, images, image_sizes, method="detect")

    split = split_batch(mesh)
    return jax.jit(detect, in_shardings=(None, split, split), out_shardings=split)


def _apply(model: nn.Module, variables: PyTree, mesh: Mesh, *arguments: Any, method: str) -> Any:
    # Left to itself XLA multiplies by split weights where they lie, and sends the features of all images around.
    whole = jax.lax.with_sharding_constraint(variables, replicated(mesh))
    # `ops.per_image` splits what XLA would not.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return model.apply(whole, *arguments, method=method)
