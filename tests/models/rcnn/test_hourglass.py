"""Mask heads with an hourglass: the published layers, what they compute, and detectors that have them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from configs import mask_rcnn, maskx_rcnn, paper
from maskx_jax.models.build import build, initialize
from maskx_jax.models.rcnn.box_head import ClassWeights
from maskx_jax.models.rcnn.hourglass import Hourglass
from maskx_jax.models.rcnn.mask_head import MaskHead
from maskx_jax.models.rcnn.weight_transfer import MaskWeights
from maskx_jax.training.optimizer import num_parameters
from tests.models.build import numpy_variables, shapes_batch, tiny_model
from tests.reference import hourglass as reference

# Levels of 4, 2 and 1 cells; shortcuts that change the channels and that do not.
SMALL = {"channels": 8, "stage_channels": (8, 8, 12), "stage_blocks": (1, 2, 2), "resolution": 4, "body": "hourglass"}
FIELDS = {f"mask_head__{name}": value for name, value in SMALL.items()} | {"mask_head__mlp": "none"}
WEIGHTS = MaskWeights(jnp.asarray(np.random.default_rng(2).normal(size=(3, 8)), jnp.float32), jnp.arange(3.0))
LABELS = jnp.array([2, 1, 2])
POOLED = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 5)), jnp.float32)


@functools.cache
def parameters():
    shapes = jax.eval_shape(MaskHead(**SMALL).init, jax.random.key(0), POOLED, LABELS, WEIGHTS)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0.3, 0.4, x.shape), x.dtype), shapes)


def shapes_of(config, classes=80):
    """Return the shapes of the parameters of a config's mask branch."""
    branch = build(config.model, classes).mask_branch
    side, channels = branch.resolution, config.model.rcnn.fpn.channels
    pooled, labels = jnp.zeros((1, side, side, channels)), jnp.ones(1, int)
    rows = MaskWeights(jnp.zeros((classes + 1, branch.head.channels)), jnp.zeros(classes + 1))
    hidden = config.model.rcnn.box_head.hidden
    class_weights = ClassWeights(jnp.zeros((classes + 1, hidden)), jnp.zeros((classes + 1, 4 * hidden)))
    key = jax.random.key(0)
    return (
        jax.eval_shape(branch.head.init, key, pooled, labels, rows)["params"],
        jax.eval_shape(branch.weights.init, key, class_weights, labels[None])["params"],
    )


def num_layers(params):
    """Return the convolutions on the longest way through an hourglass."""
    paths = traverse_util.flatten_dict(params["hourglass"], sep="/")
    return sum(path.endswith("kernel") and not re.search("^past|shortcut", path) for path in paths)


# 5.7 and 23.6 million with BatchNorm, whose scales and shifts are as many as GroupNorm's.
@pytest.mark.parametrize(("layers", "expected"), [(20, 5_682_112), (52, 23_606_080)])
def test_the_published_heads_have_their_parameters_and_layers(layers, expected):
    head, row = shapes_of(mask_rcnn.get_config(f"mask_head=hg{layers},predictor=class_agnostic"))
    assert num_parameters(head) == expected and num_parameters(row) == 65
    small, transfer = shapes_of(paper.get_config(f"row=beyond/transfer_gt_boxes_hg{layers},size=tiny"))
    assert num_layers(head) == num_layers(small) == layers
    # T has as many outputs as the head has channels.
    assert transfer["fc2"]["kernel"].shape == (16, 16)


def test_maps_halve_on_each_level_down_to_one_cell():
    network = Hourglass(64, (128, 128, 192, 192, 192, 256), (2, 2, 2, 2, 2, 4))
    seen = jax.eval_shape(
        lambda x: network.init_with_output(
            jax.random.key(0), x, capture_intermediates=True, mutable=["params", "intermediates"]
        ),
        jnp.zeros((7, 32, 32, 256)),
    )[1]["intermediates"]
    found = {name: seen[name]["__call__"][0].shape[1:] for name in seen if name != "__call__"}
    channels = network.stage_channels
    for level in range(5):
        side = 32 >> level
        assert found[f"past{level}_block1"] == (side, side, channels[level])
        assert found[f"down{level}_block1"] == (side // 2, side // 2, channels[level + 1])
        assert found[f"up{level}_block0"] == (side // 2, side // 2, channels[level + 1])
        assert found[f"up{level}_block1"] == (side // 2, side // 2, channels[level])
    assert found["level5_block3"] == (1, 1, 256) and found["entry_block0"] == found["output"] == (32, 32, 128)


@pytest.mark.parametrize("cpu", [False, True])
def test_logits_equal_the_transcription(cpu):
    head = MaskHead(**SMALL, cpu=cpu)
    logits = jax.jit(head.apply)(parameters(), POOLED, LABELS, WEIGHTS)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), parameters()["params"])
    expected = [
        np.einsum("chw,c->hw", reference.features(np.asarray(region), params, 3), WEIGHTS.weights[label])
        + WEIGHTS.bias[label]
        for region, label in zip(POOLED, LABELS.tolist(), strict=True)
    ]
    assert logits.shape == (3, 8, 8) and np.std(expected) > 1
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_recomputing_the_blocks_changes_no_gradient():
    def loss(params, head):
        return (head.apply(params, POOLED, LABELS, WEIGHTS) ** 2).mean()

    kept, recomputed = (MaskHead(**SMALL, remat=remat) for remat in (False, True))
    gradient = jax.grad(loss)
    jaxprs = [str(jax.make_jaxpr(gradient, static_argnums=1)(parameters(), head)) for head in (kept, recomputed)]
    assert ["remat" in jaxpr for jaxpr in jaxprs] == [False, True]
    first, second = (jax.jit(gradient, static_argnums=1)(parameters(), head) for head in (kept, recomputed))
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(first))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), second, first)


