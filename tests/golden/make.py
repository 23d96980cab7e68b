"""Write the files of tests/golden: `python -m tests.golden.make model`, where torch and torchvision are installed."""

import pathlib

from maskx_jax import errors
from tests.golden.make_model import make_model_goldens
from tests.golden.make_ops import make_op_goldens

FOLDER = pathlib.Path(__file__).resolve().parent
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
