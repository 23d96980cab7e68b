"""One map at stride 16, and the last stage of the ResNet as the head of all regions."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import maskx_rcnn
from maskx_jax.models.backbones.resnet_c4 import ResNetC4
from maskx_jax.models.build import build
from tests.models.build import NUM_CLASSES, numpy_variables, set_fields, shapes_batch


def tiny_c4(cpu=None, **fields):
    config = maskx_rcnn.get_config("size=tiny_c4,data=shapes,mlp=light")
    set_fields(config, **fields)
    return build(config.model, NUM_CLASSES, cpu)


def test_heads_share_what_res5_makes_of_a_region():
    with pytest.raises(ValueError, match=r"^rcnn.box_head.resolution is 14; expected 12, as of the other heads"):
        tiny_c4(mask_head__resolution=12)


@pytest.mark.parametrize(("train_on", "in_training"), [("proposals", [(2, 64)]), ("gt_boxes", [(2, 64), (2, 8)])])
def test_res5_runs_once_in_training_and_again_for_the_boxes_that_are_found(train_on, in_training):
    model = tiny_c4(mask_head__train_on=train_on)
    variables, batch = numpy_variables(model), shapes_batch()
    shapes = []

    def spy(backbone, pooled, used):
        shapes.append(used.shape)
        return region_features(backbone, pooled, used)

    region_features = ResNetC4.region_features
    with mock.patch.object(ResNetC4, "region_features", spy):
        key = jax.random.key(0)
        losses = jax.eval_shape(lambda v, b: model.apply(v, b, key, method="losses"), variables, batch)[1]
        assert shapes == in_training and "mask" in losses
        shapes.clear()
        images = batch.images, batch.image_sizes
        found = jax.eval_shape(lambda v, *images: model.apply(v, *images, method="detect"), variables, *images)
    assert shapes == [(2, 100), (2, 20)] and found.masks.shape == (2, 20, 14, 14)


def test_transfer_sees_the_weights_of_the_wider_predictor():
    # Class and box rows of 512 channels.
    assert numpy_variables(tiny_c4())["params"]["mask_weights"]["fc1"]["kernel"].shape == (5 * 512, 64)


def test_one_cpu_computes_the_same_for_the_regions_that_are_used():
    fields = {"stage_sizes": (1, 1, 1, 1), "width": 4, "norm": "group"}
    backbone, on_cpu = (ResNetC4(**fields, cpu=cpu) for cpu in (False, True))
    pooled = jax.random.normal(jax.random.key(0), (2, 32, 6, 6, 64))
    # Chunks of 16: one is left out whole.
    used = jnp.arange(64).reshape(2, 32) < 40
    shapes = jax.eval_shape(lambda: backbone.init(jax.random.key(1), pooled, used, method="region_features"))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda shape: jnp.asarray(rng.normal(0.1, 0.2, shape.shape), jnp.float32), shapes)

    def loss(variables, backbone):
        features = backbone.apply(variables, pooled, used, method="region_features")
        assert features.shape == (2, 32, 3, 3, 128)
        return jnp.where(used[..., None, None, None], features, 0.0).sum()

    step = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3 * np.abs(other).max()),
        step(variables, on_cpu),
        step(variables, backbone),
    )
