"""Instance segmentation in JAX when only some classes have masks."""

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: the data and evaluation packages must not pull in JAX and Orbax.
    if name == "load":
        from maskx_jax.runs.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
