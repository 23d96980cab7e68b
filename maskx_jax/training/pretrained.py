"""Constants and weights from elsewhere."""

import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging
from flax import traverse_util

from maskx_jax.structures import PyTree


def load_class_embeddings(path: str | pathlib.Path, names: Sequence[str], table: str) -> np.ndarray:
    """Read fixed class vectors, one row a class, preceded by a row of zeros for background.

    Args:
      path: an `.npz` with the arrays `names` (strings, `K`) and `table` (float, `K e`).
      names: of the classes, in label order.
      table: which array of vectors, for example "glove".

    Raises:
      ValueError: the table or a class is not in the file.
    """
    with np.load(path, allow_pickle=False) as file:
        if "names" not in file or table not in file:
            raise ValueError(f"{path}: expected the arrays 'names' and {table!r}; found {sorted(file)}")
        row_of_name = {str(name): row for row, name in enumerate(file["names"])}
        rows = np.asarray(file[table], np.float32)
    missing = [name for name in names if name not in row_of_name]
    if missing:
        raise ValueError(f"{path}: no vector for {len(missing)} of {len(names)} classes, such as {missing[:5]}")
    found = rows[[row_of_name[name] for name in names]]
    return np.concatenate([np.zeros((1, found.shape[1]), np.float32), found])


def with_class_embeddings(variables: PyTree, embeddings: np.ndarray) -> PyTree:
    """Return the variables with the weight transfer's fixed embedding replaced.

    Raises:
      ValueError: the model takes no embedding, or one of another shape.
    """
    frozen = variables.get("frozen", {})
    current = frozen.get("mask_weights", {}).get("embedding")
    if current is None:
        raise ValueError("the model has no class embedding: set model.weight_transfer.input to 'embedding'")
    if current.shape != embeddings.shape:
        raise ValueError(f"got embeddings of shape {embeddings.shape}; the model expects {current.shape}")
    mask_weights = {**frozen["mask_weights"], "embedding": embeddings}
    return {**variables, "frozen": {**frozen, "mask_weights": mask_weights}}


def overlay(variables: PyTree, source: PyTree) -> PyTree:
    """Return the variables with the values that `source` has under the same path; log what was taken and what kept.

    Raises:
      ValueError: a path has different shapes in the two, or they have no path in common.
    """
    own = traverse_util.flatten_dict(variables, sep="/")
    other = traverse_util.flatten_dict(source, sep="/")
    common = [path for path in own if path in other]
    if not common:
        raise ValueError(f"nothing to take over: the model has {sorted(own)[:3]}, the source {sorted(other)[:3]}")
    for path in common:
        if own[path].shape != other[path].shape:
            raise ValueError(f"{path}: the source has shape {other[path].shape}; the model expects {own[path].shape}")
    kept = sorted({path.rsplit("/", 1)[0] for path in own if path not in other})
    unused = sorted({path.rsplit("/", 1)[0] for path in other if path not in own})
    logging.info("took over %d of %d arrays; newly initialised: %s; not used: %s", len(common), len(own), kept, unused)
    return traverse_util.unflatten_dict(own | {path: other[path] for path in common}, sep="/")
