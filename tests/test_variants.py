"""What stands after the colon of --config, which of it makes no sense together, and what becomes of the rest."""

import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from configs import base, embedmask, fcos, keypoint_rcnn, mask_rcnn, maskx_rcnn, paper
from maskx_jax.coco.mask_classes import mask_labels
from maskx_jax.data.sources import open_source
from maskx_jax.models.build import build, initialize
from maskx_jax.structures import Batch, GroundTruth, Keypoints

FILES = [path for path in pathlib.Path(base.__file__).parent.glob("*.py") if "\nVariants: " in path.read_text()]


@pytest.mark.parametrize("name", sorted(path.stem for path in FILES))
def test_a_config_names_the_choices_that_it_takes(name, monkeypatch):
    module, offered = importlib.import_module(f"configs.{name}"), {}
    monkeypatch.setattr(base, "apply_variants", lambda config, argument, variants, excluded: offered.update(variants))
    module.get_config()
    _, text = module.__doc__.split("\nVariants: ")
    # The choices of a variant stand in brackets, and what is to be said of them after a colon.
    named = {variant: re.findall(r"\w+", choices) for variant, choices in re.findall(r"(\w+)\s\(([^:)]*)", text)}
    # Too many to name.
    named |= {"batch": list(offered["batch"])} if "1, 2, 4, ... 128" in text else {}
    named |= {"row": list(offered["row"])} if text.startswith("row; ") else {}
    assert {variant: sorted(named.get(variant, ())) for variant in offered} == {
        variant: sorted(choices) for variant, choices in offered.items()
    }


@pytest.mark.parametrize(
    "get_config", [module.get_config for module in (mask_rcnn, maskx_rcnn, keypoint_rcnn, fcos, embedmask)]
)
@pytest.mark.parametrize("other", ["schedule=1x", "backbone=r101", "jitter=short_sides", "start=weights"])
def test_the_small_experiment_has_its_own_backbone_and_schedule(get_config, other):
    for argument in (f"size=tiny,{other}", f"{other},size=tiny"):
        with pytest.raises(ValueError, match=rf"^variants size=tiny and {other} exclude each other: size=tiny brings"):
            get_config(argument)


def test_the_small_experiment_of_the_paper_has_its_own_classes_with_masks():
    with pytest.raises(ValueError, match=r"^variants size=tiny and masks=voc exclude each other"):
        paper.get_config("row=1a/cls,size=tiny,masks=voc")


def test_what_changes_something_else_stands_beside_the_size():
    config = mask_rcnn.get_config("size=tiny,batch=16,data=shapes,predictor=none,dtype=bfloat16,start=scratch")
    assert (config.data.transform.canvas, config.train.batch_size, config.train.num_steps) == ((128, 128), 16, 500)
    assert mask_rcnn.get_config("size=full,schedule=2x").train.num_steps == 180_000


def test_the_synthetic_set_has_its_own_classes_with_masks():
    # It has none of PASCAL VOC's, which are the default.
    assert maskx_rcnn.get_config("data=shapes").data.mask_classes == "random(1,50)"
    config = maskx_rcnn.get_config("data=shapes,size=tiny")
    categories = open_source(config.data, training=True, seed=0).categories
    assert mask_labels(config.data.mask_classes, categories).sum() == 50 and len(categories) == 60
    for given in ("all", "voc"):
        assert maskx_rcnn.get_config(f"data=shapes,masks={given}").data.mask_classes == given
    assert mask_rcnn.get_config("data=shapes").data.mask_classes == "all"


@pytest.mark.parametrize("other", ["backbone=r50_c4", "size=tiny_c4"])
def test_the_box_head_of_c4_is_its_own(other):
    with pytest.raises(ValueError, match=f"^variants {other} and box_head=conv exclude each other: {other} brings its"):
        maskx_rcnn.get_config(f"box_head=conv,{other}")


