"""Opens the datasets that a config names: a new kind of dataset is an entry in `SOURCES`."""

from collections.abc import Callable, Mapping
from typing import Any

from maskx_jax.data.records import Source
from maskx_jax.data.shapes.source import ShapesSource

# Opens a dataset: from the section `data` of a config, whether it is the one to train on, and the seed of the run.
Open = Callable[[Mapping[str, Any], bool, int], Source]


def open_source(data: Mapping[str, Any], *, training: bool, seed: int = 0) -> Source:
    """Open the dataset that a config trains on, or the one that it evaluates on.

    Args:
      data: the section `data` of a config; `data["source"]` is a name in `SOURCES`.
      training: which of the two.
      seed: of the run.

    Raises:
      FileNotFoundError: a file of it is missing.
      ValueError: the source is unknown, or a field of its section is out of range.
    """
    name = data["source"]
    if name not in SOURCES:
        raise ValueError(f"got data.source {name!r}; expected one of {tuple(SOURCES)}")
    return SOURCES[name](data, training, seed)


def _open_prepared(data: Mapping[str, Any], training: bool, seed: int) -> Source:
    """Open a split of a prepared dataset: `directory`, `train_split` and `eval_split` of the section."""
    if not data["directory"]:
        raise ValueError("data.directory is not set; expected the output of `python -m maskx_jax prepare`")
    # Reads through TensorFlow Datasets, which the other sources do not need.
    from maskx_jax.data.coco.source import CocoSource

    return CocoSource(data["directory"], data["train_split"] if training else data["eval_split"])


def _open_shapes(data: Mapping[str, Any], training: bool, seed: int) -> Source:
    """Open a synthetic set: `shapes` of the section has the fields of `ShapesSource`, and a size for each set."""
    options = dict(data["shapes"])
    num_images = {True: options.pop("num_train"), False: options.pop("num_eval")}
    # Seeds of their own, so that the two sets share no image.
    return ShapesSource(num_images[training], seed=2 * seed + (0 if training else 1), **options)


SOURCES: dict[str, Open] = {"prepared": _open_prepared, "shapes": _open_shapes}
