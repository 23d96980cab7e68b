import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from configs import mask_rcnn, maskx_rcnn
from maskx_jax.distributed.mesh import global_batch, make_mesh, replicated
from maskx_jax.inference import make_mask_step
from maskx_jax.models.build import build, initialize
from maskx_jax.models.layers import Linear32
from maskx_jax.models.rcnn.mask_head import MaskHead
from maskx_jax.models.rcnn.weight_transfer import MaskWeights
from maskx_jax.structures import Batch, RoiTargets
from maskx_jax.training.optimizer import num_parameters
from tests.models.build import NUM_CLASSES, numpy_variables, shapes_batch, tiny_model

KEY = jax.random.key(7)


@functools.cache
def compiled(model):
    """Compile once for all tests of a model: (losses, their gradients by name, detect)."""

    def loss(params, variables, batch, name):
        return model.apply({**variables, "params": params}, batch, KEY, method="losses")[1][name]

    return (
        jax.jit(lambda v, b: model.apply(v, b, KEY, method="losses")),
        jax.jit(jax.grad(loss), static_argnums=3),
        jax.jit(lambda v, images, sizes: model.apply(v, images, sizes, method="detect")),
    )


def losses_of(model, variables, batch):
    return compiled(model)[0](variables, batch)


def gradient_of(model, variables, batch, name: str):
    return compiled(model)[1](variables["params"], variables, batch, name)


def detect(model, images, sizes):
    return compiled(model)[2](numpy_variables(model), images, sizes)


def with_ground_truth(batch: Batch, **fields) -> Batch:
    return dataclasses.replace(batch, ground_truth=dataclasses.replace(batch.ground_truth, **fields))


@pytest.fixture(scope="module")
def batch() -> Batch:
    return shapes_batch()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (mask_rcnn.get_config(), 44_347_573),
        (mask_rcnn.get_config("predictor=class_agnostic"), 44_327_013),
        (maskx_rcnn.get_config("mlp=none"), 45_703_524),
        (maskx_rcnn.get_config("mlp=paper"), 203_056_244),
        (maskx_rcnn.get_config("mlp=paper,backbone=r101"), 221_996_148),
        # Detectron's; detectron2 has no row for background in the box and mask predictors, 4 * 2,049 + 257 less.
        (mask_rcnn.get_config("backbone=r50_c4"), 35_909_612 + 8_453),
        (mask_rcnn.get_config("backbone=r101_c4"), 35_918_065 + 18_939_904),
        (maskx_rcnn.get_config("mlp=paper,backbone=r50_c4"), 35_918_065 - 81 * 257 + 2_687_488 + 9_834_692),
    ],
    ids=[
        *("mask_rcnn", "class_agnostic", "transfer", "transfer_mlp", "transfer_mlp_r101"),
        *("c4", "c4_r101", "c4_transfer_mlp"),
    ],
)
def test_number_of_parameters_is_the_published_one(config, expected):
    model = build(config.model, 80)
    variables = jax.eval_shape(lambda: initialize(model, KEY))
    assert num_parameters(variables["params"]) == expected


@pytest.mark.slow
@pytest.mark.parametrize("predictor", ["class_specific", "class_agnostic", "transfer"])
def test_initial_losses_are_those_of_ignorance(batch, predictor):
    model = tiny_model(mask_predictor=predictor, mask_head__mlp="none")
    variables = jax.jit(lambda key: initialize(model, key))(KEY)
    _, losses = losses_of(model, variables, batch)
    assert losses["rpn_class"] == pytest.approx(np.log(2), rel=0.05)
    assert losses["box_class"] == pytest.approx(np.log(NUM_CLASSES + 1), rel=0.1)
    # T's output starts near 0 because the detection weights do. MSRAFill starts class-specific weights too large for
    # ln 2, by design.
    if predictor != "class_specific":
        assert losses["mask"] == pytest.approx(np.log(2), rel=0.02)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_gradient_of_the_mask_loss_stops_at_the_detection_weights(batch, stop_gradient):
    model = tiny_model(weight_transfer__stop_gradient=stop_gradient)
    gradient = gradient_of(model, numpy_variables(model), batch, "mask")
    for name in ("classification", "boxes"):
        through_t = jnp.abs(gradient["box_head"][name]["kernel"])
        assert (through_t == 0).all() if stop_gradient else through_t.max() > 0, name
    # Everything else that makes the mask learns either way.
    for learning in (gradient["mask_weights"]["fc1"], gradient["mask_head"]["conv1"], gradient["backbone"]["stem"]):
        assert jnp.abs(learning["kernel"]).max() > 0


