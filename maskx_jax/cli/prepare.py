"""Prepare a dataset from COCO-style annotations: check it, say what was found, write it for training.

python -m maskx_jax prepare --output=DATA --split train=train.json,images/train --split val=val.json,images/val
"""

import argparse
import os
import re
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import ClassVar

from absl import logging

from maskx_jax import errors
from maskx_jax.cli.flags import add_reading_options, paths_of_splits
from maskx_jax.data.coco.unfinished import work_folder_of

# As a shell reports a program that SIGTERM ended: 128 + 15.
EXIT_SIGTERM = 143


class _Terminated(BaseException):
    """SIGTERM came."""


class _Signals:
    """SIGTERM ends what is inside as SIGINT does, by an exception, so that it clears away what it has begun.

    An exception out of a handler is lost where it comes in a callback of the garbage collector, of which JAX has one,
    and Python prints its traceback. So `check` raises it again, and nothing is printed.
    """

    _EXCEPTIONS: ClassVar = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: _Terminated}

    def __enter__(self) -> "_Signals":
        self._received: type[BaseException] | None = None
        # What a shell has its background jobs ignore stays ignored.
        before = {number: signal.getsignal(number) for number in self._EXCEPTIONS}
        self._before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
        for number in self._before:
            signal.signal(number, self._leave)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._lost
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._hook

    def check(self) -> None:
        """Raise what a signal asked for.

        Raises:
          KeyboardInterrupt: SIGINT came.
          _Terminated: SIGTERM came.
        """
        if self._received is not None:
            raise self._received

    def _lost(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if self._received is None or unraisable.exc_type is not self._received:
            self._hook(unraisable)

    def _leave(self, number: int, _: FrameType | None) -> None:
        # Only the first: the next ones would interrupt the clearing.
        if self._received is None:
            self._received = self._EXCEPTIONS[signal.Signals(number)]
            raise self._received


def main(arguments: list[str] | None = None) -> int:
    """Prepare what the arguments say and print the reports; return the exit code."""
    parser = errors.ArgumentParser(prog="python -m maskx_jax prepare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", required=True, help="directory to make")
    parser.add_argument(
        "--split", required=True, action="append", metavar="NAME=JSON,IMAGES", help="repeat it for several splits"
    )
    parser.add_argument("--num_shards", type=int, help="files a split is written to; by size if not given")
    parser.add_argument(
        "--num_workers",
        type=int,
        help="processes that make the records, the same with any number; by default one a core",
    )
    parser.add_argument(
        "--part",
        type=_part,
        metavar="I/N",
        help="write the I-th of N parts, for N machines that share a disk; then run it without, to join them",
    )
    parser.add_argument(
        "--skip_bad_images",
        action="store_true",
        help="leave out images that are missing, corrupt, too large or of another size than the JSON says",
    )
    add_reading_options(parser)
    parser.add_argument(
        "--predicted_masks",
        choices=("use", "drop"),
        default="drop",
        help="what becomes of masks that `label` predicted; dropped by default, since they would be scored against too",
    )
    parser.add_argument(
        "--keypoints", choices=("use", "drop"), default="use", help="whether records have the keypoints of the JSON"
    )
    parser.add_argument("--add", action="store_true", help="add the splits to the dataset that is at the output")
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset that is at the output")
    options = parser.parse_args(arguments)
    splits = paths_of_splits(options.split)
    # TensorFlow's C++ parts read it as they are loaded; TensorFlow Datasets tells of every step at the level below.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.WARNING)
    try:
        with _Signals() as signals:
            from maskx_jax.data.coco.builder import prepare

            reports = prepare(
                options.output,
                splits,
                options.num_shards,
                skip_bad_images=options.skip_bad_images,
                drop_unknown=options.drop_unknown,
                allow_outside=options.allow_outside,
                predicted_masks=options.predicted_masks,
                keypoints=options.keypoints,
                overwrite=options.overwrite,
                add=options.add,
                num_workers=options.num_workers,
                part=options.part,
                before_image=signals.check,
            )
    except _Terminated:
        kept = "whole shards are kept" if work_folder_of(Path(options.output)).exists() else "nothing was written"
        print(f"error: ended (SIGTERM); {kept}", file=sys.stderr)
        return EXIT_SIGTERM
    if options.part is not None:
        print("part {}/{} is written; when all are, run the same command without --part".format(*options.part))
        return 0
    for report in reports.values():
        print(report.table())
    return 0


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected such as 3/16, the third of sixteen parts")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    errors.run(main)
