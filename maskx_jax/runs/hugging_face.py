"""A trained model as a folder in the layout of the Hugging Face Hub, written and read; nothing is downloaded.

`model.safetensors` has the parameters and constants by their paths, such as "params/rpn/conv/kernel"; `config.json` the
run's config, the categories in the order of the labels, and the step.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load, save

from maskx_jax import files
from maskx_jax.coco.categories import Categories
from maskx_jax.errors import one_line, some
from maskx_jax.runs.workdir import CONFIG_FILE, config_from, read_mapping
from maskx_jax.structures import PyTree

WEIGHTS_FILE = "model.safetensors"
MODEL_TYPE = "maskx_jax"
# Paths on the machine that trained, which say nothing elsewhere.
_PATHS = ("data.directory", "initialize.path", "embedding.path")


@dataclasses.dataclass(frozen=True)
class Contents:
    """What such a folder holds.

    Attributes:
      config: of the run.
      categories: that the model knows.
      step: that the run was at.
      arrays: by path.
    """

    config: ConfigDict
    categories: Categories
    step: int
    arrays: Mapping[str, np.ndarray]

    def variables(self, expected: PyTree) -> PyTree:
        """Return the arrays as the variables of a model.

        Args:
          expected: arrays of the shapes and types that the model has.

        Raises:
          ValueError: they are others.
        """
        shapes = {path: (x.shape, x.dtype) for path, x in traverse_util.flatten_dict(expected, sep="/").items()}
        found = {path: (x.shape, x.dtype) for path, x in self.arrays.items()}
        problems = {
            "missing": sorted(shapes.keys() - found.keys()),
            "unknown": sorted(found.keys() - shapes.keys()),
            "of another shape or type": [p for p in shapes if p in found and shapes[p] != found[p]],
        }
        if any(problems.values()):
            said = "; ".join(f"{len(paths)} {what} ({some(paths, 2)})" for what, paths in problems.items() if paths)
            raise ValueError(
                f"{WEIGHTS_FILE} does not hold the arrays of the model that {CONFIG_FILE} describes: {said}"
            )
        return traverse_util.unflatten_dict(dict(self.arrays), sep="/")


def write(
    folder: pathlib.Path,
    config: ConfigDict,
    categories: Categories,
    step: int,
    variables: PyTree,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the two files into a folder.

    Args:
      folder: to write to.
      config: of the run. Its paths on this machine are left out.
      categories: that the model knows.
      step: that the run was at.
      variables: the parameters, averaged where the run kept an average, and constants.
      more: what else `config.json` is to say, which nobody here reads.

    Raises:
      OSError: a file cannot be written.
    """
    arrays = {path: np.asarray(x) for path, x in traverse_util.flatten_dict(variables, sep="/").items()}
    fields = config.copy_and_resolve_references()
    fields.unlock()
    for path in _PATHS:
        fields.update_from_flattened_dict({path: None})
    described = {"model_type": MODEL_TYPE, "step": step, "categories": categories.to_coco()}
    files.write_bytes(folder / WEIGHTS_FILE, save(arrays, {"format": "flax"}))
    files.write_json(folder / CONFIG_FILE, described | dict(more or {}) | {"config": fields.to_dict()})


def is_folder(path: str | pathlib.Path) -> bool:
    """Return whether a path is such a folder, and no work directory of a run."""
    return (epath.Path(path) / WEIGHTS_FILE).exists()


def read(folder: str | pathlib.Path) -> Contents:
    """Read such a folder; a config of an earlier version is brought into the form of this one.

    Raises:
      ValueError: a file is damaged or of something else; the message names it.
      OSError: a file cannot be read.
    """
    path = epath.Path(folder) / CONFIG_FILE
    described = read_mapping(path, "the config of an exported run")
    if described.get("model_type") != MODEL_TYPE or not isinstance(described.get("config"), dict):
        found = described.get("model_type")
        raise ValueError(f"{path}: found the model_type {found!r}; expected {MODEL_TYPE!r}, and the config of a run")
    try:
        categories = Categories.in_label_order(described["categories"])
        step = int(described["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its categories or its step cannot be read ({one_line(error)})") from error
    weights = epath.Path(folder) / WEIGHTS_FILE
    try:
        arrays = load(weights.read_bytes())
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{weights}: cannot be read as safetensors ({one_line(error)})") from error
    return Contents(config_from(described["config"], path), categories, step, arrays)
