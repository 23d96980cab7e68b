"""A run on its way to ONNX: weights for torchvision, and the script that torch turns them into ONNX with.

torch is needed for that, and not here. In torchvision's export RoIAlign and NMS are ONNX's own operations.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from safetensors.numpy import save

from maskx_jax import files
from maskx_jax.export.detection import FACTS_FILE
from maskx_jax.runs.loading import Loaded
from maskx_jax.weights.export import describe, to_torchvision
from maskx_jax.weights.layouts import field_of
from maskx_jax.weights.recipe import recipe

WEIGHTS_FILE = "weights.safetensors"
SCRIPT_FILE = "to_onnx.py"
# What the constructors of torchvision's MaskRCNN and FasterRCNN build; those of other widths take modules of one's own.
_WIDTHS = {
    "backbone.width": 64,
    "rcnn.fpn.channels": 256,
    "rcnn.rpn.channels": 256,
    "rcnn.box_head.hidden": 1024,
    "rcnn.mask_head.channels": 256,
    "rcnn.mask_head.num_convs": 4,
}
_SCRIPT = '''\
"""Write model.onnx for pictures of one size: python to_onnx.py HEIGHT WIDTH.

Run it in this folder, where torch, torchvision, safetensors, onnx and maybe onnxruntime are installed.
"""

import sys

import torch
{recipe}

height, width = map(int, sys.argv[1:])
image, another = torch.rand(2, 3, height, width)  # RGB, from 0 to 1
names = {names}
# For pictures of this size only: what was traced is wrong for others.
torch.onnx.export(
    model,
    ([image],),
    "model.onnx",
    dynamo=False,
    opset_version=17,
    input_names=["image"],
    output_names=names,
    dynamic_axes={{name: {{0: "detections"}} for name in names}},
)
try:
    import onnxruntime
except ImportError:
    sys.exit()
with torch.no_grad():
    expected = model([another])[0]
found = onnxruntime.InferenceSession("model.onnx").run(names, {{"image": another.numpy()}})
for name, values in zip(names, found):
    same = values.shape == expected[name].shape
    difference = abs(expected[name].numpy() - values).max(initial=0) if same else "their number"
    print(name, values.shape, "differs from torch by", difference)
'''


def write(run: Loaded, folder: pathlib.Path) -> None:
    """Write `weights.safetensors`, `to_onnx.py` and `model.json` into a folder.

    Args:
      run: a trained Faster R-CNN, Mask R-CNN, or Mask^X R-CNN without MLP branch, as torchvision builds them.
      folder: to write to.

    Raises:
      ValueError: torchvision cannot express the model, or not in ONNX.
      OSError: a file cannot be written.
    """
    check(run.config.model)
    state = to_torchvision(run.variables, run.model, run.config.model)
    files.write_bytes(folder / WEIGHTS_FILE, save(state, describe(run.config, run.categories).to_text()))
    has_masks = "masks" in run.model.produces
    names = ["boxes", "labels", "scores", *(["masks"] if has_masks else [])]
    files.write_text(folder / SCRIPT_FILE, _SCRIPT.format(recipe=recipe(run, WEIGHTS_FILE), names=names))
    masks = {"masks": "float32 [n, 1, height, width]: probabilities in the picture; the object is where it is > 0.5"}
    facts = {
        "format": "onnx",
        "categories": run.categories.to_coco(),
        "inputs": {"image": "float32 [3, height, width], RGB from 0 to 1, of the size that to_onnx.py was given"},
        "outputs": {
            "boxes": "float32 [n, 4]: x1, y1, x2, y2 in pixels of the picture",
            "labels": "int64 [n]: label k is the k-th of the categories, the first being 1",
            "scores": "float32 [n], from 0 to 1, best first",
            **(masks if has_masks else {}),
        },
    }
    files.write_json(folder / FACTS_FILE, facts)


def check(model: Mapping[str, Any]) -> None:
    """Check that torchvision builds such a model from its own parts, and writes it as ONNX.

    Args:
      model: `config.model`.

    Raises:
      ValueError: it does not; what the weights themselves cannot be is found by `to_torchvision`.
    """
    if model["family"] != "rcnn":
        raise ValueError(
            f"got a model of the family {model['family']!r}; expected 'rcnn' for ONNX: torchvision writes only R-CNNs. "
            "Take --format=stablehlo or saved_model"
        )
    if model["rcnn"].get("keypoint_predictor", "none") != "none":
        raise ValueError("got a model with keypoints; ONNX is written without. Take --format=stablehlo or saved_model")
    widths = {name: width for name, width in _WIDTHS.items() if _is_part(model, name)}
    others = [
        f"{name} = {field_of(model, name)!r} (expected {width})"
        for name, width in widths.items()
        if field_of(model, name) != width
    ]
    if others:
        raise ValueError(f"torchvision's R-CNN is not built with model.{', model.'.join(others)}")


def _is_part(model: Mapping[str, Any], name: str) -> bool:
    return model["rcnn"]["mask_predictor"] != "none" or "mask_head." not in name
