"""A run as StableHLO programs, which JAX alone runs: `jax.export`, with the parameters inside."""

import pathlib
from collections.abc import Sequence

import jax
from jax import export

from maskx_jax import files
from maskx_jax.export.detection import FACTS_FILE, PLATFORMS, canvases, facts, inputs, make_detect
from maskx_jax.runs.loading import Loaded


def write(run: Loaded, folder: pathlib.Path, batch_size: int | None = None) -> None:
    """Write `CANVAS.stablehlo` for each canvas, and what one has to know to run it (`model.json`), into a folder.

    Args:
      run: a trained model.
      folder: to write to.
      batch_size: images of a batch; any number by default.

    Raises:
      ValueError: the batch size is not positive.
      OSError: a file cannot be written.
    """
    for name, canvas in canvases(run).items():
        content = lower(run, canvas, batch_size).serialize()
        files.write_bytes(folder / f"{name}.stablehlo", bytes(content))
    platforms = {"format": "stablehlo", "jax": jax.__version__, "platforms": list(PLATFORMS)}
    files.write_json(folder / FACTS_FILE, platforms | facts(run, batch_size))


def lower(
    run: Loaded, canvas: tuple[int, int], batch_size: int | None = None, platforms: Sequence[str] = PLATFORMS
) -> export.Exported:
    """Return the program (images, image_sizes) -> {"boxes", "labels", "scores", "valid", ...}.

    Args:
      run: a trained model.
      canvas: height and width.
      batch_size: images of a batch; any number by default.
      platforms: that it runs on; each is lowered in its own form.

    Raises:
      ValueError: the batch size is not positive.
    """
    detect = make_detect(run)

    @jax.jit
    def program(images: jax.Array, image_sizes: jax.Array) -> dict[str, jax.Array]:
        return detect(run.variables, images, image_sizes)

    return export.export(program, platforms=platforms)(*inputs(canvas, batch_size))
