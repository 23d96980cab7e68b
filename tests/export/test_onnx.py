"""What goes to ONNX by way of torchvision, and what cannot: torch is not here, so the script is only compiled."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import embedmask, fcos, mask_rcnn, maskx_rcnn
from maskx_jax.export import onnx
from maskx_jax.models.build import build
from tests.models.build import set_fields


def as_torchvision(config, **model):
    """Set the conventions of torchvision, and other fields of the model."""
    set_fields(config, roi_align__convention="torchvision", rpn__anchor_convention="torchvision", **model)
    return config


@pytest.mark.parametrize(("predictor", "outputs"), [("class_specific", 4), ("none", 3)])
def test_the_folder_has_weights_a_script_and_what_it_takes(run, tmp_path, monkeypatch, predictor, outputs):
    config = as_torchvision(mask_rcnn.get_config(), mask_predictor=predictor)
    exported = dataclasses.replace(run, config=config, model=build(config.model, 6))
    monkeypatch.setattr(onnx, "to_torchvision", lambda *_: {"rpn.head.weight": np.ones(3, np.float32)})
    onnx.write(exported, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "to_onnx.py", "weights.safetensors"]
    assert list(load_file(tmp_path / "weights.safetensors")) == ["rpn.head.weight"]
    script = (tmp_path / "to_onnx.py").read_text()
    compile(script, "to_onnx.py", "exec")
    assert 'load_file("weights.safetensors")' in script and 'dynamic_axes={name: {0: "detections"}' in script
    facts = json.loads((tmp_path / "model.json").read_text())
    assert len(facts["outputs"]) == outputs and facts["categories"][0]["name"] == "red solid"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (fcos.get_config(), r"^got a model of the family 'dense'; expected 'rcnn' for ONNX"),
        (embedmask.get_config(), r"^got a model of the family 'dense'"),
        (
            maskx_rcnn.get_config("size=tiny,data=shapes"),
            r"is not built with model.backbone.width = 16 \(expected 64\)",
        ),
        (as_torchvision(maskx_rcnn.get_config("mlp=light")), r"Mask R-CNN cannot express .*mlp = 'light' \(expected"),
        (mask_rcnn.get_config(), r"Mask R-CNN cannot express model\..*convention = 'detectron2'"),
    ],
)
def test_what_cannot_go_to_onnx_is_refused_in_one_line(run, tmp_path, config, message):
    with pytest.raises(ValueError, match=message) as caught:
        onnx.write(dataclasses.replace(run, config=config), tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
