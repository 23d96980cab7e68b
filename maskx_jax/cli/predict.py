"""Detect in pictures of your own: files, folders, patterns or videos.

    python -m maskx_jax predict --workdir=RUN --input=street.jpg --input="photos/**/*.jpg"

Each picture is written with masks, boxes, names and scores into RUN/predictions, and results.json beside them (COCO
format; images.json says which image id is which picture). `--input=-` reads names from the standard input, one a line.
A picture that cannot be read is one line on the standard error, and the exit code is 1 at the end.
"""

import sys
from collections.abc import Callable, Iterator, Sequence

from absl import flags, logging
from tqdm import tqdm

from maskx_jax import errors, files
from maskx_jax.cli.flags import command_line, parse
from maskx_jax.prediction.pictures import Picture, pictures_of
from maskx_jax.prediction.predictor import Options
from maskx_jax.prediction.writing import Writer
from maskx_jax.runs import compilation
from maskx_jax.runs.loading import Loaded, load


def main(arguments: Sequence[str] | None = None, load: Callable[..., Loaded] = load) -> int:
    """Predict as the flags say; return the exit code.

    Args:
      arguments: flags; by default those of this process.
      load: makes a model of a work directory.
    """
    argv, values = command_line(arguments), flags.FlagValues()
    _define(values)
    parse(values, argv, __doc__)
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    options = Options(
        threshold=values.threshold, batch_size=values.batch_size, tile=values.tile, overlap=values.overlap
    )
    pictures = _first_there(pictures_of(_names(values.input)))
    compilation.use_cache()
    loaded = load(values.workdir, values.step)
    output = files.folder_in(*((values.output,) if values.output else (values.workdir, "predictions")))
    refused = 0
    with (
        Writer(output, loaded.categories, pictures=values.pictures, masks=values.masks) as writer,
        tqdm(desc="predicting", unit="image", disable=None) as progress,
    ):
        for predicted in loaded.predictor.predict(pictures, options):
            if predicted.error is not None:
                refused += 1
                tqdm.write(f"refused: {errors.one_line(predicted.error)}", file=sys.stderr)
            else:
                writer.add(predicted)
            progress.update()
    print(f"wrote {output}" + (f"; {refused} refused" if refused else ""))
    return 1 if refused else 0


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "Work directory of a run of train.", required=True, flag_values=values)
    flags.DEFINE_integer("step", None, "Step of the checkpoint; the latest by default.", flag_values=values)
    flags.DEFINE_multi_string(
        "input", None, "A picture, a video, a folder, a pattern, or - for a list.", required=True, flag_values=values
    )
    flags.DEFINE_string("output", None, "Folder to write into; RUN/predictions by default.", flag_values=values)
    flags.DEFINE_float("threshold", 0.5, "Lower scores are left out.", flag_values=values)
    flags.DEFINE_integer(
        "batch_size", None, "Images of a batch; one a device by default.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "tile",
        None,
        "Detect in larger pictures by overlapping tiles of this many pixels a side too: for objects that are small in "
        "them.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_float("overlap", 0.25, "Share of a tile that its neighbour has too.", flag_values=values)
    flags.DEFINE_bool("pictures", True, "Draw pictures and videos.", flag_values=values)
    flags.DEFINE_bool("masks", False, "Write each mask as a PNG.", flag_values=values)


def _names(inputs: Sequence[str]) -> Iterator[str]:
    for name in inputs:
        if name == "-":
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        else:
            yield name


def _first_there(pictures: Iterator[Picture]) -> Iterator[Picture]:
    """Return the pictures once the first is found: a wrong name is said before anything is loaded.

    Raises:
      ValueError: there is none.
    """
    first = next(pictures, None)
    if first is None:
        raise ValueError("--input: names no picture")

    def all_of_them() -> Iterator[Picture]:
        yield first
        yield from pictures

    return all_of_them()


if __name__ == "__main__":
    errors.run(main)