@pytest.mark.slow
def test_without_any_mask_the_mask_loss_and_its_gradient_are_exactly_zero(batch):
    model = tiny_model()
    variables = numpy_variables(model)
    unmasked = with_ground_truth(batch, has_mask=jnp.zeros_like(batch.ground_truth.has_mask))
    total, losses = losses_of(model, variables, unmasked)
    assert losses["mask"] == 0.0
    assert jnp.isfinite(total)
    for path, leaf in traverse_util.flatten_dict(gradient_of(model, variables, unmasked, "mask"), sep="/").items():
        assert (leaf == 0).all(), path


@pytest.mark.slow
def test_masks_that_may_not_be_used_change_nothing(batch):
    model = tiny_model()
    variables = numpy_variables(model)
    gt = batch.ground_truth
    some = gt.has_mask & (gt.labels % 2 == 0)
    assert some.any() and (gt.has_mask & ~some).any()
    noise = jnp.asarray(np.random.RandomState(0).randint(0, 256, gt.masks.shape, np.uint8))
    changed = jnp.where(some[..., None, None], gt.masks, noise)
    _, expected = losses_of(model, variables, with_ground_truth(batch, has_mask=some))
    _, losses = losses_of(model, variables, with_ground_truth(batch, has_mask=some, masks=changed))
    assert losses == expected
    _, all_masks = losses_of(model, variables, with_ground_truth(batch, masks=changed))
    assert all_masks["mask"] != expected["mask"]


