"""Write the files of tests/golden: `python -m tools.make_goldens model`, where torch and torchvision are installed."""

import pathlib

from maskx_jax import errors
from tools.goldens_of_model import make_model_goldens
from tools.goldens_of_ops import make_op_goldens

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "tests/golden"
MAKERS = {
    "model": make_model_goldens,
    "ops": make_op_goldens,
}


def main() -> None:
    """Make the goldens that the command line names."""
    parser = errors.ArgumentParser(description=__doc__)
    parser.add_argument("goldens", choices=MAKERS, help="which file to write")
    MAKERS[parser.parse_args().goldens](FOLDER)


if __name__ == "__main__":
    errors.run(main)
