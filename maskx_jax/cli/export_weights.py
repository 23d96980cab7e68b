"""Write a run's parameters as a state dict of torchvision's Mask R-CNN or FCOS.

    python -m maskx_jax export-weights --workdir=RUN --output=model.safetensors

It prints how to build the model there. Mask^X R-CNN without its MLP branch becomes an ordinary Mask R-CNN.
"""

import os
import pathlib
from collections.abc import Sequence

from absl import logging
from safetensors.numpy import save

import maskx_jax
from maskx_jax import errors, files
from maskx_jax.weights.export import describe, to_torchvision
from maskx_jax.weights.recipe import recipe


def main(arguments: Sequence[str] | None = None) -> None:
    """Export as the arguments say (`sys.argv` by default).

    Raises:
      ValueError: the output is no new `.safetensors` file, or torchvision cannot express the model.
      OSError: something cannot be read or written.
    """
    parser = errors.ArgumentParser(
        prog="python -m maskx_jax export-weights", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--workdir", required=True, help="work directory of a run")
    parser.add_argument("--step", type=int, help="of the checkpoint; the latest by default")
    parser.add_argument("--output", required=True, help="the .safetensors file to write")
    options = parser.parse_args(arguments)
    # Orbax writes a page for every checkpoint at the level below.
    logging.set_verbosity(logging.WARNING)
    output = pathlib.Path(options.output)
    _check_new(output)
    run = maskx_jax.load(options.workdir, options.step)
    state = to_torchvision(run.variables, run.model, run.config.model)
    files.write_bytes(output, save(state, describe(run.config, run.categories).to_text()))
    print(f"wrote {len(state)} arrays to {options.output}; in PyTorch:\n\n{recipe(run, options.output)}")


def _check_new(output: pathlib.Path) -> None:
    if output.suffix != ".safetensors":
        raise ValueError(f"got output {output}; expected a name that ends in .safetensors")
    if output.exists():
        raise ValueError(f"the output {output} exists; expected a new file")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"cannot write {output}: there is no directory {output.parent}")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write {output}: {output.parent} may not be written to")


if __name__ == "__main__":
    errors.run(main)
