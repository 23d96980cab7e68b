"""Train a detector.

    python train.py --config=configs/maskx_rcnn.py:masks=voc,schedule=1x --config.data.directory=DIR --workdir=RUN

Starting and resuming are the same command: a run continues from the latest checkpoint in its work directory, if there
is one. The work directory holds checkpoints, config.json, environment.json, metrics.jsonl, TensorBoard logs and the
evaluations.

Exit codes: 0 done; 1 an error; 75 asked to leave (SIGTERM, SIGINT), saved, to be started again; 76 another process of
the run is lost or stuck, to be started again.
"""

import sys

from absl import flags, logging
from ml_collections import config_flags

from maskx_jax.distributed import processes as distributed
from maskx_jax.distributed.interruption import EXIT_INTERRUPTED, InterruptedRun, leaving_at_once
from maskx_jax.runs import checkpoints as checkpointing
from maskx_jax.runs import compilation
from maskx_jax.training.loop import train

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, logs and evaluations go.", required=True)
_CHANGE_CONFIG = flags.DEFINE_bool(
    "change_config", False, "Continue a run although its config or its training data have changed."
)
_RESTART = flags.DEFINE_bool(
    "restart", False, "Begin at step 0 although all checkpoints of the run were put aside as damaged."
)


def main(_: list[str]) -> None:
    """Train as the flags say."""
    # Orbax and TensorFlow write a page for every checkpoint at the level below.
    logging.set_verbosity(logging.WARNING)
    checkpointing.quiet()
    compilation.use_cache()
    try:
        with leaving_at_once():
            distributed.join(**_CONFIG.value.distributed.to_dict())
            train(_CONFIG.value, _WORKDIR.value, _CHANGE_CONFIG.value, _RESTART.value)
    except InterruptedRun as interrupted:
        print(interrupted, file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