def test_a_few_ellipses_are_learned_by_heart():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:8, :8] / 8 - 0.44
    middles, radii = rng.uniform(-0.2, 0.2, (2, 6, 1, 1)), rng.uniform(0.15, 0.5, (2, 6, 1, 1))
    targets = (((x - middles[0]) / radii[0]) ** 2 + ((y - middles[1]) / radii[1]) ** 2 < 1).astype(np.float32)
    pooled = targets.reshape(6, 4, 2, 4, 2).mean((2, 4))[..., None] + 0.5 * rng.normal(size=(6, 4, 4, 5))
    head, labels, pooled = MaskHead(**SMALL), jnp.full(6, 2), jnp.asarray(pooled, jnp.float32)
    optimizer = optax.adam(0.01)

    @jax.jit
    def step(params, state):
        def loss(params):
            logits = head.apply({"params": params["head"]}, pooled, labels, params["rows"])
            return optax.sigmoid_binary_cross_entropy(logits, targets).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        update, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, update), state, value

    params = {"head": jax.jit(head.init)(jax.random.key(0), pooled, labels, WEIGHTS)["params"], "rows": WEIGHTS}
    state, values = optimizer.init(params), []
    for _ in range(60):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[0] > 0.4 and values[-1] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("predictor", ["class_agnostic", "transfer"])
def test_a_detector_with_it_learns_in_every_parameter(predictor):
    model, batch = tiny_model(mask_predictor=predictor, mask_head__train_on="gt_boxes", **FIELDS), shapes_batch()
    variables = numpy_variables(model)
    trained = {name: variables["params"][name] for name in ("mask_head", "mask_weights")}

    @jax.jit
    @jax.grad
    def gradient(trained, variables):
        params = {**variables["params"], **trained}
        return model.apply({**variables, "params": params}, batch, jax.random.key(0), method="losses")[1]["mask"]

    for path, leaf in traverse_util.flatten_dict(gradient(trained, variables), sep="/").items():
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


@pytest.mark.parametrize(("module", "layers"), [(mask_rcnn, 20), (maskx_rcnn, 52)])
def test_masks_of_the_variants_have_64_by_64_pixels(module, layers):
    config = module.get_config(f"mask_head=hg{layers}")
    head = config.model.rcnn.mask_head
    assert (head.train_on, head.mlp, head.channels) == ("gt_boxes", "none", 64)
    model, batch = build(config.model, 6), shapes_batch()
    variables = jax.eval_shape(lambda: initialize(model, jax.random.key(0)))
    gt = batch.ground_truth
    given = (batch.images, batch.image_sizes, gt.boxes, gt.labels, gt.valid)
    masks = jax.eval_shape(lambda v: model.apply(v, *given, method="predict_masks"), variables)
    found = jax.eval_shape(lambda v: model.apply(v, *given[:2], method="detect"), variables)
    assert masks.shape[:2] == gt.valid.shape and masks.shape[2:] == found.masks.shape[2:] == (64, 64)


def test_the_row_of_all_classes_begins_large_behind_an_hourglass_alone():
    rows = ClassWeights(jnp.zeros((7, 1)), jnp.zeros((7, 4)))
    plain, large = (
        tiny_model(mask_predictor="class_agnostic", **fields).mask_branch.weights.init(
            jax.random.key(0), rows, jnp.ones((1, 1), int)
        )
        for fields in ({}, FIELDS)
    )
    assert np.abs(plain["params"]["kernel"]).max() < 0.01 < 0.5 < np.std(large["params"]["kernel"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stage_blocks": (1, 2)}, r"stage_blocks is \(1, 2\); expected 3 values, as many as stage_channels has"),
        ({"channels": 9}, "channels has 9; expected for an hourglass what GroupNorm divides"),
        ({"stage_channels": (8, 9, 12)}, "stage_channels has 9; expected for an hourglass what GroupNorm divides"),
        ({"resolution": 14}, "resolution is 14; expected a multiple of 4 for an hourglass of 3 stages"),
    ],
)
def test_what_does_not_fit_an_hourglass_is_refused(fields, message):
    with pytest.raises(ValueError, match=rf"^rcnn\.mask_head\.{message}"):
        tiny_model(**FIELDS | {f"mask_head__{name}": value for name, value in fields.items()})


def test_regions_that_cannot_be_halved_as_often_are_refused():
    # On C4 the last stage of the backbone halves them before.
    with pytest.raises(ValueError, match="got regions of 6 x 6 cells; expected multiples of 4"):
        jax.eval_shape(MaskHead(**SMALL).init, jax.random.key(0), jnp.zeros((3, 6, 6, 5)), LABELS, WEIGHTS)


def test_the_papers_mlp_branch_is_refused_beside_an_hourglass():
    with pytest.raises(ValueError, match="variants mask_head=hg20 and mlp=paper exclude each other"):
        maskx_rcnn.get_config("mlp=paper,mask_head=hg20")
    assert maskx_rcnn.get_config("mlp=light,mask_head=hg20").model.rcnn.mask_head.mlp == "light"
