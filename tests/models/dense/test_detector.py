"""FCOS and EmbedMask as wholes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from maskx_jax.models.backbones.fpn import FPN
from maskx_jax.models.backbones.resnet import ResNet
from maskx_jax.models.build import initialize
from maskx_jax.models.dense.detector import DenseDetector
from maskx_jax.models.dense.embed_head import EmbedMaskHead
from maskx_jax.models.dense.fcos_head import FCOSHead
from maskx_jax.models.pixels import Pixels
from tests.models.build import NUM_CLASSES, numpy_variables, shapes_batch


def pyramid(**options):
    return FPN(levels=(3, 4, 5), top="convs", **options)


def tiny_embedmask(form="ijcai", dtype="float32", **options):
    head = {"channels": 32, "num_convs": 1, "pre_nms_top_k": 50, "max_detections": 10, "learned_scales": True}
    return DenseDetector(
        Pixels(),
        ResNet((1, 1, 1, 1), 8, norm="group", dtype=dtype),
        pyramid(channels=32, dtype=dtype),
        FCOSHead(NUM_CLASSES, **head, dtype=dtype),
        EmbedMaskHead(form, 8, channels=32, num_convs=1, resolution=14, dtype=dtype, **options),
    )


@pytest.mark.parametrize(
    ("head", "embed_head", "count"),
    [
        (FCOSHead(91), None, 32_269_600),
        (FCOSHead(80, learned_scales=True), EmbedMaskHead(), 34_717_264),
    ],
    ids=["FCOS of torchvision", "EmbedMask of IJCAI"],
)
def test_parameters_are_as_many_as_in_the_published_models(head, embed_head, count):
    model = DenseDetector(Pixels(), ResNet(), pyramid(), head, embed_head)
    params = jax.eval_shape(lambda: initialize(model, jax.random.key(0)))["params"]
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params)) == count


@pytest.mark.slow
@pytest.mark.parametrize("form", ["ijcai", "arxiv"])
def test_only_masked_objects_teach_masks_and_all_teach_boxes(form):
    model, batch = tiny_embedmask(form, transfer=True), shapes_batch(2, 6, image_size=64)
    variables = numpy_variables(model)

    @jax.jit
    def gradients(batch):
        def losses(params):
            values = model.apply({**variables, "params": params}, batch, jax.random.key(0), method="losses")[1]
            return values["class"] + values["box"] + values["centerness"], values["mask"] + values.get("smooth", 0.0)

        _, pull = jax.vjp(losses, variables["params"])
        return pull((1.0, 0.0))[0], pull((0.0, 1.0))[0]

    def norm(tree):
        return float(jnp.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree))))

    _, masks = gradients(batch)
    assert norm(masks["embed_head"]) > 0
    # T learns, and what it sees does not learn from it.
    assert norm(masks["embed_head"]["transfer1"]) > 0 and norm(masks["head"]["classification"]) == 0
    gt = batch.ground_truth
    bare = dataclasses.replace(batch, ground_truth=dataclasses.replace(gt, has_mask=jnp.zeros_like(gt.has_mask)))
    boxes, masks = gradients(bare)
    assert norm(masks) == 0 and norm(boxes["head"]) > 0 and norm(boxes["embed_head"]) == 0
    # Boxes are learned alike with and without masks.
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a == b).all(), boxes, gradients(batch)[0])))


@pytest.mark.long
@pytest.mark.parametrize("form", ["ijcai", "arxiv"])
def test_bfloat16_computes_near_float32(form):
    batch = shapes_batch(2, 6, image_size=64)
    full, half = (
        jax.jit(
            lambda batch, model=model: model.apply(numpy_variables(model), batch, jax.random.key(0), method="losses")
        )(batch)[1]
        for model in (tiny_embedmask(form), tiny_embedmask(form, "bfloat16"))
    )
    for name, loss in half.items():
        assert loss.dtype == jnp.float32
        assert loss == pytest.approx(float(full[name]), rel=0.05, abs=0.01), name


def test_bfloat16_rounds_no_logit_distance_or_embedding():
    model = tiny_embedmask(dtype="bfloat16")
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8), jax.ShapeDtypeStruct((1, 2), jnp.float32)
    options = {"method": "detect", "capture_intermediates": True, "mutable": ["intermediates"]}
    _, state = jax.eval_shape(lambda *images: model.apply(numpy_variables(model), *images, **options), *images)
    types = {
        "/".join(path[:-1]): {x.dtype for x in calls}
        for path, calls in traverse_util.flatten_dict(state["intermediates"]).items()
        if isinstance(calls[0], jax.ShapeDtypeStruct)
    }
    predictors = {"head": ("classification", "boxes", "centerness"), "embed_head": ("margin", "pixel_embedding")}
    predictors["embed_head"] += ("object_embedding", "pixel_position", "object_position")
    for head, names in predictors.items():
        for name in names:
            assert types[f"{head}/{name}"] == {jnp.dtype("float32")}, name
    assert types["head/class_tower/conv1"] == types["embed_head/pixel_tower/conv1"] == {jnp.dtype("bfloat16")}


@pytest.mark.slow
def test_detections_hold_what_structures_says_and_their_boxes_have_their_masks():
    model, batch = tiny_embedmask(transfer=True), shapes_batch(2, 6, image_size=64)

    @jax.jit
    def predict(variables, *images):
        found, embeddings = (model.apply(variables, *images, method=method) for method in ("detect", "embeddings"))
        boxes = found.boxes[:, 2:9], found.labels[:, 2:9], found.valid[:, 2:9]
        return found, embeddings, model.apply(variables, *images, *boxes, method="predict_masks")

    found, embeddings, masks = predict(numpy_variables(model), batch.images, batch.image_sizes)
    # An untrained head finds boxes without area too, which have no IoU with any.
    sides = found.boxes[:, 2:9, 2:] - found.boxes[:, 2:9, :2]
    chosen = np.asarray(found.valid[:, 2:9] & (sides > 0).all(axis=-1))
    assert chosen.sum() >= 5
    np.testing.assert_allclose(masks[chosen], found.masks[:, 2:9][chosen], atol=1e-5)
    assert found.boxes.shape == (2, 10, 4) and found.masks.shape == (2, 10, 14, 14)
    assert ((found.masks >= 0) & (found.masks <= 1)).all() and (jnp.diff(found.scores, axis=1) <= 0).all()
    assert set(np.unique(found.labels[found.valid])) <= set(range(1, NUM_CLASSES + 1))
    # Of 64 + 16 + 4 + 1 + 1 points.
    assert embeddings.pixels.shape == (2, 16, 16, 8) and embeddings.centres.shape == (2, 86, 8)


def test_fcos_predicts_no_masks():
    model = dataclasses.replace(tiny_embedmask(), embed_head=None)
    inputs = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.full((1, 2), 64.0), jnp.zeros((1, 1, 4))
    labels = jnp.ones((1, 1), int), jnp.ones((1, 1), bool)
    with pytest.raises(ValueError, match="without a mask branch"):
        model.apply({"params": {}}, *inputs, *labels, method="predict_masks")
