"""How much XLA optimises what the tests compile."""

import contextlib
from collections.abc import Iterator

import jax

# What it takes to compile a program as quickly as XLA can, for programs that the tests start.
QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@contextlib.contextmanager
def optimized() -> Iterator[None]:
    """Compile with all optimisations: for the tests that compute for longer than they compile."""
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
