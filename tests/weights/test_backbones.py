"""ResNeXt, and ResNet with GroupNorm, under the names of several code bases."""

import functools
import re

import jax
import numpy as np
import pytest
from flax import traverse_util

from benchmarks.parameters import make_parameters, resnet_shapes
from configs import mask_rcnn
from maskx_jax.coco.categories import Categories
from maskx_jax.models.build import build, initialize
from maskx_jax.runs.loading import Loaded
from maskx_jax.weights.files import WeightFile
from maskx_jax.weights.layouts import check_evidence, recognize
from maskx_jax.weights.pretrained import FileWeights, apply_conventions, take_over
from maskx_jax.weights.recipe import recipe
from tests.models.build import tiny_config

STAGE_SIZES = (2, 1, 1, 1)
MEAN = {"detectron": 102.9801, "detectron2": 103.53, "fcos_core": 102.9801, "torchvision": 123.675}


def torchvision_names(groups, with_statistics=True):
    """Return a backbone with 32 channels in its stem, as GroupNorm needs them, by torchvision's and timm's names."""
    arrays = make_parameters(resnet_shapes("", STAGE_SIZES, 32, groups, 8 if groups > 1 else None))
    return {name: array for name, array in arrays.items() if with_statistics or "running" not in name}


def detectron2_names(arrays):
    def rename(name):
        name = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", name)
        name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
        return (
            re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
            .replace("downsample.0", "shortcut")
            .replace("downsample.1", "shortcut.norm")
        )

    return {rename(name): array for name, array in arrays.items()}


def detectron_names(arrays):
    """Return Detectron's blobs; BatchNorm is folded, and GroupNorm has a name of its own."""
    branches = {"1": "branch2a", "2": "branch2b", "3": "branch2c"}
    norm = "bn" if "bn1.running_var" in arrays else "gn"

    def module(name):
        if name in ("conv1", "bn1"):
            return name if name == "conv1" else "res_conv1_bn" if norm == "bn" else "conv1_gn"
        stage, block, layer = re.fullmatch(r"layer(\d)\.(\d)\.(.*)", name).groups()
        branch = "branch1" if "downsample" in layer else branches[layer[-1]]
        is_norm = layer.startswith("bn") or layer == "downsample.1"
        return f"res{int(stage) + 1}_{block}_{branch}" + (f"_{norm}" if is_norm else "")

    blobs = {"fc1000_w": np.zeros((1000, 8), np.float32)}
    for name, array in arrays.items():
        theirs, _, field = name.rpartition(".")
        if field == "running_var":
            scale = arrays[f"{theirs}.weight"] / np.sqrt(array + 1e-5)
            blobs[f"{module(theirs)}_s"] = scale
            blobs[f"{module(theirs)}_b"] = arrays[f"{theirs}.bias"] - arrays[f"{theirs}.running_mean"] * scale
        elif norm == "gn" and field == "bias":
            blobs[f"{module(theirs)}_b"] = array
        elif "conv" in theirs or theirs.endswith("downsample.0"):
            blobs[f"{module(theirs)}_w"] = array
        elif norm == "gn":
            blobs[f"{module(theirs)}_s"] = array
    return blobs


@functools.cache
def shapes_of(norm, groups):
    config = tiny_config(backbone__stage_sizes=STAGE_SIZES, backbone__width=32, backbone__norm=norm)
    config.model.backbone.update(groups=groups, group_width=8 if groups > 1 else None)
    return jax.eval_shape(lambda: initialize(build(config.model, 3), jax.random.key(0)))


def taken_over(arrays, groups):
    """Return the backbone's variables, and the fields of the model."""
    config = tiny_config(backbone__stage_sizes=STAGE_SIZES, backbone__width=32)
    file = WeightFile("model.pkl", arrays)
    layout = recognize(file)
    check_evidence(file, layout)
    weights = FileWeights(file, layout)
    apply_conventions(config, weights.conventions)
    variables = take_over(shapes_of(config.model.backbone.norm, groups), weights, ("a", "b", "c"))
    flat = traverse_util.flatten_dict(variables, sep="/")
    return {path: value for path, value in flat.items() if "/backbone/" in path}, config.model, layout.name


@pytest.mark.parametrize(("names", "code_base"), [(detectron2_names, "detectron2"), (detectron_names, "detectron")])
def test_resnext_is_the_same_under_all_names_and_has_the_pixels_of_its_code_base(names, code_base):
    arrays = torchvision_names(groups=4)
    expected, fields, name = taken_over(arrays, 4)
    assert (name, fields.pixels.channel_order, fields.pixels.std[0]) == ("torchvision_classifier", "rgb", 58.395)
    actual, fields, name = taken_over(names(arrays), 4)
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(actual[path], value, rtol=1e-6, atol=1e-7, err_msg=path)
    assert actual["params/backbone/res3_block0/conv2/kernel"].shape == (3, 3, 16, 64)
    assert name == f"{code_base}_resnext" and not fields.backbone.stride_in_1x1
    assert (fields.pixels.channel_order, fields.pixels.mean[0]) == ("bgr", MEAN[code_base])
    # detectron2 divides by the deviation, of channels in their order; Detectron has none.
    assert fields.pixels.std == ((57.375, 57.12, 58.395) if code_base == "detectron2" else (1.0, 1.0, 1.0))


def test_group_norm_is_read_where_there_are_no_statistics():
    arrays = torchvision_names(groups=1, with_statistics=False)
    expected, fields, name = taken_over(arrays, 1)
    assert name == "timm_group_norm"
    assert (fields.backbone.norm, fields.pixels.channel_order, fields.pixels.mean[0]) == ("group_32", "rgb", 123.675)
    np.testing.assert_array_equal(expected["params/backbone/stem_norm/scale"], arrays["bn1.weight"])
    np.testing.assert_array_equal(
        expected["params/backbone/res2_block0/shortcut_norm/bias"], arrays["layer1.0.downsample.1.bias"]
    )
    actual, fields, name = taken_over(detectron_names(arrays), 1)
    assert name == "detectron_group_norm"
    assert (fields.backbone.norm, fields.backbone.stride_in_1x1, fields.pixels.mean[0]) == ("group_32", False, 102.9801)
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(actual[path], value, err_msg=path)


def test_the_deviation_of_a_detectron2_file_must_be_that_of_its_network():
    arrays = detectron2_names(torchvision_names(groups=4))
    stored = {"pixel_mean": np.array([103.53, 116.28, 123.675]), "pixel_std": np.array([57.375, 57.12, 58.395])}
    assert taken_over(arrays | stored, 4)[2] == "detectron2_resnext"
    with pytest.raises(ValueError, match=r"pixel_std is \[1.0, 1.0, 1.0\]; with preset detectron2_resnext"):
        taken_over(arrays | {"pixel_std": np.ones(3)}, 4)


def test_groups_of_another_number_do_not_fit():
    with pytest.raises(ValueError, match=r"does not fit the model: \d+ that do not fit, such as backbone/"):
        taken_over(torchvision_names(groups=4), 1)


def test_the_recipe_builds_a_resnext_in_torchvision():
    config = mask_rcnn.get_config("backbone=x101_64x4d")
    text = recipe(Loaded(config, None, {}, Categories((1,), ("a",)), 0), "model.safetensors")
    assert "ResNet(Bottleneck, [3, 4, 23, 3], groups=64, width_per_group=4)" in text
