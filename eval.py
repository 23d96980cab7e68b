"""Evaluate a run or score results: the flags are those of maskx_jax/cli/evaluate.py or maskx_jax/cli/score.py."""

from maskx_jax import errors
from maskx_jax.cli.evaluate_or_score import run

if __name__ == "__main__":
    errors.run(run)
