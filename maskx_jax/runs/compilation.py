"""The compilation cache that programs use by themselves."""

import os
import pathlib
import platform
import zlib

import jax
from absl import logging


def use_cache() -> None:
    """Keep what is compiled for the next start, in the user's cache folder ($XDG_CACHE_HOME/maskx_jax).

    JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing. Different kinds of
    machines have folders of their own: code for one processor may not run on another one.
    """
    is_off = not jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    if is_off or jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(home) / "maskx_jax" / f"{platform.machine()}-{zlib.crc32(_processor()):08x}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.warning("no compilation cache in %s: %s", folder, error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _processor() -> bytes:
    """Return what says which instructions the processor has."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"".join(sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))}))
