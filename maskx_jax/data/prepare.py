"""Prepare a dataset from COCO-style annotations: check it, say what was found, write it for training.

python -m maskx_jax.data.prepare --output=DATA --split train=train.json,images/train --split val=val.json,images/val
"""

import argparse
import sys

from absl import logging

from maskx_jax import errors
from maskx_jax.data.coco_builder import prepare


def main(arguments: list[str] | None = None) -> int:
    """Prepare what the arguments say and print the reports; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m maskx_jax.data.prepare", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--output", required=True, help="directory to make")
    parser.add_argument(
        "--split", required=True, action="append", metavar="NAME=JSON,IMAGES", help="repeat it for several splits"
    )
    parser.add_argument("--num_shards", type=int, help="files a split is written to; by size if not given")
    parser.add_argument("--skip_bad_images", action="store_true", help="leave out missing and corrupt images")
    parser.add_argument("--drop_unknown", action="store_true", help="leave out annotations of unknown ids")
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset that is at the output")
    options = parser.parse_args(arguments)
    splits = {}
    for text in options.split:
        name, _, paths = text.partition("=")
        annotations, comma, folder = paths.rpartition(",")
        if not (name and comma and annotations and folder):
            parser.error(f"--split: got {text!r}; expected NAME=JSON,IMAGES")
        if name in splits:
            parser.error(f"--split: {name!r} is given twice")
        splits[name] = (annotations, folder)
    # TensorFlow Datasets tells of every step at the level below.
    logging.set_verbosity(logging.WARNING)
    try:
        reports = prepare(
            options.output,
            splits,
            options.num_shards,
            skip_bad_images=options.skip_bad_images,
            drop_unknown=options.drop_unknown,
            overwrite=options.overwrite,
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for report in reports.values():
        print(report.table())
    return 0


if __name__ == "__main__":
    errors.run(main)
