"""The jitted step: one update of the parameters."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from maskx_jax.distributed.mesh import apply_on, replicated, split_batch, whole
from maskx_jax.ops.losses import Mean, total_loss
from maskx_jax.structures import Batch, PyTree, TrainState, merge
from maskx_jax.training.optimizer import split_params

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_state(
    variables: PyTree, optimizer: optax.GradientTransformation, untrained: Sequence[str], ema: bool
) -> TrainState:
    """Return the state at step 0 for a model's initial (or imported) variables.

    Args:
      variables: of the model.
      optimizer: of the trained parameters.
      untrained: which parameters are not trained; see `optimizer.split_params`.
      ema: whether the state keeps a running average.

    Raises:
      ValueError: as `optimizer.split_params`.
    """
    trained, rest = split_params(variables["params"], untrained)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trained=trained,
        untrained=rest,
        frozen=variables.get("frozen", {}),
        opt_state=optimizer.init(trained),
        # A copy: the step donates its buffers, and one buffer cannot be donated twice.
        average=jax.tree.map(jnp.copy, trained) if ema else None,
    )


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    state_shardings: TrainState | None = None,
    num_microbatches: int = 1,
    ema_decay: float | None = None,
) -> TrainStep:
    """Return the jitted step: (state, batch) -> (state, losses with total and gradient_norm).

    The random key is a function of (seed, step) alone. Gradients are taken of the trained parameters only, so other
    layers cost no backward pass. Losses are normalised over the whole batch, on however many devices it lies. The
    forward and backward pass of a device work on its own images with the whole parameters, however the state is split.

    Args:
      model: with the method "loss_means", and maybe `warmups`: in how many steps the weight of a part of the loss rises
        linearly from 0 to 1, by its name; and maybe `learners`: which modules learn from a part of the loss, by its
        name. A part from which none learns whose parameters are trained is left out, and not computed.
      optimizer: of the trained parameters.
      mesh: the batch is split over it.
      seed: of the sampling.
      state_shardings: where the state given and returned lies, see `distributed.mesh.state_shardings`; by default
        every device holds all of it.
      num_microbatches: parts that the batch is worked through in, with the losses and gradients of the whole: less
        memory for one more forward pass, since the gradient needs to know by what the sums of all parts are divided.
      ema_decay: of the running average of the parameters, or None. It is less in the first steps, (1 + step) /
        (10 + step), so that the average soon forgets the initial parameters.

    The step raises ValueError as `check_microbatches` does, before it is compiled.
    """
    everywhere = replicated(mesh)
    layout: Any = everywhere if state_shardings is None else state_shardings
    gradient_shardings = everywhere if state_shardings is None else state_shardings.trained
    gradient = jax.value_and_grad(_make_loss(model, mesh, num_microbatches), has_aux=True)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        batch_size = len(batch.images)
        check_microbatches(batch_size, mesh.size, num_microbatches)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step), batch_size)
        (total, losses), grads = gradient(state.trained, state, batch, keys)
        # A device keeps the gradients of what it updates: their sum over the devices can be a reduce-scatter.
        grads = jax.lax.with_sharding_constraint(grads, gradient_shardings)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        average = state.average if ema_decay is None else _averaged(state, trained, ema_decay)
        metrics = losses | {"total": total, "gradient_norm": optax.tree.norm(grads)}
        new_state = dataclasses.replace(
            state, step=state.step + 1, trained=trained, opt_state=opt_state, average=average
        )
        return new_state, metrics

    return jax.jit(
        step,
        in_shardings=(layout, split_batch(mesh)),
        out_shardings=(layout, everywhere),
        donate_argnums=0,
    )


def _make_loss(model: nn.Module, mesh: Mesh, num_microbatches: int) -> Callable[..., Any]:
    """Return (trained, state, batch, keys) -> (total loss, losses by name), in as many parts as there are to be."""

    def loss(trained: PyTree, state: TrainState, batch: Batch, keys: jax.Array) -> Any:
        # Left to itself XLA multiplies by split weights where they lie, and sends the features of all images around.
        variables = whole({"params": merge(trained, state.untrained), "frozen": state.frozen}, mesh)

        learners: Mapping[str, frozenset[str]] = getattr(model, "learners", {})
        idle = {name for name, modules in learners.items() if modules.isdisjoint(trained)}

        def means(part: tuple[Batch, jax.Array]) -> Any:
            parts = apply_on(mesh, model, variables, *part, method="loss_means")
            return {name: mean for name, mean in parts.items() if name not in idle}

        if num_microbatches == 1:
            summed = means((batch, keys))
        else:
            # Image i goes to part i % num_microbatches: every device finds its share of each part among its own images.
            parts = jax.tree.map(lambda x: x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1), (batch, keys))
            # Nothing of a part is kept for its backward pass, which computes it again.
            means_of_parts = jax.lax.map(jax.checkpoint(means, prevent_cse=False), parts)
            summed = jax.tree.map(lambda x: x.sum(axis=0), means_of_parts)
        return total_loss(summed | _warmed_up(summed, getattr(model, "warmups", {}), state.step))

    return loss


def _warmed_up(means: Mapping[str, Mean], warmups: Mapping[str, int], step: jax.Array) -> dict[str, Mean]:
    """Return the parts of the loss whose weight rises, with what it is in this step."""
    weights = {name: jnp.minimum((step + 1) / steps, 1.0) for name, steps in warmups.items()}
    return {name: Mean(means[name].total * weight, means[name].number) for name, weight in weights.items()}


def _averaged(state: TrainState, trained: PyTree, decay: float) -> PyTree:
    # Less in the first steps.
    rate = 1 - jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    return optax.incremental_update(trained, state.average, rate)


def check_microbatches(batch_size: int, num_devices: int, num_microbatches: int) -> None:
    """Check that every device can work through its images in `num_microbatches` equal parts.

    Raises:
      ValueError: it cannot.
    """
    images, rest = divmod(batch_size, num_devices)
    if num_microbatches < 1 or rest or images % num_microbatches:
        raise ValueError(
            f"got optimizer.num_microbatches {num_microbatches} for a batch of {batch_size} on {num_devices} devices; "
            f"expected a divisor of a device's {batch_size / num_devices:g} images"
        )
