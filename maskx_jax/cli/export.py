"""Take a trained run away: as StableHLO, a SavedModel, towards ONNX, or as a folder for the Hugging Face Hub.

    python -m maskx_jax export --workdir=RUN --format=stablehlo --output=DIR

docs/export.md says what each format holds, what it cannot hold, and the lines that run it.
"""

import importlib
import pathlib
from collections.abc import Sequence

from absl import flags, logging

from maskx_jax import errors, files
from maskx_jax.cli.flags import command_line, parse
from maskx_jax.runs.loading import load

# By format its module in `maskx_jax.export`.
_MODULES = {"stablehlo": "stablehlo", "saved_model": "saved_model", "onnx": "onnx", "hf": "hugging_face"}
# Formats of programs, which are for batches of any size or of one.
_PROGRAMS = ("stablehlo", "saved_model")


def main(arguments: Sequence[str] | None = None) -> int:
    """Export as the flags say; return the exit code."""
    argv, values = command_line(arguments), flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Work directory of a run of train.", required=True, flag_values=values)
    flags.DEFINE_integer("step", None, "Step of the checkpoint; the latest by default.", flag_values=values)
    flags.DEFINE_enum("format", None, list(_MODULES), "What to write.", required=True, flag_values=values)
    flags.DEFINE_string("output", None, "A new or an empty folder.", required=True, flag_values=values)
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Images of a batch, for tools that need a fixed number (stablehlo, saved_model); any number by default.",
        lower_bound=1,
        flag_values=values,
    )
    parse(values, argv, __doc__)
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    options = {"workdir": values.workdir} if values.format == "hf" else {}
    if values.batch_size is not None:
        if values.format not in _PROGRAMS:
            raise ValueError(f"got --batch_size with --format={values.format}; expected it with {', '.join(_PROGRAMS)}")
        options["batch_size"] = values.batch_size
    with files.new_folder(values.output) as folder:
        run = load(values.workdir, values.step)
        importlib.import_module(f"maskx_jax.export.{_MODULES[values.format]}").write(run, folder, **options)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            print(f"{path.stat().st_size / 1e6:10.2f} MB  {pathlib.Path(values.output) / path.relative_to(folder)}")
    return 0


if __name__ == "__main__":
    errors.run(main)
