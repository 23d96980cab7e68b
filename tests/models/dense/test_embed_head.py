import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.models.dense.embed_head import FORMS, LOSS_REGIONS, MASK_LOSSES, Embeddings, EmbedMaskHead
from maskx_jax.models.dense.fcos_head import PointPredictions, Points
from maskx_jax.ops.mask_targets import average_mask, sample_mask
from maskx_jax.ops.point_matching import PointMatch
from maskx_jax.ops.points import grid_points
from tests.models.build import shapes_batch
from tests.reference import embedmask as reference

NUM_POINTS = 40


@pytest.fixture(scope="module")
def scene():
    """Return the objects of two small images, and random embeddings, boxes and assignments of points."""
    gt = shapes_batch(2, 6, image_size=64).ground_truth
    gt = dataclasses.replace(gt, has_mask=gt.has_mask.at[0, 0].set(False))
    rng = np.random.default_rng(0)
    index = rng.integers(0, 6, (2, NUM_POINTS))
    objects = np.asarray(gt.valid & ~gt.is_crowd)
    foreground = np.take_along_axis(objects, index, axis=1) & (rng.random(index.shape) < 0.7)
    own = np.take_along_axis(np.asarray(gt.boxes), index[..., None], axis=1)
    boxes = own + rng.normal(0, 4, own.shape)
    return gt, PointMatch(jnp.asarray(index, jnp.int32), jnp.asarray(foreground)), jnp.asarray(boxes, jnp.float32)


def embeddings(form):
    rng = np.random.default_rng(1)
    dimensions = 8
    arrays = (
        rng.normal(0, 1, (2, 16, 16, dimensions)),
        rng.normal(0, 1, (2, NUM_POINTS, dimensions)),
        np.exp(rng.normal(-1.7, 0.5, (2, NUM_POINTS, dimensions if form == "ijcai" else 1))),
    )
    return Embeddings(*(jnp.asarray(x, jnp.float32) for x in arrays))


@pytest.mark.parametrize("form", FORMS)
def test_embeddings_and_margins_equal_the_reference(form):
    # Two levels and no tower: what is left are the branches themselves.
    rng, sizes = np.random.default_rng(2), {3: (4, 6), 4: (2, 3)}
    feature_map, distances = rng.normal(0, 1, (4, 6, 4)), rng.uniform(0, 40, (30, 4))
    box_maps = {level: rng.normal(0, 1, (*size, 4)) for level, size in sizes.items()}
    places = np.concatenate([reference.places(*size, 2**level).reshape(-1, 2) for level, size in sizes.items()])
    strides = np.repeat([8.0, 16.0], [24, 6])

    def arrays(tree):
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)

    empty = np.zeros((30, 2))
    points = Points(*arrays((places, strides, empty)), (24, 6))
    predictions = PointPredictions(*arrays((empty[None], distances[None], empty[None, :, 0], {}, empty[:2])))
    batched = arrays({level: x[None] for level, x in box_maps.items()})
    arguments = (arrays({3: feature_map[None]}), predictions._replace(box_maps=batched), points)
    head = EmbedMaskHead(form, 5, num_convs=0)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), *arguments))["params"]
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape), shapes)
    found = jax.jit(lambda params: head.apply({"params": params}, *arguments))(arrays(params))

    layers = {name: (x["kernel"], x["bias"]) if isinstance(x, dict) else x for name, x in params.items()}
    pixels = reference.pixel_embeddings(layers, feature_map, form)
    expected = (pixels, *reference.object_embeddings(layers, box_maps, distances, form))
    assert found.class_centres is None and found.class_factors is None
    for name, x in zip(("pixels", "centres", "precisions"), expected, strict=True):
        np.testing.assert_allclose(getattr(found, name)[0], x, rtol=1e-5, atol=1e-5, err_msg=name)
    assert np.ptp(expected[2]) > 0.1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("region", LOSS_REGIONS)
