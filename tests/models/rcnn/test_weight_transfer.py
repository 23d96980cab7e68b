"""T and the mask branch against a NumPy transcription of the released code (SPEC 2.1 to 2.3)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.models.rcnn.box_head import BoxHead, ClassWeights
from maskx_jax.models.rcnn.mask_head import MaskHead
from maskx_jax.models.rcnn.weight_transfer import ClassAgnosticWeights, MaskWeights, WeightTransfer
from tests.reference import weight_transfer as reference

CLASSES, HIDDEN, CHANNELS = 5, 8, 6
# Pooled features of three regions and their labels.
POOLED = np.random.RandomState(5).randn(3, 4, 4, 5).astype(np.float32)
LABELS = np.array([5, 1, 3], np.int32)
# As many labels as classes: T makes a row for each class.
ALL = jnp.arange(CLASSES + 1)[None]


def class_weights() -> ClassWeights:
    rng = np.random.RandomState(0)
    return ClassWeights(
        jnp.asarray(rng.randn(CLASSES + 1, HIDDEN), jnp.float32),
        jnp.asarray(rng.randn(CLASSES + 1, 4 * HIDDEN), jnp.float32),
    )


VARIANTS = [
    (source, num_layers, activation)
    for source in ("cls", "box", "cls+box", "embedding")
    for num_layers in (1, 2, 3)
    for activation in ("leaky_relu", "relu", "none")
]


def perturbed(variables, seed=1):
    """Add noise to the parameters, for the initial biases are 0 and the initial MLP nearly so."""
    rng = np.random.RandomState(seed)
    noisy = jax.tree.map(lambda x: x + jnp.asarray(0.1 * rng.randn(*x.shape), x.dtype), variables["params"])
    return {**variables, "params": noisy}


@pytest.mark.parametrize(("source", "num_layers", "activation"), VARIANTS)
def test_transfer_equals_the_transcription(source, num_layers, activation):
    transfer = WeightTransfer(CLASSES, CHANNELS, source, num_layers, activation, embedding_size=7)
    rows = class_weights()
    variables = perturbed(transfer.init(jax.random.key(1), rows, ALL))
    (weights, bias), own = transfer.apply(variables, rows, ALL)
    np.testing.assert_array_equal(own, ALL)
    w_det = reference.detection_weights(
        np.asarray(rows.classification),
        np.asarray(rows.boxes).reshape(4 * (CLASSES + 1), HIDDEN),
        source,
        variables.get("frozen", {}).get("embedding"),
    )
    expected = reference.transfer(w_det, variables["params"], num_layers, activation)
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-5)
    assert (bias == 0).all()


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_initial_kernels_are_scaled_one_by_one(num_layers):
    plain, small = (
        WeightTransfer(CLASSES, CHANNELS, num_layers=num_layers, init_scale=scale).init(
            jax.random.key(1), class_weights(), ALL
        )["params"]
        for scale in (1.0, 0.25)
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(0.25 * x, y, rtol=1e-6), plain, small)
    assert all(np.std(layer["kernel"]) > 0.1 for layer in plain.values())


@functools.cache
def mask_branch(mlp):
    """Return a mask head with parameters, and its jitted application."""
    head = MaskHead(CHANNELS, num_convs=2, resolution=4, mlp=mlp, mlp_channels=3)
    no_weights = MaskWeights(jnp.zeros((CLASSES + 1, CHANNELS)), jnp.zeros(CLASSES + 1))
    variables = head.init(jax.random.key(2), jnp.asarray(POOLED), jnp.asarray(LABELS), no_weights)
    return perturbed(variables, seed=2), jax.jit(head.apply)


@pytest.mark.parametrize("mlp", ["none", "paper", "light"])
@pytest.mark.parametrize(("source", "num_layers", "activation"), VARIANTS)
def test_mask_logits_from_transferred_weights_with_the_mlp_equal_the_transcription(source, num_layers, activation, mlp):
    box_head = BoxHead(CLASSES, hidden=HIDDEN)
    detection = perturbed(box_head.init(jax.random.key(0), jnp.asarray(POOLED)[None]), seed=3)
    rows = box_head.apply(detection, jnp.asarray(POOLED)[None]).class_weights
    transfer = WeightTransfer(CLASSES, CHANNELS, source, num_layers, activation, embedding_size=7, cpu=True)
    # Three regions are fewer than the classes: T makes a row for each of them.
    labels = jnp.asarray(LABELS)[None]
    transfer_variables = perturbed(transfer.init(jax.random.key(1), rows, labels), seed=4)
    variables, apply = mask_branch(mlp)
    weights, own = transfer.apply(transfer_variables, rows, labels)
    assert len(weights.weights) == 3
    logits = apply(variables, jnp.asarray(POOLED), own[0], weights)

    cls_score_w, bbox_pred_w = (
        np.asarray(detection["params"][name]["kernel"]).T for name in ("classification", "boxes")
    )
    embedding = transfer_variables.get("frozen", {}).get("embedding")
    w_det = reference.detection_weights(cls_score_w, bbox_pred_w, source, embedding)
    w_seg = reference.transfer(w_det, transfer_variables["params"], num_layers, activation)
    expected = reference.mask_logits(POOLED, LABELS, w_seg, variables["params"], 2, mlp)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_random_embeddings_have_about_unit_length_and_a_zero_background_row():
    transfer = WeightTransfer(80, CHANNELS, "embedding")
    table = transfer.init(jax.random.key(0), class_weights(), ALL)["frozen"]["embedding"]
    assert table.shape == (81, 300) and (table[0] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(table[1:], axis=1), 1.0, atol=0.2)


def test_box_weights_are_grouped_by_class_in_the_order_dx_dy_dw_dh():
    head = BoxHead(CLASSES, hidden=HIDDEN)
    pooled = jnp.ones((1, 2, 7, 7, 3))
    variables = head.init(jax.random.key(0), pooled)
    kernel = np.asarray(variables["params"]["boxes"]["kernel"])
    predictions = head.apply(variables, pooled)
    assert predictions.class_weights.boxes.shape == (CLASSES + 1, 4 * HIDDEN)
    for label in range(CLASSES + 1):
        for k in range(4):
            row = predictions.class_weights.boxes[label, k * HIDDEN : (k + 1) * HIDDEN]
            np.testing.assert_array_equal(row, kernel[:, 4 * label + k])
    # The same order makes the predictions themselves.
    x = np.maximum(np.ones((1, 147)) @ np.asarray(variables["params"]["fc6"]["kernel"]), 0)
    x = np.maximum(x @ np.asarray(variables["params"]["fc7"]["kernel"]), 0)
    np.testing.assert_allclose(predictions.deltas.of_regions[0, 0, 3, 2], (x @ kernel)[0, 14], rtol=1e-4)


def test_class_agnostic_weights_are_the_same_for_every_class():
    module = ClassAgnosticWeights(CLASSES, CHANNELS)
    arguments = class_weights(), ALL
    (weights, bias), _ = module.apply(module.init(jax.random.key(0), *arguments), *arguments)
    assert weights.shape == (CLASSES + 1, CHANNELS) and bias.shape == (CLASSES + 1,)
    assert (weights == weights[0]).all() and float(jnp.std(weights[0])) < 0.01


@pytest.mark.parametrize("labels", [ALL, jnp.asarray(LABELS)[None]], ids=["of classes", "of regions"])
@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("source", ["cls", "box", "cls+box"])
def test_gradient_reaches_just_the_inputs_it_may(source, stop_gradient, labels):
    transfer = WeightTransfer(CLASSES, CHANNELS, source, stop_gradient=stop_gradient, cpu=True)
    variables = transfer.init(jax.random.key(1), class_weights(), labels)
    gradient = jax.grad(lambda rows: (transfer.apply(variables, rows, labels)[0].weights ** 2).sum())(class_weights())
    for name, leaf in (("cls", gradient.classification), ("box", gradient.boxes)):
        assert (jnp.abs(leaf).max() > 0) == (not stop_gradient and name in source)


def test_rows_of_regions_cost_nothing_for_the_other_classes():
    transfer = WeightTransfer(3000, 256, cpu=True)
    rows = ClassWeights(jnp.zeros((3001, 64)), jnp.zeros((3001, 256)))
    labels = jnp.zeros((2, 10), int)
    variables = transfer.init(jax.random.key(1), rows, labels)
    flops = jax.jit(transfer.apply).lower(variables, rows, labels).compile().cost_analysis()["flops"]
    assert flops < 2 * 2 * 20 * 256 * (320 + 256)
