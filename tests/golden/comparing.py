"""How outputs and gradients of a model are compared with goldens, which hold some of their values."""

import functools
import pathlib
import zlib
from typing import Any

import jax
import numpy as np

from tests.golden import model_inputs as inputs

_FOLDER = pathlib.Path(__file__).resolve().parent
Arrays = dict[str, np.ndarray]
# Of `errors_of_gradient`. A ReLU whose input is 0 but for rounding is open on one side and shut on the other, on one
# processor or another. Each such region and unit adds about 1e-3 to the difference from a layer of a million of them,
# 2.5e-3 in a layer near the image; a region left out of 512 would add 4e-2.
GRADIENT_TOLERANCE = 1e-2
SCORE_TOLERANCE = 1e-3


@functools.cache
def golden(name: str) -> Arrays:
    """Return the arrays of a golden file."""
    with np.load(_FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def canvas_of(name: str, coco_mini: pathlib.Path | None, expected: Arrays) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the canvas of that name, and the size of the image on it; it must be the one of the golden."""
    canvas, size = inputs.make_canvas(name, coco_mini)
    assert zlib.crc32(canvas.tobytes()) == expected["canvas_crc32"], "another image than the goldens were made from"
    return canvas, size


def error_of_map(name: str, ours: Any, expected: Arrays) -> float:
    """Return the largest difference of a map at the golden's positions, relative to the map's largest value."""
    flat = np.asarray(ours).reshape(-1)
    actual = flat[inputs.sample_positions(name, flat.size)]
    return float(np.abs(actual - expected[name]).max() / expected[f"{name}/largest"])


def in_order_of_golden(found: Any, expected: Arrays) -> Any:
    """Return as many detections of an image as the golden has, in its order.

    Detections whose scores are equal but for rounding come in either order; others stay where they are.

    Args:
      found: `structures.Detections` of arrays with a first axis of detections.
      expected: the golden's arrays.
    """
    left, order = list(np.flatnonzero(found.valid)), []
    for score, box in zip(expected["detections/scores"], expected["detections/boxes"], strict=True):
        equal = [i for i in left if abs(found.scores[i] - score) <= SCORE_TOLERANCE]
        assert equal, f"no detection has the score {score}"
        order.append(min(equal, key=lambda i: np.abs(found.boxes[i] - box).max()))
        left.remove(order[-1])
    return jax.tree.map(lambda values: values[np.array(order)], found)


def error_of_loss(name: str, ours: Any, expected: Arrays) -> float:
    """Return the relative difference of a loss; the name is torchvision's."""
    loss = expected[f"loss/{name}"]
    return float(abs(ours - loss) / loss)


def errors_of_gradient(name: str, ours: np.ndarray, expected: Arrays) -> tuple[float, float]:
    """Return the norm of the difference over the norm at the golden's positions, and the relative error of the norm.

    Args:
      name: of the parameter, torchvision's.
      ours: the gradient, its axes in torchvision's order.
      expected: the golden's arrays.
    """
    flat, sampled, norm = ours.reshape(-1), expected[f"gradient/{name}"], expected[f"gradient/{name}/norm"]
    actual = flat[inputs.sample_positions(name, flat.size)]
    difference = np.linalg.norm(actual - sampled) / np.linalg.norm(sampled)
    return float(difference), float(abs(np.linalg.norm(flat) - norm) / norm)