@pytest.mark.parametrize("loss", MASK_LOSSES)
def test_losses_equal_the_reference(scene, form, region, loss):
    gt, matched, boxes = scene
    made = embeddings(form)
    head = EmbedMaskHead(form, mask_loss=loss, loss_region=region)
    found = {name: mean.value() for name, mean in jax.jit(head.losses)(made, boxes, matched, gt).items()}

    expected = []
    canvas = jnp.tile(jnp.array([0.0, 0.0, 64.0, 64.0]), (6, 1))
    for image in range(2):
        covered = np.asarray(average_mask(gt.masks[image], gt.mask_frames[image], jnp.arange(6), canvas, 16))
        targets = [c > 0.5 if has else None for c, has in zip(covered, gt.has_mask[image], strict=True)]
        pairs = zip(matched.gt_index[image].tolist(), matched.foreground[image].tolist(), strict=True)
        assigned = [index if is_foreground else None for index, is_foreground in pairs]
        arrays = (np.asarray(x[image], np.float64) for x in (*made[:3], boxes))
        values = reference.mask_loss(
            *arrays, assigned, np.asarray(gt.boxes[image], np.float64), targets, form, region, loss, stride=4
        )
        if values is not None:
            expected.append(values)
    mask, smooth = np.mean(expected, axis=0)
    np.testing.assert_allclose(found["mask"], 0.5 * mask, rtol=1e-5)
    if form == "arxiv":
        np.testing.assert_allclose(found["smooth"], 0.1 * smooth, rtol=1e-5)
    else:
        assert set(found) == {"mask"}


