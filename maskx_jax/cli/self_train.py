"""Label the objects that have only boxes, train on their masks too, and again, in rounds.

    python -m maskx_jax self-train --workdir=RUN --output=ROUNDS --split train=train.json,images/train \\
        --split val=val.json,images/val --rounds=2

RUN labels first. The same command continues where it stopped. The rounds train as RUN did, in a quarter of its steps;
--config.FIELD=VALUE changes how (docs/config.md). Exit codes are those of `train`.
"""

import re
import sys
from collections.abc import Sequence

from absl import logging

from maskx_jax import errors
from maskx_jax.cli.flags import add_reading_options, changed_config, command_line, paths_of_splits, split_changes
from maskx_jax.distributed.interruption import EXIT_INTERRUPTED, InterruptedRun, leaving_at_once
from maskx_jax.labelling.label import THRESHOLD
from maskx_jax.labelling.self_training import config_of_rounds, self_train, table
from maskx_jax.runs import checkpoints as checkpointing
from maskx_jax.runs import compilation
from maskx_jax.training.loop import PARTS, Parts

# What the rounds themselves set.
_SET = ("initialize", "data.directory", "data.source", "data.mask_classes", "train.num_steps")


def main(arguments: Sequence[str] | None = None, parts: Parts = PARTS) -> int:
    """Train in rounds as the arguments say, and print what came of them; return the exit code.

    Args:
      arguments: by default those of this process.
      parts: what the rounds' runs are put together from.
    """
    argv, changes = split_changes(command_line(arguments))
    parser = errors.ArgumentParser(prog="python -m maskx_jax self-train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", required=True, help="of the run that labels first")
    parser.add_argument("--output", required=True, help="folder of the rounds, new or to be continued")
    parser.add_argument(
        "--split",
        required=True,
        action="append",
        metavar="NAME=JSON,IMAGES",
        help="the training and the evaluation split of the run, as `prepare` takes them",
    )
    parser.add_argument("--rounds", type=int, default=2, help="how many: %(default)s")
    parser.add_argument("--num_steps", type=int, help="of each round's training; by default a quarter of the run's")
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, help="quality, 0 to 1, from which a mask is taken: %(default)s"
    )
    parser.add_argument("--skip_bad_images", action="store_true", help="leave out images that cannot be read")
    add_reading_options(parser)
    options = parser.parse_args(argv[1:])
    for change in changes:
        if re.match(rf"--?config\.({'|'.join(map(re.escape, _SET))})[.=]", change):
            raise ValueError(f"got {change}; the rounds set {', '.join(_SET)} (--num_steps is how many steps each has)")
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    checkpointing.quiet()
    compilation.use_cache()
    config = config_of_rounds(options.workdir, options.num_steps)
    try:
        with leaving_at_once():
            rounds = self_train(
                options.output,
                workdir=options.workdir,
                splits=paths_of_splits(options.split),
                config=changed_config(config, changes, config.keys()),
                rounds=options.rounds,
                threshold=options.threshold,
                skip_bad_images=options.skip_bad_images,
                drop_unknown=options.drop_unknown,
                allow_outside=options.allow_outside,
                parts=parts,
            )
    except InterruptedRun as interrupted:
        print(interrupted, file=sys.stderr)
        return EXIT_INTERRUPTED
    print(table(rounds))
    return 0


if __name__ == "__main__":
    errors.run(main)