@pytest.mark.slow
def test_images_without_objects_train_as_negatives(batch):
    model = tiny_model()
    variables = numpy_variables(model)
    empty = with_ground_truth(batch, valid=jnp.zeros_like(batch.ground_truth.valid))
    _, losses = losses_of(model, variables, empty)
    assert losses["rpn_box"] == losses["box"] == losses["mask"] == 0.0
    assert losses["rpn_class"] > 0 and losses["box_class"] > 0
    gradient = gradient_of(model, variables, empty, "box_class")
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_more_ground_truth_slots_change_no_loss():
    # With more samples than candidates every candidate is drawn, so that the losses do not depend on the draw.
    model = tiny_model(rpn__num_samples=20_000, box_head__num_samples=1_000, box_head__foreground_fraction=1.0)
    variables = numpy_variables(model)
    _, few = losses_of(model, variables, shapes_batch(num_slots=8))
    _, many = losses_of(model, variables, shapes_batch(num_slots=13))
    for name in ("rpn_class", "rpn_box", "box_class", "box"):
        np.testing.assert_allclose(few[name], many[name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_detections_do_not_depend_on_the_padding_of_the_canvas(batch):
    model = tiny_model(box_head__score_threshold=0.0)
    size = jnp.full((2, 2), 96.0)
    image = jnp.where((jnp.arange(128) < 96)[:, None, None] & (jnp.arange(128) < 96)[None, :, None], batch.images, 0)
    other = jnp.where((jnp.arange(128) < 96)[:, None, None] & (jnp.arange(128) < 96)[None, :, None], batch.images, 77)
    jax.tree.map(np.testing.assert_array_equal, detect(model, image, size), detect(model, other, size))


@pytest.mark.slow
def test_detections_lie_inside_their_images_and_come_best_first(batch):
    model = tiny_model(box_head__score_threshold=0.0)
    sizes = jnp.array([[128.0, 128.0], [100.0, 90.0]])
    found = detect(model, batch.images, sizes)
    assert found.valid.any(axis=1).all()
    for i, (height, width) in enumerate(sizes):
        boxes = found.boxes[i][found.valid[i]]
        assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        scores = found.scores[i][found.valid[i]]
        assert (jnp.diff(scores) <= 0).all()
        assert set(np.unique(found.labels[i][found.valid[i]])) <= set(range(1, NUM_CLASSES + 1))
    assert ((found.masks >= 0) & (found.masks <= 1)).all()


@pytest.mark.slow
def test_detections_of_an_image_do_not_depend_on_the_rest_of_the_batch(batch):
    model = tiny_model(box_head__score_threshold=0.0)
    together = detect(model, batch.images, batch.image_sizes)
    # Beside another image, at another place in the batch.
    order = jnp.array([1, 1])
    other = detect(model, batch.images[order], batch.image_sizes[order])
    for place in (0, 1):
        np.testing.assert_array_equal(together.labels[1], other.labels[place])
        np.testing.assert_allclose(together.boxes[1], other.boxes[place], atol=1e-3)
        np.testing.assert_allclose(together.masks[1], other.masks[place], atol=1e-4)


@pytest.mark.slow
def test_bfloat16_computes_near_float32_and_keeps_losses_float32(batch):
    full, half = tiny_model(), tiny_model(dtype="bfloat16")
    variables = numpy_variables(full)
    _, expected = losses_of(full, variables, batch)
    _, losses = losses_of(half, variables, batch)
    for name, loss in losses.items():
        assert loss.dtype == jnp.float32
        # The RoIs differ a little, since the proposals do.
        assert loss == pytest.approx(float(expected[name]), rel=0.2, abs=0.02), name


def test_bfloat16_rounds_inputs_and_weights_but_no_logit_or_delta():
    # On fixed regions and features that bfloat16 holds: what is left is the order of the sums.
    rng = np.random.RandomState(0)

    def exact(*shape):
        return np.asarray(jnp.asarray(rng.randn(*shape), jnp.bfloat16), np.float64)

    features, kernel = exact(2, 5, 64), exact(64, 12)
    for kernel_size in ((), (1, 1)):
        layer = Linear32(12, jax.nn.initializers.zeros, jnp.bfloat16, kernel_size)
        params = {"kernel": jnp.asarray(kernel.reshape(*kernel_size, 64, 12), jnp.float32), "bias": jnp.full(12, 0.1)}
        outputs, *_ = layer.apply({"params": params}, jnp.asarray(features, jnp.bfloat16))
        assert outputs.dtype == jnp.float32
        np.testing.assert_allclose(outputs, features @ kernel + 0.1, rtol=0, atol=1e-4)
    # And all that predicts is such a layer.
    model = tiny_model(dtype="bfloat16")
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8), jax.ShapeDtypeStruct((1, 2), jnp.float32)
    _, state = jax.eval_shape(
        lambda variables, *images: model.apply(
            variables, *images, method="detect", capture_intermediates=True, mutable=["intermediates"]
        ),
        numpy_variables(model),
        *images,
    )
    calls = {
        "/".join(path[:-1]): leaf[0]
        for path, leaf in traverse_util.flatten_dict(state["intermediates"]).items()
        if path[-1] == "__call__"
    }
    for name in ("rpn/objectness", "rpn/deltas", "box_head/classification", "box_head/boxes"):
        assert calls[name][0].dtype == jnp.float32, name
    assert calls["box_head/fc7"].dtype == jnp.bfloat16


@pytest.mark.parametrize("predictor", ["class_specific", "transfer"])
def test_mask_head_uses_the_row_of_each_regions_own_class(predictor):
    head = MaskHead(channels=4, num_convs=1)
    x = jnp.asarray(np.random.RandomState(0).randn(3, 14, 14, 4), jnp.float32)
    weights = MaskWeights(
        jnp.asarray(np.random.RandomState(1).randn(5, 4), jnp.float32), jnp.arange(5, dtype=jnp.float32)
    )
    labels = jnp.array([4, 1, 2])
    variables = head.init(KEY, x, labels, weights)
    logits = head.apply(variables, x, labels, weights)
    changed = MaskWeights(weights.weights.at[1].add(1.0), weights.bias)
    difference = jnp.abs(head.apply(variables, x, labels, changed) - logits).max(axis=(1, 2))
    assert difference[1] > 0 and difference[0] == difference[2] == 0


def test_masks_trained_on_ground_truth_boxes_see_each_object_once_and_no_proposal(batch):
    gt = batch.ground_truth
    gt = gt.replace(is_crowd=gt.is_crowd.at[0, 0].set(True), has_mask=gt.has_mask.at[1, 0].set(False))
    head = MaskHead(train_on="gt_boxes", num_samples=8)
    nothing = RoiTargets(*[jnp.zeros((2, 0))] * 2, jnp.zeros((2, 0), int), *[jnp.zeros((2, 0), bool)] * 2)
    rois, supervised = head.regions(nothing, gt)
    allowed = gt.valid & ~gt.is_crowd & gt.has_mask
    np.testing.assert_array_equal(supervised.sum(axis=1), allowed.sum(axis=1))
    for i in range(2):
        chosen = rois.gt_index[i][supervised[i]]
        np.testing.assert_array_equal(chosen, np.flatnonzero(allowed[i]))
        np.testing.assert_array_equal(rois.boxes[i][supervised[i]], gt.boxes[i][chosen])
        np.testing.assert_array_equal(rois.labels[i][supervised[i]], gt.labels[i][chosen])


def test_masks_are_weighed_by_their_own_objects_weights(batch):
    head, gt = MaskHead(train_on="gt_boxes"), batch.ground_truth
    nothing = RoiTargets(*[jnp.zeros((2, 0))] * 2, jnp.zeros((2, 0), int), *[jnp.zeros((2, 0), bool)] * 2)
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 2, (*gt.valid.shape, 28, 28)), jnp.float32)

    @jax.jit
    def loss(gt):
        rois, supervised = head.regions(nothing, gt)
        # Of the objects, in whatever order they are trained on.
        own = jnp.take_along_axis(logits, rois.gt_index[..., None, None], axis=1)
        return head.losses(own, rois, supervised, gt)["mask"].value()

    half = gt.replace(mask_weight=jnp.full(gt.valid.shape, 0.5))
    np.testing.assert_allclose(loss(half), loss(gt), rtol=1e-6)
    # An object of weight 0 is as one without a mask; others count by their weight.
    first = jnp.arange(gt.valid.shape[1]) == 0
    zero = gt.replace(mask_weight=jnp.where(first, 0.0, jnp.ones(gt.valid.shape)))
    without = loss(gt.replace(has_mask=gt.has_mask & ~first))
    np.testing.assert_allclose(loss(zero), without, rtol=1e-6)
    alone = loss(gt.replace(has_mask=gt.has_mask & first))
    weights = jnp.where(first, 0.25, jnp.ones(gt.valid.shape))
    assert (gt.has_mask & first).sum() == 2
    others = (gt.has_mask & gt.valid & ~gt.is_crowd & ~first).sum()
    expected = (0.25 * 2 * alone + others * without) / (0.25 * 2 + others)
    np.testing.assert_allclose(loss(gt.replace(mask_weight=weights)), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("train_on", ["proposals", "gt_boxes"])
def test_a_residual_mask_head_begins_as_its_first_convolution_and_learns_in_all(batch, train_on):
    deep = tiny_model(mask_head__body="residual", mask_head__num_convs=5, mask_head__train_on=train_on)
    variables = numpy_variables(deep)
    gradient = gradient_of(deep, variables, batch, "mask")["mask_head"]
    assert all(jnp.abs(gradient[f"conv{i}"]["kernel"]).max() > 0 for i in range(1, 6))

    head = MaskHead(channels=4, num_convs=5, body="residual")
    x = jnp.asarray(np.random.RandomState(0).randn(3, 14, 14, 4), jnp.float32)
    weights = MaskWeights(jnp.ones((2, 4)), jnp.zeros(2))
    labels = jnp.ones(3, int)
    variables = head.init(KEY, x, labels, weights)
    params = variables["params"]
    first = {"params": {name: params[name] for name in ("conv1", "deconvolution")}}
    plain = MaskHead(channels=4, num_convs=1)
    np.testing.assert_allclose(
        head.apply(variables, x, labels, weights), plain.apply(first, x, labels, weights), atol=1e-5
    )


def test_a_residual_mask_head_has_an_odd_number_of_convolutions():
    with pytest.raises(ValueError, match=r"rcnn\.mask_head\.num_convs is 4; expected an odd number"):
        tiny_model(mask_head__body="residual", mask_head__num_convs=4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mask_predictor", "transfers"),
        ("weight_transfer__input", "boxes"),
        ("mask_head__mlp", "heavy"),
        ("mask_head__body", "hourglasses"),
        ("mask_head__train_on", "anchors"),
        ("mask_head__targets", "drawn"),
    ],
)
def test_an_unknown_choice_is_named_with_what_exists(field, value, batch):
    with pytest.raises(ValueError, match=f"{value}.*expected one of"):
        model = tiny_model(**{field: value})
        jax.eval_shape(lambda: model.init(KEY, batch, KEY, method="losses"))


