"""What the makers of the models' goldens share, where torch is installed."""

import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torchvision.models.detection.image_list import ImageList

from tests.golden import model_inputs as inputs

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_FOLDER = pathlib.Path(__file__).resolve().parent


def image_list(canvas: np.ndarray, size: tuple[int, int]) -> ImageList:
    """Return an image as torchvision's transform hands it on: normalised, and 0 beside the image."""
    pixels = ((canvas.astype(np.float32) - np.array(_MEAN)) / np.array(_STD)).astype(np.float32)
    pixels[size[0] :] = 0
    pixels[:, size[1] :] = 0
    return ImageList(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous(), [size])


def sample(name: str, values: torch.Tensor) -> dict[str, np.ndarray]:
    """Return some values of a map, channels last, and its largest."""
    flat = values.reshape(-1).numpy()
    return {name: flat[inputs.sample_positions(name, flat.size)], f"{name}/largest": np.abs(flat).max()}


def gradients(model: torch.nn.Module, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return some values of each parameter's gradient, and its norm."""
    parameters, arrays = dict(model.named_parameters()), {}
    for name in names:
        gradient = parameters[name].grad
        assert gradient is not None
        flat = gradient.numpy().reshape(-1)
        arrays[f"gradient/{name}"] = flat[inputs.sample_positions(name, flat.size)]
        arrays[f"gradient/{name}/norm"] = np.linalg.norm(flat)
    return arrays


def save(name: str, arrays: dict[str, Any]) -> None:
    """Write a golden file."""
    np.savez_compressed(_FOLDER / f"{name}.npz", allow_pickle=False, **arrays)
