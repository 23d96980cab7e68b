"""The same numbers in another order: parameters as PyTorch and Caffe2 arrange them, and as ours are.

They put outputs first and, where features are flattened, channels before rows and columns; we put channels last.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from maskx_jax.coco.categories import COCO_IDS
from maskx_jax.models.dense import parameters as dense
from maskx_jax.models.rcnn import parameters as rcnn

# Which predictors have the classes of a model as rows, and how many rows a class has in each module that has some.
CLASSIFICATIONS = (rcnn.CLASSIFICATION, dense.CLASSIFICATION)
ROWS_OF_CLASS = {**rcnn.ROWS_OF_CLASS, **dense.ROWS_OF_CLASS}

# Shapes of our parameters by their paths without the collection, such as "rpn/conv/kernel".
Shapes = Mapping[str, Sequence[int]]


def to_ours(path: str, array: np.ndarray, shapes: Shapes) -> np.ndarray:
    """Arrange an array of theirs as the parameter of ours at `path`.

    Args:
      path: without its collection.
      array: of the file.
      shapes: of our parameters; they say how flattened features are shaped.

    Raises:
      ValueError: the array cannot be arranged so.
    """
    module, _, leaf = path.rpartition("/")
    if leaf != "kernel":
        # PyTorch has no parameters without axes but those that hold one number.
        return array.reshape(()) if shapes[path] == () and array.size == 1 else array
    side = _flattened_side(module, shapes)
    if side is not None:
        outputs = len(array)
        return array.reshape(outputs, -1, side, side).transpose(2, 3, 1, 0).reshape(-1, outputs)
    if array.ndim == 4 and len(shapes[path]) == 2:
        # A 1x1 convolution that is a layer of ours; a larger kernel is another network and fails.
        return np.squeeze(array, axis=(2, 3)).T
    if module in rcnn.TRANSPOSED:
        return array.transpose(2, 3, 0, 1)
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_theirs(path: str, array: np.ndarray, shapes: Shapes) -> np.ndarray:
    """Undo `to_ours`."""
    module, _, leaf = path.rpartition("/")
    if leaf != "kernel":
        return array
    side = _flattened_side(module, shapes)
    if side is not None:
        outputs = array.shape[1]
        return array.reshape(side, side, -1, outputs).transpose(3, 2, 0, 1).reshape(outputs, -1)
    if module == "mask_weights":
        return array.T[:, :, None, None]
    if module in rcnn.TRANSPOSED:
        return array.transpose(2, 3, 0, 1)
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _flattened_side(module: str, shapes: Shapes) -> int | None:
    """Return the side of the maps that a layer sees flattened, or None where it sees none."""
    return _side([module], rcnn.FLATTENED[module], shapes) if module in rcnn.FLATTENED else None


def _side(seeing: Sequence[str], making: Sequence[str], shapes: Shapes) -> int:
    """Return the side of the maps that a layer makes and another sees flattened: of each, the first that there is."""
    sees, makes = (
        next(shapes[f"{layer}/kernel"] for layer in layers if f"{layer}/kernel" in shapes)
        for layers in (seeing, making)
    )
    return math.isqrt(sees[0] // makes[-1])


def names_of_rows(num_rows: int) -> tuple[tuple[str | None, ...] | None, str]:
    """Return the classes that a file's rows are taken for where it does not name them, and a note of that.

    80 rows are taken for COCO's classes, 90 for its category ids, of which ten are unused (None). Of any other number
    nothing is known (None).

    Args:
      num_rows: classes in the file, without background.
    """
    if num_rows not in (80, 90):
        return None, f"the file does not name its {num_rows}"
    name_of_id = {category_id: name for name, category_id in COCO_IDS.items()}
    names = tuple(COCO_IDS) if num_rows == 80 else tuple(name_of_id.get(i) for i in range(1, 91))
    return names, f"the file's {num_rows} are taken for COCO's: if they are others, name them in initialize.classes"


def rows_of_ours(module: str, rows: np.ndarray, background: str) -> np.ndarray:
    """Return the rows of a file's predictor as ours are: two-stage ones have background in front, one-stage ones none.

    Args:
      module: of ours.
      rows: outputs first.
      background: see `layouts.layout.Layout`; "none" where the predictor has no row for it.
    """
    if module in dense.ROWS_OF_CLASS:
        return rows[1:] if background == "first" else rows
    if background == "first":
        return rows
    if module == rcnn.CLASSIFICATION:
        return np.roll(rows, 1, axis=0)
    # Such files have no box and no mask for background; its row is never used.
    return np.concatenate([np.zeros_like(rows[: ROWS_OF_CLASS[module]]), rows])


def rows_of_class(path: str, shapes: Shapes) -> int:
    """Return how many rows each class has in a parameter of ours; 0 where it has none, or all classes share one.

    Args:
      path: of ours, without its collection.
      shapes: of our parameters.
    """
    module = path.rpartition("/")[0]
    if module == rcnn.PIXELS:
        pixels = (2 * _side(rcnn.SEES_FEATURES, rcnn.MAKES_FEATURES, shapes)) ** 2
        return pixels if shapes[path][-1] > pixels else 0
    if module == "mask_weights" and shapes[path][-1] == 1:
        return 0
    return ROWS_OF_CLASS.get(module, 0)


def num_background_rows(module: str) -> int:
    """Return how many rows, or groups of rows, a module of ours has in front of those of the classes."""
    return int(module not in dense.ROWS_OF_CLASS)


def select_classes(
    path: str, size: int, source: np.ndarray, fresh: np.ndarray, num_classes: int, index: Sequence[int | None]
) -> np.ndarray | str:
    """Return a parameter with values for each of our classes, or why the source has none.

    Args:
      path: of ours, without collection.
      size: rows of each class, at least 1; see `rows_of_class`.
      source: parameter of the source, arranged as ours.
      fresh: ours as initialised.
      num_classes: in the source, without background.
      index: for each of our classes its place among the source's, or None where it is to be fresh.
    """
    # Fixed class vectors have a row for each class, parameters a column (or more).
    axis = 0 if path.endswith("/embedding") else -1
    background = num_background_rows(path.rpartition("/")[0])
    taken = np.moveaxis(np.asarray(source), axis, 0)
    if len(taken) != size * (num_classes + background):
        return f"{len(taken)} rows in the source, expected {size * (num_classes + background)} of {num_classes} classes"
    places = [*range(background), *(None if i is None else i + background for i in index)]
    taken = taken.reshape(-1, size, *taken.shape[1:])[[i or 0 for i in places]]
    new = [i is None for i in places]
    if any(new):
        own = np.moveaxis(np.asarray(fresh), axis, 0)
        taken[new] = own.reshape(-1, size, *own.shape[1:])[new]
    return np.moveaxis(taken.reshape(-1, *taken.shape[2:]), 0, axis)


def fold_batch_norm(arrays: Sequence[np.ndarray], epsilon: float) -> dict[str, np.ndarray]:
    """Return the scale and bias of y = scale * x + bias that a BatchNorm with fixed statistics is.

    Args:
      arrays: its scale and bias (folded already, as in Detectron), or scale, bias, mean and variance.
      epsilon: added to the variance.

    Raises:
      ValueError: the arrays have different shapes, or a variance is not positive.
    """
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(f"BatchNorm of shapes {[array.shape for array in arrays]}")
    scale, bias, *statistics = (array.astype(np.float64) for array in arrays)
    if statistics:
        mean, variance = statistics
        if not (variance + epsilon > 0).all():
            raise ValueError("BatchNorm whose variance is not positive")
        scale = scale / np.sqrt(variance + epsilon)
        bias = bias - mean * scale
    return {"scale": scale.astype(np.float32), "bias": bias.astype(np.float32)}
