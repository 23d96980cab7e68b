"""Regions are pooled by the operation that the config names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.models.build import build
from maskx_jax.models.rcnn.pooling import OPERATIONS, RoIAlign
from tests.models.build import tiny_config


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_batch_is_pooled_image_by_image(operation):
    rng = np.random.default_rng(0)
    maps = {level: jnp.asarray(rng.normal(size=(2, 64 >> level, 64 >> level, 3)), jnp.float32) for level in (2, 3)}
    boxes = jnp.asarray([[[3.0, 5.0, 30.0, 41.0]], [[10.0, 0.0, 33.0, 60.0]]])
    pooled = jax.jit(lambda maps, boxes: RoIAlign(operation, "torchvision", 2)(maps, boxes, 2))(maps, boxes)
    for i in range(2):
        alone = OPERATIONS[operation][0]({level: m[i] for level, m in maps.items()}, boxes[i], 2, 2, "torchvision")
        np.testing.assert_allclose(pooled[i], alone, rtol=1e-5, atol=1e-6)


def test_the_config_names_it():
    for operation in OPERATIONS:
        assert build(tiny_config(roi_align__operation=operation).model, 1).roi_align.operation == operation
    with pytest.raises(ValueError, match=r"^rcnn.roi_align.sampling_ratio is 0; expected 1 or more for roi_warp_max$"):
        build(tiny_config(roi_align__operation="roi_warp_max", roi_align__sampling_ratio=0).model, 1)
