"""T against a NumPy transcription of the paper (SPEC 2.1)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.models.box_head import BoxHead, ClassWeights
from maskx_jax.models.weight_transfer import ClassAgnosticWeights, WeightTransfer

CLASSES, HIDDEN, CHANNELS = 5, 8, 6


def class_weights() -> ClassWeights:
    rng = np.random.RandomState(0)
    return ClassWeights(
        jnp.asarray(rng.randn(CLASSES + 1, HIDDEN), jnp.float32),
        jnp.asarray(rng.randn(CLASSES + 1, 4 * HIDDEN), jnp.float32),
    )


def slow_transfer(x: np.ndarray, params, num_layers: int, activation: str) -> np.ndarray:
    act = {
        "leaky_relu": lambda v: np.where(v > 0, v, 0.1 * v),
        "relu": lambda v: np.maximum(v, 0),
        "none": lambda v: v,
    }[activation]
    for layer in range(1, num_layers + 1):
        x = x @ np.asarray(params[f"fc{layer}"]["kernel"]) + np.asarray(params[f"fc{layer}"]["bias"])
        if layer < num_layers:
            x = act(x)
    return x


@pytest.mark.parametrize("source", ["cls", "box", "cls+box", "embedding"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("activation", ["leaky_relu", "relu", "none"])
def test_transfer_equals_the_transcription(source, num_layers, activation):
    transfer = WeightTransfer(CLASSES, CHANNELS, source, num_layers, activation, embedding_size=7)
    rows = class_weights()
    variables = transfer.init(jax.random.key(1), rows)
    params = jax.tree.map(lambda x: x + 0.1, variables["params"])
    weights, bias = transfer.apply({**variables, "params": params}, rows)
    inputs = {
        "cls": rows.classification,
        "box": rows.boxes,
        "cls+box": np.concatenate([rows.classification, rows.boxes], axis=1),
        "embedding": variables.get("frozen", {}).get("embedding"),
    }[source]
    np.testing.assert_allclose(weights, slow_transfer(np.asarray(inputs), params, num_layers, activation), atol=1e-5)
    assert (bias == 0).all()


def test_random_embeddings_have_about_unit_length_and_a_zero_background_row():
    transfer = WeightTransfer(80, CHANNELS, "embedding")
    table = transfer.init(jax.random.key(0), class_weights())["frozen"]["embedding"]
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
    np.testing.assert_allclose(predictions.deltas[0, 0, 3, 2], (x @ kernel)[0, 14], rtol=1e-4)


def test_class_agnostic_weights_are_the_same_for_every_class():
    module = ClassAgnosticWeights(CLASSES, CHANNELS)
    weights, bias = module.apply(module.init(jax.random.key(0), class_weights()), class_weights())
    assert weights.shape == (CLASSES + 1, CHANNELS) and bias.shape == (CLASSES + 1,)
    assert (weights == weights[0]).all() and float(jnp.std(weights[0])) < 0.01


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("source", ["cls", "box", "cls+box"])
def test_gradient_reaches_just_the_inputs_it_may(source, stop_gradient):
    transfer = WeightTransfer(CLASSES, CHANNELS, source, stop_gradient=stop_gradient)
    variables = transfer.init(jax.random.key(1), class_weights())
    gradient = jax.grad(lambda rows: (transfer.apply(variables, rows).weights ** 2).sum())(class_weights())
    for name, leaf in (("cls", gradient.classification), ("box", gradient.boxes)):
        assert (jnp.abs(leaf).max() > 0) == (not stop_gradient and name in source)
