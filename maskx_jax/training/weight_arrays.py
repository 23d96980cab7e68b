"""The same numbers in another order: parameters as PyTorch and Caffe2 arrange them, and as ours are.

They put outputs first and, where features are flattened, channels before rows and columns; we put channels last.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskx_jax.training.weight_layouts import COCO_IDS

# Modules with rows for each class, and how many a class.
ROWS_OF_CLASS = {"box_head/classification": 1, "box_head/boxes": 4, "mask_weights": 1}


def to_ours(path: str, array: np.ndarray, model: Mapping[str, Any]) -> np.ndarray:
    """Arrange an array of theirs as the parameter of ours at `path`.

    Args:
      path: without its collection, such as "rpn/conv/kernel".
      array: of the file.
      model: fields of `config.model`; the pooling resolutions say how flattened features are shaped.

    Raises:
      ValueError: the array cannot be arranged so.
    """
    module, _, leaf = path.rpartition("/")
    if leaf != "kernel":
        return array
    side = _flattened_side(module, model)
    if side is not None:
        outputs = len(array)
        return array.reshape(outputs, -1, side, side).transpose(2, 3, 1, 0).reshape(-1, outputs)
    if module == "mask_weights":
        # A 1x1 convolution, or a layer; a larger kernel is another network and fails.
        return np.squeeze(array, axis=(2, 3)).T if array.ndim == 4 else array.T
    if module == "mask_head/deconvolution":
        return array.transpose(2, 3, 0, 1)
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_theirs(path: str, array: np.ndarray, model: Mapping[str, Any]) -> np.ndarray:
    """Undo `to_ours`."""
    module, _, leaf = path.rpartition("/")
    if leaf != "kernel":
        return array
    side = _flattened_side(module, model)
    if side is not None:
        outputs = array.shape[1]
        return array.reshape(side, side, -1, outputs).transpose(3, 2, 0, 1).reshape(outputs, -1)
    if module == "mask_weights":
        return array.T[:, :, None, None]
    if module == "mask_head/deconvolution":
        return array.transpose(2, 3, 0, 1)
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _flattened_side(module: str, model: Mapping[str, Any]) -> int | None:
    """Return the side of the maps that a layer sees flattened, or None."""
    sides = {"box_head/fc6": model["box_head"]["resolution"], "mask_head/mlp": 2 * model["mask_head"]["resolution"]}
    return sides.get(module)


def match_classes(num_rows: int, names: Sequence[str], known: Sequence[str] | None) -> tuple[list[int], str]:
    """Return which of a file's classes each of ours is, and how that was found.

    Args:
      num_rows: classes in the file, without background.
      names: of our classes.
      known: names of the file's classes, where it has them. Otherwise a file with COCO's 80 classes, or the 90 of its
        category ids, is matched by name, also to a part of them; any other must have our number of classes.

    Raises:
      ValueError: the file has other classes.
    """
    if known is not None and len(known) == num_rows:
        place = {name: i for i, name in enumerate(known)}
        if missing := [name for name in names if name not in place]:
            raise ValueError(f"the file's {num_rows} classes lack {len(missing)} of ours, such as {missing[0]!r}")
        return [place[name] for name in names], "by the names in the file"
    if num_rows in (80, 90) and set(names) <= COCO_IDS.keys():
        place = {name: i if num_rows == 80 else COCO_IDS[name] - 1 for i, name in enumerate(COCO_IDS)}
        return [place[name] for name in names], "as COCO's, by name"
    if num_rows != len(names):
        raise ValueError(f"{num_rows} classes in the file, {len(names)} in the model")
    return list(range(num_rows)), "in the file's order, which has no names"


def select_classes(
    module: str, rows: np.ndarray, background: str, names: Sequence[str], known: Sequence[str] | None = None
) -> tuple[np.ndarray, str]:
    """Return a predictor's rows for our classes, background first, and how the classes were matched.

    Args:
      module: of ours.
      rows: outputs first.
      background: see `weight_layouts.Layout`.
      names: of our classes.
      known: see `match_classes`.

    Raises:
      ValueError: the file has other classes.
    """
    rows = rows.reshape(-1, ROWS_OF_CLASS[module], *rows.shape[1:])
    if background == "first":
        background_row, rows = rows[:1], rows[1:]
    elif module == "box_head/classification":
        background_row, rows = rows[-1:], rows[:-1]
    else:
        # Such files have no box and no mask for background; its row is never used.
        background_row = np.zeros_like(rows[:1])
    index, found = match_classes(len(rows), names, known)
    return np.concatenate([background_row, rows[index]]).reshape(-1, *rows.shape[2:]), found


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