def test_a_canvas_that_the_strides_do_not_divide_is_refused():
    images = jax.ShapeDtypeStruct((1, 100, 128, 3), jnp.uint8)
    sizes = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    model = tiny_model()
    with pytest.raises(ValueError, match="canvas of 100 x 128; expected multiples of 32"):
        jax.eval_shape(lambda v, i, s: model.apply(v, i, s, method="detect"), numpy_variables(model), images, sizes)


def test_a_misspelt_field_is_an_error_of_its_own_module():
    config = mask_rcnn.get_config().model.to_dict()
    config["rcnn"]["rpn"]["nms_treshold"] = 0.5
    with pytest.raises(TypeError, match="nms_treshold"):
        build(config, 80)


@pytest.mark.slow
def test_the_boxes_of_detections_have_their_masks(batch):
    model, mesh = tiny_model(), make_mesh(jax.devices()[:2])
    found = detect(model, batch.images, batch.image_sizes)
    boxes, labels, valid = found.boxes[:, 2:9], found.labels[:, 2:9], found.valid[:, 2:9]
    # One image on each device.
    step, variables = make_mask_step(model, mesh), jax.device_put(numpy_variables(model), replicated(mesh))

    def predict(labels):
        return step(variables, *global_batch(mesh, (batch.images, batch.image_sizes, boxes, labels, valid)))

    masks = predict(labels)
    assert valid.all() and found.masks.std() > 0.02 and len(masks.sharding.device_set) == 2
    np.testing.assert_allclose(masks, found.masks[:, 2:9], atol=1e-5)
    # The class of a box says which weights.
    assert np.abs(predict(labels % NUM_CLASSES + 1) - masks).max() > 1e-3
    bare = tiny_model(mask_predictor="none")
    with pytest.raises(ValueError, match="without a mask branch"):
        bare.apply({"params": {}}, batch.images, batch.image_sizes, boxes, labels, valid, method="predict_masks")
