"""Train a detector: flags and exit codes are those of maskx_jax/cli/train.py."""

from maskx_jax import errors
from maskx_jax.cli import train

if __name__ == "__main__":
    errors.run(train.main)
