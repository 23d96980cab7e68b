"""Where there are many classes, the deltas of those asked for: what the table of all of them says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.distributed.mesh import make_mesh
from maskx_jax.models.rcnn import box_head
from maskx_jax.models.rcnn.box_head import BoxHead
from maskx_jax.structures import GroundTruth, Proposals, RoiTargets
from tests.models.build import tiny_model

CLASSES, REGIONS, IMAGES = 1203, 24, 8
HEAD = BoxHead(CLASSES, hidden=16, resolution=2, score_threshold=0.0005, pre_nms_top_k=50, max_detections=20)


@pytest.fixture(scope="module")
def case():
    """Parameters, features of regions, and what they are trained on."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 200, (IMAGES, REGIONS, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 90, (IMAGES, REGIONS, 2))], axis=-1).astype(np.float32)
    pooled = rng.normal(size=(IMAGES, REGIONS, 2, 2, 8)).astype(np.float32)
    variables = HEAD.init(jax.random.key(0), jnp.asarray(pooled))
    # Large enough that boxes and scores differ by class.
    layers = variables["params"]
    for name, scale in (("classification", 0.5), ("boxes", 0.5)):
        layers[name] = {part: rng.normal(0, scale, value.shape) for part, value in layers[name].items()}
    rois = RoiTargets(
        boxes=boxes,
        labels=rng.integers(0, CLASSES + 1, (IMAGES, REGIONS)),
        gt_index=rng.integers(0, 5, (IMAGES, REGIONS)),
        foreground=rng.uniform(size=(IMAGES, REGIONS)) < 0.8,
        valid=np.ones((IMAGES, REGIONS), bool),
    )
    gt = GroundTruth(boxes[:, :5], None, None, None, None, None, None)
    return jax.tree.map(jnp.asarray, (variables, pooled, rois, gt))


def of_each_form(monkeypatch, function, *arguments):
    """Return the compiled program and the results of a function with all deltas, and with those asked for."""
    forms = []
    for least in (CLASSES + 2, CLASSES + 1):
        monkeypatch.setattr(box_head, "MANY_CLASSES", least)
        compiled = jax.jit(lambda *arguments: function(*arguments)).lower(*arguments).compile()
        forms.append((compiled.as_text(), compiled(*arguments)))
    return forms


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_losses_and_gradients_are_those_of_the_table(case, monkeypatch, dtype):
    variables, pooled, rois, gt = case
    head = HEAD.clone(dtype=dtype)

    def total(variables):
        losses = head.losses(head.apply(variables, pooled), rois, gt)
        return losses["box_class"].value() + losses["box"].value()

    (_, (expected, slopes)), (_, (found, found_slopes)) = of_each_form(
        monkeypatch, jax.value_and_grad(total), variables
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Sums of gradients in bfloat16 are rounded in another order.
    tolerance = 1e-4 if dtype == jnp.float32 else 2e-2
    for one, other in zip(jax.tree.leaves(found_slopes), jax.tree.leaves(slopes), strict=True):
        assert np.linalg.norm(other) > 0
        assert np.linalg.norm(one - other) < tolerance * np.linalg.norm(other)


@pytest.mark.parametrize("devices", [1, 8])
def test_detections_are_those_of_the_table(case, monkeypatch, devices):
    variables, pooled, rois, _ = case
    proposals = Proposals(rois.boxes, jnp.zeros((IMAGES, REGIONS)), rois.valid)

    def detect(variables, pooled, proposals):
        return HEAD.detect(HEAD.apply(variables, pooled), proposals, jnp.full((IMAGES, 2), 300.0))

    if devices == 1:
        (_, expected), (_, found) = of_each_form(monkeypatch, detect, variables, pooled, proposals)
    else:
        with jax.set_mesh(make_mesh()):
            (_, expected), (_, found) = of_each_form(monkeypatch, detect, variables, pooled, proposals)
    assert expected.valid.all()
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.boxes, expected.boxes, rtol=1e-5, atol=1e-3)


def test_the_table_is_not_computed(case, monkeypatch):
    variables, pooled, rois, gt = case

    def losses(variables):
        return HEAD.losses(HEAD.apply(variables, pooled), rois, gt)["box"].value()

    (table, _), (chosen, _) = of_each_form(monkeypatch, jax.grad(losses), variables)
    shape = f"{REGIONS},{4 * (CLASSES + 1)}]"
    assert shape in table and shape not in chosen


def test_a_head_of_convolutions_predicts_from_the_mean_of_what_they_return():
    head = BoxHead(5, body="conv", conv_channels=(8, 12))
    pooled = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 7, 7, 4)), jnp.float32)
    variables = head.init(jax.random.key(0), pooled)
    params = variables["params"]
    assert params.keys() == {"conv1", "conv1_norm", "conv2", "conv2_norm", "classification", "boxes"}
    assert params["conv2"]["kernel"].shape == (3, 3, 8, 12) and "bias" not in params["conv2"]

    x = pooled.reshape(6, 7, 7, 4)
    for name, layer in (("conv1", {"groups": 2, "channels": 8}), ("conv2", {"groups": 3, "channels": 12})):
        x = jax.lax.conv_general_dilated(
            x, params[name]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        groups = x.reshape(6, 49, layer["groups"], -1)
        mean, deviation = (f(groups, axis=(1, 3), keepdims=True) for f in (jnp.mean, jnp.std))
        x = ((groups - mean) / jnp.sqrt(deviation**2 + 1e-5)).reshape(6, 7, 7, layer["channels"])
        x = jnp.maximum(x * params[f"{name}_norm"]["scale"] + params[f"{name}_norm"]["bias"], 0)
    found = head.apply(variables, pooled)
    expected = x.reshape(2, 3, 49, 12).mean(2) @ params["classification"]["kernel"]
    np.testing.assert_allclose(found.logits, expected, atol=1e-5)
    assert found.class_weights.classification.shape == (6, 12) and found.class_weights.boxes.shape == (6, 48)
    on_one_cpu = head.clone(cpu=True).apply(variables, pooled)
    np.testing.assert_allclose(on_one_cpu.logits, found.logits, atol=1e-5)


def test_channels_that_group_norm_cannot_divide_are_refused():
    with pytest.raises(ValueError, match=r"^rcnn\.box_head\.conv_channels has 9; expected what GroupNorm divides"):
        tiny_model(box_head__body="conv", box_head__conv_channels=(8, 9))
    # Of another body they are not used.
    tiny_model(box_head__conv_channels=(8, 9))
