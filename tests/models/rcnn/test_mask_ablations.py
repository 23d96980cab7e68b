"""The other mask heads of Mask R-CNN's paper: a softmax over the classes in every pixel, and fully connected layers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.models.build import build, initialize
from maskx_jax.models.rcnn.mlp_mask_head import MLPMaskHead
from maskx_jax.models.rcnn.multinomial import MultinomialMaskHead
from maskx_jax.models.rcnn.weight_transfer import MaskWeights
from maskx_jax.ops.mask_targets import average_mask
from maskx_jax.structures import RoiTargets
from tests.models.build import shapes_batch, tiny_config

MULTINOMIAL = {"mask_predictor": "multinomial", "mask_head__mlp": "none"}
MLP = {"mask_predictor": "class_specific", "mask_head__mlp": "none", "mask_head__body": "mlp"}
LABELS = jnp.array([2, 1, 3, 0])


def model_of(num_classes=6, **fields):
    return build(tiny_config(**fields).model, num_classes)


@functools.cache
def multinomial():
    """Return a head, what it predicts for four regions, and the shares of all classes there, computed otherwise."""
    rng = np.random.default_rng(0)
    head = MultinomialMaskHead(channels=8, num_convs=1, resolution=3)
    pooled = jnp.asarray(rng.normal(size=(4, 3, 3, 5)), jnp.float32)
    weights = MaskWeights(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 8), (4,))))

    @jax.jit
    def predict(pooled, weights):
        variables = head.init(jax.random.key(0), pooled, LABELS, weights)
        predicted, seen = head.apply(
            variables, pooled, LABELS, weights, capture_intermediates=lambda _, name: name == "features"
        )
        return predicted, seen["intermediates"]["features"][0]

    predicted, features = predict(pooled, weights)
    logits = np.asarray(features, np.float64) @ np.asarray(weights.weights).T + np.asarray(weights.bias)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return head, predicted, shares


def test_classes_compete_for_each_pixel():
    head, predicted, shares = multinomial()
    assert predicted.shape == (4, 2, 6, 6)
    for region, label in enumerate(LABELS.tolist()):
        np.testing.assert_allclose(np.exp(predicted[region, 0]), shares[region, :, :, 0], rtol=1e-4)
        np.testing.assert_allclose(np.exp(predicted[region, 1]), shares[region, :, :, label], rtol=1e-4)
    np.testing.assert_allclose(head.probabilities(predicted[None])[0], np.exp(predicted[:, 1]), rtol=1e-6)


def test_the_loss_is_that_of_the_own_class_on_the_object_and_of_background_elsewhere():
    head, predicted, shares = multinomial()
    gt = shapes_batch(1).ground_truth
    objects = jnp.flatnonzero(gt.has_mask[0] & gt.valid[0], size=2)
    index = objects[jnp.array([[0, 1, 0, 1]])]
    supervised = jnp.array([[True, True, False, True]])
    rois = RoiTargets(gt.boxes[0][index] + 3.0, LABELS[None], index, supervised, supervised)
    loss = head.losses(predicted[None], rois, supervised, gt)["mask"]
    targets = np.asarray(average_mask(gt.masks[0], gt.mask_frames[0], index[0], rois.boxes[0], 6))
    assert 0 < targets.mean() < 1
    expected = [
        -np.mean(target * np.log(share[..., label]) + (1 - target) * np.log(share[..., 0]))
        for target, share, label, used in zip(targets, shares, LABELS.tolist(), supervised[0], strict=True)
        if used
    ]
    assert loss.value() == pytest.approx(np.mean(expected), rel=1e-4)
    nothing = head.losses(predicted[None], rois, jnp.zeros_like(supervised), gt)["mask"]
    assert nothing.value() == 0


@pytest.mark.parametrize(("num_layers", "num_masks"), [(2, 4), (3, 1)])
def test_hidden_layers_see_the_whole_region_and_end_in_a_mask_for_each_class_or_for_all(num_layers, num_masks):
    head = MLPMaskHead(channels=7, num_convs=num_layers, resolution=3, num_masks=num_masks)
    pooled = np.random.default_rng(1).normal(size=(4, 3, 3, 5)).astype(np.float32)
    variables = head.init(jax.random.key(1), jnp.asarray(pooled), LABELS)
    params = jax.tree.map(np.asarray, variables["params"])
    assert set(params) == {f"fc{index + 1}" for index in range(num_layers)} | {"output"}
    x = pooled.reshape(4, -1)
    for index in range(num_layers):
        x = np.maximum(x @ params[f"fc{index + 1}"]["kernel"] + params[f"fc{index + 1}"]["bias"], 0)
    logits = (x @ params["output"]["kernel"] + params["output"]["bias"]).reshape(4, num_masks, 6, 6)
    own = [mask[label if num_masks > 1 else 0] for mask, label in zip(logits, LABELS.tolist(), strict=True)]
    np.testing.assert_allclose(head.apply(variables, jnp.asarray(pooled), LABELS), own, atol=1e-6)


@pytest.mark.parametrize("fields", [MULTINOMIAL, MLP, MLP | {"mask_predictor": "class_agnostic"}], ids=str)
def test_a_detector_with_it_has_losses_and_masks(fields):
    model, batch = model_of(**fields), shapes_batch()
    variables = jax.eval_shape(lambda: initialize(model, jax.random.key(0)))
    assert ("mask_weights" in variables["params"]) == (fields["mask_predictor"] == "multinomial")
    _, losses = jax.eval_shape(lambda v: model.apply(v, batch, jax.random.key(0), method="losses"), variables)
    assert losses["mask"].shape == ()
    gt = batch.ground_truth
    given = (batch.images, batch.image_sizes, gt.boxes, gt.labels, gt.valid)
    masks = jax.eval_shape(lambda v: model.apply(v, *given, method="predict_masks"), variables)
    found = jax.eval_shape(lambda v: model.apply(v, *given[:2], method="detect"), variables)
    assert masks.shape[:2] == gt.valid.shape and masks.shape[2:] == found.masks.shape[2:] == (28, 28)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (MULTINOMIAL | {"mask_head__mlp": "light"}, "mask_head.mlp is 'light'; expected 'none' for a multinomial"),
        (MLP | {"mask_predictor": "transfer"}, "'transfer' and mask_head.mlp 'none'; expected class_specific or"),
        (MLP | {"mask_head__mlp": "light"}, "'class_specific' and mask_head.mlp 'light'; expected .* and none, for"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields, message):
    with pytest.raises(ValueError, match=rf"^rcnn\.\S+ is .*{message}|{message}"):
        model_of(**fields)


def test_regions_whose_object_has_no_mask_are_not_trained_on():
    head = MLPMaskHead(num_samples=4)
    gt = shapes_batch(1).ground_truth
    index = jnp.array([[0, 1, 0, 1]])
    rois = RoiTargets(gt.boxes[0][index], LABELS[None], index, jnp.ones((1, 4), bool), jnp.ones((1, 4), bool))
    hidden = dataclasses.replace(gt, has_mask=gt.has_mask.at[:, 0].set(False).at[:, 1].set(True))
    chosen, used = head.regions(rois, hidden)
    assert chosen.gt_index.tolist() == [[1, 1, 0, 0]] and used.tolist() == [[True, True, False, False]]