def full_size_batch(height: int, width: int) -> Batch:
    n = 100
    flag = jax.ShapeDtypeStruct((2, n), bool)

    def of(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((2, *shape), dtype)

    places = jax.ShapeDtypeStruct((2, n, 17), bool)
    keypoints = Keypoints(of(n, 17, 2), places, places)
    objects = of(n, 4), of(n, dtype=jnp.int32), of(n, 112, 14, dtype=jnp.uint8), of(n, 4), flag, flag, flag
    gt = GroundTruth(*objects, keypoints)
    images = of(height, width, 3, dtype=jnp.uint8)
    return Batch(images, of(2), of(dtype=jnp.int32), of(), of(dtype=bool), gt)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "argument", "canvas"),
    [
        (mask_rcnn, "backbone=r101,dtype=bfloat16", (800, 1344)),
        (mask_rcnn, "predictor=class_agnostic", (1344, 800)),
        (maskx_rcnn, "backbone=r101_c4,dtype=bfloat16", (800, 1344)),
        (mask_rcnn, "predictor=none", (800, 1344)),
        (maskx_rcnn, "", (1344, 800)),
        (maskx_rcnn, "mlp=light,masks=nonvoc,schedule=2x,box_head=conv", (800, 1344)),
        (keypoint_rcnn, "masks=yes,jitter=none", (800, 1344)),
        (fcos, "backbone=r101,dtype=bfloat16", (800, 1344)),
        (embedmask, "form=ijcai,start=scratch,masks=voc", (1344, 800)),
        pytest.param(embedmask, "form=arxiv,dtype=bfloat16", (800, 1344), marks=pytest.mark.long),
    ],
)
def test_config_traces_at_full_size(module, argument, canvas):
    config = module.get_config(argument)
    model, key = build(config.model, 80), jax.random.key(7)
    batch = full_size_batch(*canvas)
    variables = jax.eval_shape(lambda: initialize(model, key))
    total, losses = jax.eval_shape(lambda v, b: model.apply(v, b, key, method="losses"), variables, batch)
    assert total.shape == () and all(loss.dtype == jnp.float32 for loss in losses.values())
    assert ("mask" in losses) == ("masks" in model.produces)
    assert ("keypoint" in losses) == ("keypoints" in model.produces) == (module is keypoint_rcnn)
    found = jax.eval_shape(lambda v, b: model.apply(v, b.images, b.image_sizes, method="detect"), variables, batch)
    assert found.boxes.shape == (2, 100, 4)
    if "masks" in model.produces:
        two_stage = 14 if "c4" in argument else 28
        side = two_stage if config.model.family == "rcnn" else config.model.dense.embed_head.resolution
        assert found.masks.shape == (2, 100, side, side) and found.masks.dtype == jnp.float32
    if "keypoints" in model.produces:
        assert found.keypoint_maps.shape == (2, 100, 17, 56, 56) and found.keypoint_maps.dtype == jnp.float32


def test_a_person_detector_has_the_values_of_detectron2():
    config = keypoint_rcnn.get_config()
    assert config.model.rcnn.rpn.post_nms_top_k == (1500, 1000) and config.model.rcnn.box_head.smooth_l1_beta == 0.5
    assert config.train.best_metric[0] == "keypoints/all/AP"
    assert config.data.transform.short_sides == (640, 672, 704, 736, 768, 800)
    assert keypoint_rcnn.get_config("jitter=none").data.transform.short_sides == (800,)
    assert keypoint_rcnn.get_config("size=tiny,data=shapes").data.transform.short_sides == (128,)


@pytest.mark.parametrize(("size", "expected"), [("full", 1.0), ("tiny", 0.3), ("lite", 0.3)])
def test_the_t_of_the_small_sizes_begins_smaller(size, expected):
    data = ",data=shapes" if size == "tiny" else ""
    assert maskx_rcnn.get_config(f"size={size}{data}").model.rcnn.weight_transfer.init_scale == expected
