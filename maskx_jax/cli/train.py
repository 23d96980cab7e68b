"""Train a detector.

    python train.py --config=configs/maskx_rcnn.py:masks=voc,schedule=1x --config.data.directory=DIR --workdir=RUN

Starting and resuming are the same command: a run continues from the latest checkpoint in its work directory, if there
is one. The work directory holds checkpoints, config.json, environment.json, metrics.jsonl, TensorBoard logs and the
evaluations.

Exit codes: 0 done; 1 an error; 75 asked to leave (SIGTERM, SIGINT), saved, to be started again; 76 another process of
the run is lost or stuck, to be started again.
"""

import sys
from collections.abc import Sequence

from absl import flags, logging

from maskx_jax import errors
from maskx_jax.cli.flags import command_line, define_config, parse
from maskx_jax.distributed import processes as distributed
from maskx_jax.distributed.interruption import EXIT_INTERRUPTED, InterruptedRun, leaving_at_once
from maskx_jax.runs import checkpoints as checkpointing
from maskx_jax.runs import compilation
from maskx_jax.training.loop import PARTS, Parts, train


def main(arguments: Sequence[str] | None = None, parts: Parts = PARTS) -> int:
    """Train as the flags say; return the exit code.

    Args:
      arguments: flags; by default those of this process.
      parts: what the run is put together from.
    """
    argv, values = command_line(arguments), flags.FlagValues()
    config = define_config(values, argv)
    workdir = flags.DEFINE_string(
        "workdir", None, "Where checkpoints, logs and evaluations go.", required=True, flag_values=values
    )
    change_config = flags.DEFINE_bool(
        "change_config",
        False,
        "Continue a run although its config or its training data have changed.",
        flag_values=values,
    )
    restart = flags.DEFINE_bool(
        "restart",
        False,
        "Begin at step 0 although all checkpoints of the run were put aside as damaged.",
        flag_values=values,
    )
    parse(values, argv, __doc__)
    # Orbax and TensorFlow write a page for every checkpoint at the level below.
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    checkpointing.quiet()
    compilation.use_cache()
    try:
        with leaving_at_once():
            distributed.join(**config.value.distributed.to_dict(), preemption_service=True)
            train(config.value, workdir.value, change_config.value, restart.value, parts)
    except InterruptedRun as interrupted:
        print(interrupted, file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    errors.run(main)
