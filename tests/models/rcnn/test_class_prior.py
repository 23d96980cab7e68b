"""The mask branch sees where in a region its class is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.models.build import build
from maskx_jax.models.rcnn.box_head import BoxPredictions, ClassWeights, Deltas
from maskx_jax.ops.class_activation import add_activations
from tests.models.build import numpy_variables, shapes_batch, tiny_config, tiny_model
from tests.ops.collectives import collectives

KEYS = jax.random.split(jax.random.key(7), 2)
CONV = {"box_head__body": "conv", "box_head__conv_channels": (16, 24), "mask_head__mlp": "none"}
ON = {**CONV, "class_prior": True}


@pytest.fixture(scope="module")
def batch():
    return shapes_batch()


@functools.cache
def compiled(model):
    """Compile once for all tests of a model: (losses by name, the gradient of the mask loss, detections)."""

    def losses(variables, batch):
        means = model.apply(variables, batch, KEYS, method="loss_means")
        return {name: mean.value() for name, mean in means.items()}

    def mask_loss(params, variables, batch):
        return losses({**variables, "params": params}, batch)["mask"]

    def detect(variables, batch):
        return model.apply(variables, batch.images, batch.image_sizes, method="detect")

    return jax.jit(losses), jax.jit(jax.grad(mask_loss)), jax.jit(detect)


def predictions_of(labels, num_classes=5, channels=6, seed=0):
    """Return predictions of regions whose logits are those of the mean of their maps."""
    rng = np.random.default_rng(seed)
    maps = jnp.asarray(rng.normal(size=(*labels.shape, 7, 7, channels)), jnp.float32)
    rows = jnp.asarray(rng.normal(size=(num_classes + 1, channels)), jnp.float32)
    logits = jnp.einsum("brc,kc->brk", maps.mean((2, 3)), rows)
    return BoxPredictions(logits, Deltas(logits, None), ClassWeights(rows, rows), maps)


def test_the_mean_over_a_region_is_its_logit_before_the_range_is_made_one():
    labels = jnp.array([[3, 1, 5], [2, 2, 0]])
    predictions = predictions_of(labels)
    found = predictions.activations(labels)
    values = jnp.einsum("brhwc,brc->brhw", predictions.maps, predictions.class_weights.classification[labels])
    np.testing.assert_allclose(
        values.mean((2, 3)), jnp.take_along_axis(predictions.logits, labels[..., None], 2)[..., 0], atol=1e-5
    )
    lowest, highest = (f(values, axis=(2, 3), keepdims=True) for f in (jnp.min, jnp.max))
    np.testing.assert_allclose(found, (values - lowest) / (highest - lowest), atol=1e-4)
    # Only the row of the own class: with thousands of them too.
    jaxpr = jax.make_jaxpr(lambda p: p.activations(labels))(predictions_of(labels, num_classes=3000))
    sizes = [var.aval.size for equation in jaxpr.eqns for var in equation.outvars]
    assert max(sizes) < 3000 * 7


@pytest.mark.slow
@pytest.mark.parametrize("predictor", ["class_agnostic", "transfer"])
def test_the_mask_loss_reaches_the_maps_and_never_the_detection_weights(batch, predictor):
    model = tiny_model(mask_predictor=predictor, **ON)
    variables = numpy_variables(model)
    gradient = compiled(model)[1](variables["params"], variables, batch)
    for layer in ("classification", "boxes"):
        for part in gradient["box_head"][layer].values():
            assert (part == 0).all()
    assert all(jnp.abs(gradient["box_head"][f"conv{i}"]["kernel"]).max() > 0 for i in (1, 2))
    # Without the prior nothing of the box head is moved.
    plain = tiny_model(mask_predictor=predictor, **CONV)
    gradient = compiled(plain)[1](variables["params"], variables, batch)
    assert all((part == 0).all() for part in jax.tree.leaves(gradient["box_head"]))


@pytest.mark.slow
def test_it_changes_masks_and_nothing_else(batch):
    plain, prior = (compiled(tiny_model(**fields)) for fields in (CONV, ON))
    variables = numpy_variables(tiny_model(**ON))
    one, other = plain[0](variables, batch), prior[0](variables, batch)
    assert one.keys() == other.keys()
    for name, loss in one.items():
        if name == "mask":
            assert abs(other[name] - loss) > 1e-4
        else:
            np.testing.assert_allclose(other[name], loss, rtol=1e-5, err_msg=name)
    one, other = plain[2](variables, batch), prior[2](variables, batch)
    np.testing.assert_allclose(other.boxes, one.boxes, atol=1e-3)
    np.testing.assert_array_equal(other.labels, one.labels)
    assert jnp.abs(other.masks - one.masks)[one.valid].max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [{}, {"mask_head__train_on": "gt_boxes"}, {"box_supervision__enabled": True}, {"dtype": "bfloat16"}],
    ids=str,
)
@pytest.mark.parametrize("size", ["tiny", "tiny_c4"])
def test_it_is_there_however_masks_are_trained(batch, size, fields):
    config = tiny_config(f"size={size},data=shapes,mlp=none,class_prior=yes", **fields)
    if size == "tiny":
        config.model.rcnn.box_head.body = "conv"
    model = build(config.model, 6)
    variables = jax.eval_shape(lambda v: v, numpy_variables(model))

    def count(apply):
        return str(jax.make_jaxpr(apply)(variables)).count("reduce_min")

    config.model.rcnn.class_prior = False
    off = build(config.model, 6)
    added = []
    for how in ("loss_means", "detect"):
        arguments = (batch, KEYS) if how == "loss_means" else (batch.images, batch.image_sizes)
        counts = [count(lambda v, m=m: m.apply(v, *arguments, method=how)) for m in (model, off)]  # noqa: B023
        added.append(counts[0] - counts[1])
    # Once for each set of regions whose masks are predicted.
    assert added == [1 + ("box_supervision__enabled" in fields) + ("mask_head__train_on" in fields), 1]


@pytest.mark.slow
def test_the_regions_of_the_box_head_have_the_activations_that_their_boxes_have(batch):
    model = tiny_model(**ON)
    variables, boxes = numpy_variables(model), batch.ground_truth.boxes
    labels, used = batch.ground_truth.labels, batch.ground_truth.valid

    @functools.partial(jax.jit, static_argnums=1)
    def logits(variables, given):
        def apply(model):
            pyramid = model.pyramid(batch.images, batch.image_sizes)
            predictions = model.box_predictions(pyramid, boxes, used)
            activations = predictions.activations(labels) if given else None
            regions = boxes, labels, used, predictions.class_weights
            return model.region_predictions(model.mask_branch, pyramid, *regions, activations=activations)

        return model.apply(variables, method=apply)

    given, computed = logits(variables, True), logits(variables, False)
    np.testing.assert_allclose(given[used], computed[used], atol=1e-5)


@pytest.mark.slow
def test_the_boxes_of_detections_have_their_masks_and_one_cpu_the_same(batch):
    model = tiny_model(**ON, box_head__score_threshold=0.2)
    variables = numpy_variables(model)
    found = compiled(model)[2](variables, batch)
    assert found.valid.any()
    again = jax.jit(lambda v, *regions: model.apply(v, *regions, method="predict_masks"))(
        variables, batch.images, batch.image_sizes, found.boxes, found.labels, found.valid
    )
    np.testing.assert_allclose(again[found.valid], found.masks[found.valid], atol=1e-5)
    on_cpu = compiled(tiny_model(cpu=True, **ON, box_head__score_threshold=0.2))[2](variables, batch)
    np.testing.assert_allclose(on_cpu.masks[found.valid], found.masks[found.valid], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("cpu", [False, True])
@pytest.mark.parametrize("fields", [{}, CONV])
def test_without_it_nothing_is_computed_for_it(batch, cpu, fields):
    def program(**more):
        model = tiny_model(cpu=cpu, **fields, **more)
        apply = functools.partial(model.apply, method="loss_means")
        return str(jax.make_jaxpr(lambda v: apply(v, batch, KEYS))(numpy_variables(model)))

    assert "reduce_min" not in program(class_prior=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"^rcnn\.box_head\.body is 'mlp'; expected for class_prior 'conv', or 'mean' on C4"),
        ({**CONV, "mask_predictor": "none"}, r"^rcnn\.class_prior is True; expected False for mask_predictor = 'none'"),
    ],
    ids=str,
)
def test_where_there_is_no_map_or_no_mask_it_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**fields, class_prior=True)


def test_the_activations_of_an_mlp_are_refused():
    labels = jnp.zeros((1, 2), int)
    with pytest.raises(ValueError, match="got a box head of body 'mlp'"):
        predictions_of(labels)._replace(maps=None).activations(labels)


def test_a_batch_split_over_devices_sends_nothing():
    labels = jnp.asarray(np.random.default_rng(0).integers(0, 6, (8, 4)))
    predictions = predictions_of(labels)

    def added(maps, labels, features):
        return jax.vmap(add_activations)(features, predictions._replace(maps=maps).activations(labels))

    assert not collectives(added, predictions.maps, labels, jnp.zeros((8, 4, 14, 14, 3)))
