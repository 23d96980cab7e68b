"""Masks learned from boxes, for objects without masks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from maskx_jax.models.rcnn.box_supervision import BoxSupervision
from maskx_jax.ops.box_losses import cover_cells
from maskx_jax.structures import Batch
from tests.models.build import numpy_variables, shapes_batch, tiny_model
from tests.ops.collectives import collectives

KEYS = jax.random.split(jax.random.key(7), 2)
ON = {"box_supervision__enabled": True}
LOSSES = ("mask_projection", "mask_pairwise", "mask_background")


def with_ground_truth(batch: Batch, **fields) -> Batch:
    return dataclasses.replace(batch, ground_truth=dataclasses.replace(batch.ground_truth, **fields))


def partial(batch: Batch) -> Batch:
    """Return the batch with the mask of the first object of each image."""
    has_mask = batch.ground_truth.has_mask
    return with_ground_truth(batch, has_mask=has_mask & (jnp.arange(has_mask.shape[1]) == 0))


@pytest.fixture(scope="module")
def batch() -> Batch:
    return partial(shapes_batch())


@functools.cache
def compiled(model):
    """Compile once for all tests of a model: (losses by name, the gradient of one)."""

    def losses(variables, batch):
        means = model.apply(variables, batch, KEYS, method="loss_means")
        return {name: mean.value() for name, mean in means.items()}

    def loss(params, variables, batch, name):
        return losses({**variables, "params": params}, batch)[name]

    return jax.jit(losses), jax.jit(jax.grad(loss), static_argnums=3)


def gradient_of(model, batch, name):
    variables = numpy_variables(model)
    return compiled(model)[1](variables["params"], variables, batch, name)


@functools.partial(jax.jit, static_argnums=0)
def regions_of(num_samples, batch, keys):
    return BoxSupervision(num_samples=num_samples).regions(batch, keys)


def objects_of(regions, image):
    return np.asarray(regions.gt_index[image][regions.valid[image]])


def test_regions_are_the_widened_boxes_of_objects_without_masks(batch):
    gt = batch.ground_truth
    regions = regions_of(6, batch, KEYS)
    box_only = gt.valid & ~gt.is_crowd & ~gt.has_mask
    assert box_only.any(axis=1).all() and gt.has_mask.any(axis=1).all()
    height, width = batch.image_sizes[0]
    for image in range(2):
        chosen = objects_of(regions, image)
        assert sorted(chosen) == np.flatnonzero(box_only[image]).tolist()
        # Those that are used come first.
        assert regions.valid[image][: len(chosen)].all()
        np.testing.assert_array_equal(regions.labels[image][: len(chosen)], gt.labels[image][chosen])
        boxes, widened = gt.boxes[image][chosen], regions.boxes[image][: len(chosen)]
        half = (boxes[:, 2:] - boxes[:, :2]) / 2
        moved = jnp.concatenate([boxes[:, :2] - widened[:, :2], widened[:, 2:] - boxes[:, 2:]], axis=1)
        assert (moved >= -1e-4).all() and (moved <= 0.2 * jnp.tile(half, 2) + 1e-4).all()
        assert (widened >= 0).all() and (widened <= jnp.array([width, height, width, height])).all()
        # Each side by its own factor, where it is not the image's border.
        assert len(np.unique(moved / jnp.tile(half, 2))) >= 2 * len(chosen)


def test_regions_are_drawn_where_there_are_too_many_and_do_not_depend_on_the_slots(batch):
    keys = jax.random.split(jax.random.key(0), 40)
    alone = jax.tree.map(lambda x: jnp.repeat(x[:1], 40, axis=0), batch)
    gt = batch.ground_truth
    drawn = regions_of(1, with_ground_truth(alone, has_mask=jnp.zeros((40, 8), bool)), keys)
    assert drawn.valid.all() and drawn.boxes.shape == (40, 1, 4)
    assert set(drawn.gt_index[:, 0].tolist()) == set(np.flatnonzero(gt.valid[0] & ~gt.is_crowd[0]))

    few, many = (regions_of(8, partial(shapes_batch(num_slots=n)), KEYS) for n in (8, 13))
    for image in range(2):
        order = [np.argsort(objects_of(regions, image)) for regions in (few, many)]
        used = [
            regions.boxes[image][np.asarray(regions.valid[image])][o]
            for regions, o in zip((few, many), order, strict=True)
        ]
        np.testing.assert_allclose(*used)


@functools.partial(jax.jit, static_argnums=0)
def compute(boxes, logits, regions, batch):
    return {name: mean.value() for name, mean in boxes.losses(logits, regions, batch).items()}


def losses_of(batch, regions, logits, **fields):
    return compute(BoxSupervision(**fields), logits, regions, batch)


@pytest.fixture(scope="module")
def regions(batch):
    return regions_of(6, batch, KEYS)


@pytest.fixture(scope="module")
def logits(regions):
    return jnp.asarray(np.random.default_rng(0).normal(0, 2, (*regions.labels.shape, 14, 14)), jnp.float32)


def test_regions_that_hold_no_object_change_nothing(batch, regions, logits):
    expected = losses_of(batch, regions, logits)
    assert all(loss > 0 for loss in expected.values())
    more = jax.tree.map(lambda x: jnp.concatenate([x, x[:, :3]], axis=1), regions)
    more = dataclasses.replace(more, valid=more.valid.at[:, 6:].set(False))
    found = losses_of(batch, more, jnp.concatenate([logits, 5 - logits[:, :3]], axis=1))
    for name, loss in expected.items():
        np.testing.assert_allclose(found[name], loss, rtol=1e-6)
    for name in expected:
        gradient = jax.jit(jax.grad(lambda z, name=name: losses_of(batch, regions, z)[name]))(logits)
        assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() > 0
        assert (gradient[~regions.valid] == 0).all()


def test_masks_that_are_the_boxes_have_no_projection_loss_and_one_colour_asks_for_one_side(batch, regions, logits):
    gt = batch.ground_truth
    boxes = jnp.take_along_axis(gt.boxes, regions.gt_index[..., None], axis=1)
    start, end = regions.boxes[..., None, :2], regions.boxes[..., None, 2:]
    centres = start + (jnp.arange(14)[:, None] + 0.5) / 14 * (end - start)
    inside = (centres >= boxes[:, :, None, :2]) & (centres <= boxes[:, :, None, 2:])
    filled = inside[:, :, :, None, 1] & inside[:, :, None, :, 0]
    found = losses_of(batch, regions, jnp.where(filled, 60.0, -60.0))
    assert found["mask_projection"] == pytest.approx(0, abs=1e-5)
    # All of a region object: no pair differs, but the shadows are too large.
    full = losses_of(batch, regions, jnp.full_like(logits, 60.0))
    assert full["mask_pairwise"] < 1e-20 and full["mask_projection"] > 0.01
    assert found["mask_background"] == pytest.approx(0, abs=1e-5) and full["mask_background"] == pytest.approx(0.3 * 60)
    # In an image of one colour all neighbours are alike.
    grey = dataclasses.replace(batch, images=jnp.full_like(batch.images, 90))
    half = jnp.broadcast_to(jnp.where(jnp.arange(14) < 7, 60.0, -60.0), logits.shape)
    assert losses_of(grey, regions, half)["mask_pairwise"] > 1
    # Cells that are every second one along each side must not be free of the others: the last layer makes them apart.
    every_second = (jnp.arange(14) % 2 == 0)[:, None] & (jnp.arange(14) % 2 == 0)
    pattern = jnp.broadcast_to(jnp.where(every_second, 60.0, -60.0), logits.shape)
    assert losses_of(grey, regions, pattern)["mask_pairwise"] > 1


def test_a_region_that_has_become_all_object_is_brought_back_by_the_background_alone(batch, regions, logits):
    full = jnp.full_like(logits, 60.0)
    gradients = {
        name: jax.jit(jax.grad(lambda z, name=name: losses_of(batch, regions, z)[name]))(full) for name in LOSSES
    }
    assert jnp.abs(gradients["mask_projection"]).max() < 1e-20 and jnp.abs(gradients["mask_pairwise"]).max() < 1e-20
    gt = batch.ground_truth
    boxes = jnp.take_along_axis(gt.boxes, regions.gt_index[..., None], axis=1)
    rows, columns = jax.vmap(cover_cells, in_axes=(0, 0, None))(boxes, regions.boxes, 14)
    outside = ~(rows[..., :, None] & columns[..., None, :]) & regions.valid[..., None, None]
    np.testing.assert_allclose(gradients["mask_background"], 0.3 * outside / outside.sum(), rtol=1e-6)


def test_factors_of_the_losses(batch, regions, logits):
    plain = losses_of(batch, regions, logits)
    scaled = losses_of(batch, regions, logits, projection_weight=2.0, pairwise_weight=0.0, background_weight=0.6)
    assert scaled["mask_projection"] == pytest.approx(2 * float(plain["mask_projection"]))
    assert scaled["mask_pairwise"] == 0
    assert scaled["mask_background"] == pytest.approx(2 * float(plain["mask_background"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_they_reach_the_weight_transfer_and_never_the_detection_weights(batch, name):
    gradient = gradient_of(tiny_model(**ON), batch, name)
    for layer in ("classification", "boxes"):
        assert (gradient["box_head"][layer]["kernel"] == 0).all()
    for learning in (*gradient["mask_weights"].values(), gradient["mask_head"]["conv1"], gradient["backbone"]["stem"]):
        assert jnp.abs(learning["kernel"]).max() > 0


@pytest.mark.slow
def test_objects_with_masks_train_by_them_alone_and_objects_without_by_their_boxes_alone(batch):
    model, gt = tiny_model(**ON), batch.ground_truth
    everything = with_ground_truth(batch, has_mask=gt.valid)
    nothing = with_ground_truth(batch, has_mask=jnp.zeros_like(gt.valid))
    for case, names in ((everything, LOSSES), (nothing, ("mask",))):
        losses = compiled(model)[0](numpy_variables(model), case)
        for name in ("mask", *LOSSES):
            assert (losses[name] == 0) == (name in names), name
        for name in names:
            for path, leaf in traverse_util.flatten_dict(gradient_of(model, case, name), sep="/").items():
                assert (leaf == 0).all(), path
    # The bits of a mask that may not be used are not looked at.
    noise = jnp.asarray(np.random.RandomState(0).randint(0, 256, gt.masks.shape, np.uint8))
    hidden = with_ground_truth(batch, masks=jnp.where(gt.has_mask[..., None, None], gt.masks, noise))
    apply = compiled(model)[0]
    assert apply(numpy_variables(model), hidden) == apply(numpy_variables(model), batch)


@pytest.mark.slow
@pytest.mark.parametrize("predictor", ["transfer", "class_agnostic"])
def test_all_other_losses_are_what_they_are_without(batch, predictor):
    models = [tiny_model(mask_predictor=predictor, **fields) for fields in ({}, ON)]
    plain, supervised = (compiled(model)[0](numpy_variables(model), batch) for model in models)
    assert supervised.keys() - plain.keys() == set(LOSSES)
    for name, loss in plain.items():
        np.testing.assert_allclose(supervised[name], loss, rtol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("cpu", [False, True])
def test_without_them_nothing_is_computed_for_them(batch, cpu):
    def program(**fields):
        model = tiny_model(cpu=cpu, **fields)
        return str(jax.make_jaxpr(lambda v: model.apply(v, batch, KEYS, method="loss_means"))(numpy_variables(model)))

    # The third sampling of an image: after that of the RPN and of the box head.
    plain, off, on = (program(**fields) for fields in ({}, {"box_supervision__num_samples": 5}, ON))
    assert plain == off and plain.count("random_fold_in") == 0 < on.count("random_fold_in")


@pytest.mark.parametrize("fields", [{"mask_head__body": "mlp", "mask_predictor": "class_agnostic"}, {}], ids=str)
@pytest.mark.parametrize("size", ["tiny", "tiny_c4"])
def test_every_form_of_the_mask_branch_has_them(batch, fields, size):
    model = tiny_model(argument=f"size={size},data=shapes,mlp=none,box_losses=yes", **fields)
    variables = jax.eval_shape(lambda v: v, numpy_variables(model))
    means = jax.eval_shape(lambda v: model.apply(v, batch, KEYS, method="loss_means"), variables)
    assert {"mask", *LOSSES} <= means.keys()


@pytest.mark.parametrize("predictor", ["none", "multinomial"])
def test_a_mask_predictor_without_a_logit_is_refused(predictor):
    with pytest.raises(ValueError, match=r"rcnn\.mask_predictor is .*box_supervision\.enabled"):
        tiny_model(mask_predictor=predictor, mask_head__mlp="none", **ON)


def test_a_batch_split_over_devices_sends_nothing(batch):
    eight = jax.tree.map(lambda x: jnp.repeat(x, 4, axis=0), batch)
    boxes = BoxSupervision(num_samples=4)
    assert not collectives(boxes.regions, eight, jax.random.split(jax.random.key(0), 8))

    def one_image(logits, regions, batch):
        return boxes.losses(*jax.tree.map(lambda x: x[None], (logits, regions, batch)))

    regions = regions_of(4, eight, jax.random.split(jax.random.key(0), 8))
    assert not collectives(jax.vmap(one_image), jnp.zeros((8, 4, 14, 14)), regions, eight)
