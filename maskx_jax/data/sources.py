"""Opens the datasets that a config names."""

from collections.abc import Mapping
from typing import Any

from maskx_jax.data.records import Source
from maskx_jax.data.shapes.source import ShapesSource

SOURCES = ("prepared", "shapes")


def open_source(
    source: str, directory: str, split: str, shapes: Mapping[str, Any], *, training: bool, seed: int = 0
) -> Source:
    """Open one split of a dataset.

    Args:
      source: "prepared" or "shapes".
      directory: of a prepared dataset.
      split: of a prepared dataset.
      shapes: fields of `ShapesSource`, but with `num_train` and `num_eval` for the numbers of images.
      training: which of the two synthetic sets; they share no image.
      seed: of the synthetic sets.

    Raises:
      ValueError: the source is unknown, or a prepared one has no directory.
    """
    if source == "shapes":
        options = dict(shapes)
        num_images = {True: options.pop("num_train"), False: options.pop("num_eval")}
        return ShapesSource(num_images[training], seed=2 * seed + (0 if training else 1), **options)
    if source == "prepared":
        if not directory:
            raise ValueError("data.directory is empty; expected the output of `python -m maskx_jax.cli.prepare`")
        # Reads through TensorFlow Datasets, which training on shapes does not need.
        from maskx_jax.data.coco.source import CocoSource

        return CocoSource(directory, split)
    raise ValueError(f"got data.source {source!r}; expected one of {SOURCES}")
