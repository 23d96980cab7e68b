"""How quickly XLA compiles what the tests run, and how well."""

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator

# What it takes to compile a program as quickly as XLA can, in this process (before JAX is imported) and in those that
# the tests start: no optimisations, and the older emitters of fused loops. For our models this is three to four times
# as quick, in half the memory.
QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
# Later versions end at a flag that they do not know.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICKLY["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()


@contextlib.contextmanager
def optimized() -> Iterator[None]:
    """Compile with all optimisations: for the tests that compute for longer than they compile."""
    import jax

    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
