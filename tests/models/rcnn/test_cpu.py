"""How one CPU computes: convolutions by matrix products, and nothing for regions that need no mask."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.distributed.mesh import make_mesh
from maskx_jax.models.build import build
from maskx_jax.training.optimizer import make_optimizer
from maskx_jax.training.steps import make_state, make_train_step
from tests.models.build import numpy_variables, shapes_batch, tiny_config, tiny_model

FIELDS = {"mask_head__num_samples": 32, "box_head__score_threshold": 0.75}


def test_it_is_chosen_by_the_devices_of_the_process(monkeypatch):
    def chosen():
        model = build(tiny_config().model, 1)
        branch = model.mask_branch
        return {part.cpu for part in (model.backbone, model.fpn, model.rpn, branch, branch.head)}

    assert jax.device_count() > 1 and chosen() == {False}
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert chosen() == {True}


@pytest.mark.slow
def test_regions_are_left_out_only_there():
    batch = shapes_batch()

    def program(cpu):
        model = tiny_model(cpu=cpu, **FIELDS)
        keys = jax.random.split(jax.random.key(0), 2)
        return str(jax.make_jaxpr(lambda v: model.apply(v, batch, keys, method="loss_means"))(numpy_variables(model)))

    assert "_map_chunks" in program(True) and "_map_chunks" not in program(False)


@pytest.mark.slow
def test_two_steps_and_the_detections_are_the_same_within_rounding():
    batch = shapes_batch()
    gt = batch.ground_truth
    # The second image has no mask: there is something to leave out.
    has_mask = gt.has_mask & (jnp.arange(2) == 0)[:, None]
    batch = dataclasses.replace(batch, ground_truth=dataclasses.replace(gt, has_mask=has_mask))
    optimizer = make_optimizer(
        lambda step: 1e-3, name="sgd", momentum=0.9, weight_decay=1e-4, bias_learning_rate_factor=2.0, clip_norm=None
    )
    mesh = make_mesh(jax.devices()[:1])

    def run(cpu):
        model = tiny_model(cpu=cpu, **FIELDS)
        state = make_state(jax.tree.map(jnp.asarray, numpy_variables(model)), optimizer, (), ema=False)
        step = make_train_step(model, optimizer, mesh, seed=0)
        losses = []
        for _ in range(2):
            state, now = step(state, batch)
            losses.append(now)
        # With the parameters before the steps, which are sure of something.
        detect = jax.jit(lambda v: model.apply(v, batch.images, batch.image_sizes, method="detect"))
        found = detect(numpy_variables(model))
        masks = jnp.where(found.valid[:, :, None, None], found.masks, 0.0)
        return losses, state.params, dataclasses.replace(found, masks=masks)

    expected, actual = run(False), run(True)
    assert expected[2].valid.any() and not expected[2].valid.all()
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4), actual, expected)
