"""What the makers of the models' goldens share, where torch is installed."""

import pathlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torchvision.models.detection.image_list import ImageList

from maskx_jax.structures import Detections
from maskx_jax.weights.export import to_torchvision
from tests.golden import model_inputs as inputs
from tests.models.torchvision_model import Imported

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_FOLDER = pathlib.Path(__file__).resolve().parent


def image_list(canvas: np.ndarray, size: tuple[int, int]) -> ImageList:
    """Return an image as torchvision's transform hands it on: normalised, and 0 beside the image."""
    pixels = ((canvas.astype(np.float32) - np.array(_MEAN)) / np.array(_STD)).astype(np.float32)
    pixels[size[0] :] = 0
    pixels[:, size[1] :] = 0
    return ImageList(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous(), [size])


def batch_list(canvases: np.ndarray) -> ImageList:
    """Return several images, each of which fills its canvas."""
    size = canvases.shape[1:3]
    return ImageList(torch.cat([image_list(canvas, size).tensors for canvas in canvases]), [size] * len(canvases))


def sample(name: str, values: torch.Tensor) -> dict[str, np.ndarray]:
    """Return some values of a map, channels last, and its largest."""
    flat = values.reshape(-1).numpy()
    return {name: flat[inputs.sample_positions(name, flat.size)], f"{name}/largest": np.abs(flat).max()}


def losses_and_gradients(
    losses: Mapping[str, torch.Tensor], model: torch.nn.Module, names: Iterable[str]
) -> dict[str, np.ndarray]:
    """Return the losses, and of their sum some values of the gradient of each named parameter, and its norm."""
    torch.stack(list(losses.values())).sum().backward()
    arrays = {f"loss/{name}": value.detach().numpy() for name, value in losses.items()}
    print("losses:", {name: float(value) for name, value in arrays.items()})
    parameters = dict(model.named_parameters())
    for name in names:
        gradient = parameters[name].grad
        assert gradient is not None
        flat = gradient.numpy().reshape(-1)
        arrays[f"gradient/{name}"] = flat[inputs.sample_positions(name, flat.size)]
        arrays[f"gradient/{name}/norm"] = np.linalg.norm(flat)
    return arrays


@torch.no_grad()
def way_back(
    imported: Imported, stages: Callable[[Mapping[str, torch.Tensor], np.ndarray, tuple[int, int]], dict[str, Any]]
) -> tuple[Detections, dict[str, Any]]:
    """Export our parameters, and compare the detections of torchvision with them on an image with ours.

    Args:
      imported: our model, with parameters.
      stages: what torchvision makes of a state, a canvas and the size of its image, with `detections/...`.

    Returns:
      What we found, those that are valid, and what `stages` returned.
    """
    canvas, size = inputs.make_canvas("shapes_512", None)
    found = jax.jit(lambda variables, *image: imported.model.apply(variables, *image, method="detect"))(
        imported.variables, canvas[None], np.array([size], np.float32)
    )
    ours = jax.tree.map(lambda values: np.array(values[0])[np.array(found.valid[0])], found)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.safetensors"
        save_file(to_torchvision(imported.variables, imported.model, imported.fields), path)
        theirs = stages(load_file(path), canvas, size)
    same = (ours.labels == theirs["detections/labels"]).all()
    boxes, scores = (np.abs(getattr(ours, name) - theirs[f"detections/{name}"]).max() for name in ("boxes", "scores"))
    print(
        f"way back: {len(ours.labels)} detections of ours, {len(theirs['detections/labels'])} of torchvision with our "
        f"exported parameters; same labels: {same}, largest difference of boxes {boxes:.2e} px, of scores {scores:.2e}"
    )
    return ours, theirs


def save(name: str, arrays: dict[str, Any]) -> None:
    """Write a golden file."""
    np.savez_compressed(_FOLDER / f"{name}.npz", allow_pickle=False, **arrays)
