"""Where a run starts: at step 0 with fresh parameters or with weights from elsewhere, or at its last checkpoint."""

import dataclasses
import pathlib
from typing import Any

import jax
import optax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from maskx_jax.distributed.mesh import state_shardings
from maskx_jax.models.build import initialize
from maskx_jax.runs import checkpoints as checkpointing
from maskx_jax.runs import workdir as workdirs
from maskx_jax.runs.checkpoints import Checkpoints
from maskx_jax.runs.logs import info
from maskx_jax.structures import PyTree, TrainState
from maskx_jax.training.steps import make_state
from maskx_jax.weights import pretrained


@dataclasses.dataclass(frozen=True)
class Start:
    """Where the parameters of a run come from.

    Attributes:
      resumes: whether the run has a checkpoint, which has them.
      weights: from elsewhere, or None.
    """

    resumes: bool
    weights: pretrained.Weights | None


def find_start(config: ConfigDict, workdir: str | pathlib.Path, change_config: bool, restart: bool) -> Start:
    """Return where a run starts; the conventions that its parameters were trained with go into the config.

    Args:
      config: of the run; changed in place.
      workdir: of the run.
      change_config: go on with another config than the run was begun with.
      restart: begin at step 0 although all checkpoints of the run were put aside as damaged.

    Raises:
      ValueError: the run was begun with another config, or the weights cannot be used.
      OSError: its config or the weights cannot be read.
      RuntimeError: all its checkpoints were put aside as damaged.
    """
    if checkpointing.has_checkpoint(workdir):
        begun = workdirs.read_config(workdir)
        # What the weights it was begun with have set is not in the config that is given again.
        pretrained.apply_conventions(config, pretrained.conventions_of(begun), config.initialize.keep, info)
        if not change_config:
            workdirs.check_resumable(begun, config)
        return Start(True, None)
    if not restart:
        checkpointing.check_beginning(workdir)
    fields = config.initialize
    if not fields.path:
        return Start(False, None)
    weights = pretrained.open_weights(fields.path, fields.preset, fields.classes)
    pretrained.apply_conventions(config, weights.conventions, fields.keep, info)
    return Start(False, weights)


def abstract_state(
    config: ConfigDict, model: nn.Module, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Return shape, type and place of every array of the state; nothing is computed.

    Raises:
      ValueError: the patterns of `optimizer.untrained` do not fit the parameters.
    """
    state = jax.eval_shape(
        lambda key: _make_state(config, initialize(model, key), optimizer), jax.random.key(config.seed)
    )
    shardings = state_shardings(mesh, state, config.train.state_sharding)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, shardings)


def fresh_state(
    config: ConfigDict,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    weights: pretrained.Weights | None,
    names: tuple[str, ...],
) -> TrainState:
    """Return the state at step 0, with the weights and class embeddings that the config names.

    Args:
      config: of the run.
      model: to initialize.
      optimizer: of the trained parameters.
      abstract: see `abstract_state`.
      weights: to start from, or None.
      names: of the classes, in label order.

    Raises:
      ValueError: the weights or the embeddings do not fit the model.
      OSError: they cannot be read.
    """
    initial = jax.jit(lambda key: initialize(model, key))(jax.random.key(config.seed))
    variables = _with_weights(initial, config, weights, names)
    for line in pretrained.untrained_without_source(initial, variables, config.optimizer.untrained):
        info(f"warning: {line}")
    state = _make_state(config, variables, optimizer)
    return jax.device_put(state, jax.tree.map(lambda x: x.sharding, abstract))


def resumed_state(checkpoints: Checkpoints, abstract: TrainState) -> TrainState:
    """Return the state of the newest checkpoint that is whole.

    Raises: as `Checkpoints.restore_newest`.
    """
    state = checkpoints.restore_newest(abstract, info)
    info(f"resumed from step {int(state.step)}")
    return state


def _make_state(config: ConfigDict, variables: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    return make_state(variables, optimizer, config.optimizer.untrained, ema=config.optimizer.ema_decay is not None)


def _with_weights(
    variables: PyTree, config: ConfigDict, weights: pretrained.Weights | None, names: tuple[str, ...]
) -> Any:
    if weights is not None:
        new, unused = config.initialize.new, config.initialize.unused
        variables = pretrained.take_over(variables, weights, names, new=new, unused=unused, say=info)
    if config.embedding.path:
        table = pretrained.load_class_embeddings(config.embedding.path, names, config.embedding.table)
        variables = pretrained.with_class_embeddings(variables, table)
    return variables
