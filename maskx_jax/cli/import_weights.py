"""Turn a file of weights into a work directory, which eval.py, maskx_jax.load and config.initialize.path read.

    python -m maskx_jax import-weights --config=configs/mask_rcnn.py:backbone=r50 --config.data.directory=DATA \\
        --config.initialize.path=maskrcnn_resnet50_fpn_coco.pth --workdir=RUN

The classes and the skeleton are those of the dataset; the conventions of the weights replace those of the config.
"""

import contextlib
import dataclasses
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from maskx_jax import errors
from maskx_jax.cli.flags import command_line, define_config, parse
from maskx_jax.data.sources import open_source
from maskx_jax.models.build import build, initialize
from maskx_jax.runs.checkpoints import Checkpoints
from maskx_jax.runs.workdir import write_config
from maskx_jax.structures import TrainState
from maskx_jax.training.checks import check_keypoints
from maskx_jax.weights import pretrained


def import_weights(config: ConfigDict, workdir: str) -> None:
    """Write config.initialize.path as step 0 of a run.

    All is read and checked before anything is written; what a failing write leaves is removed.

    Raises:
      ValueError: no path is given, the directory is not empty, the weights do not fit, or the data lack the keypoints
        of the model.
      OSError: something cannot be read or written.
    """
    options = config.initialize
    if not options.path:
        raise ValueError("expected --config.initialize.path, the file of weights")
    directory = epath.Path(workdir)
    _check_new(directory)
    weights = pretrained.open_weights(options.path, options.preset, options.classes)
    pretrained.apply_conventions(config, weights.conventions, options.keep)
    source = open_source(config.data, training=False, seed=config.seed)
    check_keypoints(config.model, source.skeleton)
    categories = dataclasses.replace(source.categories, skeleton=source.skeleton)
    model = build(config.model, len(categories))
    fresh = jax.jit(lambda key: initialize(model, key))(jax.random.key(config.seed))
    variables = pretrained.take_over(fresh, weights, categories.names, new=options.new, unused=options.unused)
    # An imported run has no average of its parameters, and no optimizer that could go on.
    config.optimizer.ema_decay = None
    # A model without constants, as with GroupNorm, has no collection of them.
    frozen = variables.get("frozen", {})
    state = TrainState(jnp.int32(0), variables["params"], {}, frozen, opt_state={}, average=None)
    existed = directory.exists()
    try:
        write_config(workdir, config)
        with contextlib.closing(Checkpoints(workdir, writes=True)) as checkpoints:
            checkpoints.save(state, categories)
    except BaseException:
        for path in directory.iterdir() if existed else [directory]:
            path.rmtree(missing_ok=True) if path.is_dir() else path.unlink(missing_ok=True)
        raise
    print(f"wrote {workdir}")


def _check_new(directory: epath.Path) -> None:
    """Check that a run can be made in a directory.

    Raises:
      ValueError: it holds something, or is none.
      PermissionError: it cannot be written to.
    """
    if directory.is_dir() and (found := sorted(path.name for path in directory.iterdir())):
        raise ValueError(f"{directory} holds {errors.some(found)}; expected a new or an empty work directory")
    if "://" in str(directory):
        return
    above = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not above.is_dir():
        raise ValueError(f"cannot make the work directory {directory}: {above} is no directory")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot make the work directory {directory}: {above} may not be written to")


def main(arguments: Sequence[str] | None = None) -> int:
    """Import what the flags say; return the exit code."""
    argv, values = command_line(arguments), flags.FlagValues()
    config = define_config(values, argv)
    workdir = flags.DEFINE_string("workdir", None, "Where the run is made.", required=True, flag_values=values)
    parse(values, argv, __doc__)
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    import_weights(config.value, workdir.value)
    return 0


if __name__ == "__main__":
    errors.run(main)
