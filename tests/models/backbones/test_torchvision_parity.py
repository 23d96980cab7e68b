"""ResNeXt, and ResNet with GroupNorm, beside torchvision's: see tests/golden/make_backbones.py."""

import jax
import pytest
from safetensors.numpy import save_file

from configs import mask_rcnn
from maskx_jax.models.build import build, initialize
from maskx_jax.weights.pretrained import apply_conventions, open_weights, take_over
from tests.golden import backbone_inputs as inputs
from tests.golden.comparing import error_of_map, golden

BOUND = 1e-4


@pytest.mark.parametrize("name", inputs.GROUPS)
def test_maps_are_those_of_torchvision(name, tmp_path, record_property):
    save_file(inputs.parameters(name), tmp_path / "model.safetensors")
    weights = open_weights(tmp_path / "model.safetensors")
    assert weights.layout.name == ("timm_group_norm" if name == "r50_gn" else "torchvision_classifier")
    config = mask_rcnn.get_config(f"backbone={name}")
    config.model.backbone.stage_sizes = inputs.STAGE_SIZES
    config.model.rcnn.box_head.hidden = 8
    apply_conventions(config, weights.conventions)
    # As one CPU computes it: its grouped convolutions are ours.
    model = build(config.model, 3, cpu=True)
    fresh = jax.eval_shape(lambda: initialize(model, jax.random.key(0)))
    variables = take_over(fresh, weights, ("a", "b", "c"))
    own = {collection: tree["backbone"] for collection, tree in variables.items() if "backbone" in tree}
    maps = jax.jit(model.backbone.clone(parent=None, name=None).apply)(own, inputs.image())
    for level, values in maps.items():
        error = error_of_map(f"{name}/{level}", values, golden("backbones"))
        record_property(f"res{level}", error)
        assert error < BOUND, level