@pytest.mark.parametrize("form", FORMS)
def test_images_and_what_they_are_divided_by_add_up_to_those_of_the_batch(scene, form):
    losses = jax.jit(EmbedMaskHead(form).losses)
    whole, *parts = (
        losses(*jax.tree.map(lambda array, images=images: array[images], (embeddings(form), scene[2], *scene[1::-1])))
        for images in (slice(0, 2), slice(0, 1), slice(1, 2))
    )
    for name, mean in whole.items():
        added = jax.tree.map(lambda a, b: a + b, *(part[name] for part in parts))
        assert (added.number, mean.number) == (2, 2)
        np.testing.assert_allclose(added.total, mean.total, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_masks_are_weighed_within_images_and_images_by_the_mean_weight_of_theirs(scene, form):
    gt, matched, boxes = scene
    head = EmbedMaskHead(form)

    @jax.jit
    def losses(gt, matched):
        return {name: mean.value() for name, mean in head.losses(embeddings(form), boxes, matched, gt).items()}

    plain = losses(gt, matched)
    equal = losses(gt.replace(mask_weight=jnp.full(gt.valid.shape, 0.3)), matched)
    # Of the images alone: of images of other weights the one counts less.
    of_images = [losses(gt.replace(has_mask=gt.has_mask & (jnp.arange(2) == i)[:, None]), matched) for i in range(2)]
    weight = jnp.broadcast_to(jnp.array([[0.2], [0.8]]), gt.valid.shape)
    unequal = losses(gt.replace(mask_weight=weight), matched)
    for name, value in plain.items():
        np.testing.assert_allclose(equal[name], value, rtol=1e-5)
        np.testing.assert_allclose(unequal[name], 0.2 * of_images[0][name] + 0.8 * of_images[1][name], rtol=1e-5)
        assert abs(of_images[0][name] - of_images[1][name]) > 1e-4
    # All weight on one object is that object alone.
    chosen = int(matched.gt_index[1][matched.foreground[1]][0])
    only = (jnp.arange(2) == 1)[:, None] & (jnp.arange(gt.valid.shape[1]) == chosen)
    found = losses(gt.replace(mask_weight=only.astype(jnp.float32)), matched)
    alone = losses(gt.replace(has_mask=gt.has_mask & only), matched)
    for name, value in alone.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mask_loss", MASK_LOSSES)
def test_without_masks_all_gradients_are_zero(scene, form, mask_loss):
    gt, matched, boxes = scene
    gt = dataclasses.replace(gt, has_mask=jnp.zeros_like(gt.has_mask))
    head = EmbedMaskHead(form, mask_loss=mask_loss)

    def total(made):
        return sum(mean.value() for mean in head.losses(made, boxes, matched, gt).values())

    value, gradient = jax.jit(jax.value_and_grad(total))(embeddings(form))
    assert value == 0 and not any(x.any() for x in jax.tree.leaves(gradient))


def test_masks_of_objects_without_has_mask_are_never_read(scene):
    gt, matched, boxes = scene
    losses = jax.jit(lambda gt: EmbedMaskHead().losses(embeddings("ijcai"), boxes, matched, gt)["mask"].value())
    scrambled = dataclasses.replace(gt, masks=jnp.where(gt.has_mask[..., None, None], gt.masks, 255))
    assert losses(gt) == losses(scrambled) > 0


def test_masks_of_detections_are_probabilities_of_the_pixels_under_their_grid():
    # One pixel of the map under each point of a box's grid: nothing is interpolated.
    made = embeddings("ijcai")
    boxes = jnp.array([[[8.0, 12.0, 40.0, 44.0]]] * 2)
    points = jnp.array([[3], [7]])
    masks = EmbedMaskHead(resolution=8).detect(made, boxes, jnp.ones_like(points), points)
    for image, point in enumerate((3, 7)):
        expected = [
            [
                reference.probability(
                    made.pixels[image, i, j], made.centres[image, point], made.precisions[image, point]
                )
                for j in range(2, 10)
            ]
            for i in range(3, 11)
        ]
        np.testing.assert_allclose(masks[image, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_transfer_moves_the_objects_of_a_class(scene, form):
    gt, matched, boxes = scene
    plain, rng = embeddings(form), np.random.default_rng(3)
    classes = int(gt.labels.max())
    shift = jnp.asarray(rng.normal(0, 1, (2, classes, 8)), jnp.float32)
    factor = jnp.asarray(rng.uniform(0.5, 2, (2, classes, plain.precisions.shape[-1])), jnp.float32)
    made = plain._replace(class_centres=shift, class_factors=factor)
    # The same, with every point moved beforehand as the class of its object says.
    labels = jnp.take_along_axis(gt.labels, matched.gt_index, axis=1)
    index = jnp.maximum(labels - 1, 0)[..., None]
    moved = plain._replace(
        centres=plain.centres + jnp.take_along_axis(shift, index, axis=1),
        precisions=plain.precisions * jnp.take_along_axis(factor, index, axis=1),
    )
    head = EmbedMaskHead(form, resolution=4)
    losses = jax.jit(lambda made: {k: v.value() for k, v in head.losses(made, boxes, matched, gt).items()})
    np.testing.assert_allclose(losses(made)["mask"], losses(moved)["mask"], rtol=1e-5)
    assert abs(losses(made)["mask"] - losses(plain)["mask"]) > 1e-3
    places = jnp.arange(NUM_POINTS)[None].repeat(2, axis=0)
    masks = [head.detect(x, boxes, labels, places) for x in (made, moved, plain)]
    np.testing.assert_allclose(masks[0], masks[1], atol=1e-6)
    assert jnp.abs(masks[0] - masks[2]).max() > 0.1


def test_sampling_in_the_mask_allows_points_on_it_and_all_of_objects_without_one(scene):
    gt, _, _ = scene
    places = grid_points(16, 16, (4, 4), "centre")
    points = Points(places, jnp.full(len(places), 4.0), jnp.zeros((len(places), 2)), (len(places),))
    assert EmbedMaskHead().allowed(points, gt) is None
    allowed_of = jax.jit(lambda gt: EmbedMaskHead(sample_in_mask=True).allowed(points, gt))
    allowed = allowed_of(gt)
    canvas = jnp.tile(jnp.array([0.0, 0.0, 64.0, 64.0]), (6, 1))
    sample = jax.jit(lambda *arguments: sample_mask(*arguments, 16))
    for image in range(2):
        # The same points are the middles of a grid over the canvas.
        on_mask = sample(gt.masks[image], gt.mask_frames[image], jnp.arange(6), canvas).reshape(6, -1)
        expected = on_mask | ~gt.has_mask[image][:, None]
        assert on_mask[gt.has_mask[image]].any(axis=1).all() and not expected.all()
        np.testing.assert_array_equal(allowed[image], expected.T)
    scrambled = dataclasses.replace(gt, masks=jnp.where(gt.has_mask[..., None, None], gt.masks, 255))
    np.testing.assert_array_equal(allowed_of(scrambled), allowed)
