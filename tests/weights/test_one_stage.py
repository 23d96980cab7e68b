"""FCOS and EmbedMask under the names of other code bases, in and out."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from benchmarks.parameters import fcos_shapes, make_parameter
from configs import embedmask, fcos
from maskx_jax.coco.categories import COCO_IDS, Categories
from maskx_jax.models.build import build, initialize
from maskx_jax.runs.loading import Loaded
from maskx_jax.weights.export import to_torchvision
from maskx_jax.weights.files import WeightFile
from maskx_jax.weights.layouts import LAYOUTS, recognize
from maskx_jax.weights.pretrained import FileWeights, apply_conventions, take_over
from maskx_jax.weights.recipe import recipe
from tests.models.build import numpy_variables, set_fields
from tests.weights.test_pretrained import (
    CHANNELS,
    CLASSES,
    DETECTRON2_RESNET,
    NUM_CLASSES,
    WIDTH,
    renamed,
    torchvision_arrays,
)

NUM_CONVS = 2
LEVELS = (3, 4, 5, 6, 7)


def torchvision_fcos(num_classes=NUM_CLASSES):
    """Return torchvision's FCOS with one block a stage, by its names."""
    shapes = fcos_shapes(num_classes, (1, 1, 1, 1), WIDTH, CHANNELS, NUM_CONVS)
    return {name: make_parameter(name, shape) for name, shape in shapes.items()}


def old_torchvision_fcos(num_classes=NUM_CLASSES):
    """Return it under the names of before torchvision 0.14, which its published file has."""
    return renamed(torchvision_fcos(num_classes), {r"(backbone\.fpn\.(inner|layer)_blocks\.\d)\.0\.": r"\1."})


def of_one_stage(arrays, names, head, scales):
    """Return the arrays by other names: without a channel for background, with a scale for each level."""
    arrays = renamed(arrays, names)
    for field in ("weight", "bias"):
        arrays[f"{head}.cls_logits.{field}"] = arrays[f"{head}.cls_logits.{field}"][1:]
    return arrays | {f"{scales}.{i}.scale": np.array([1 + i / 8], np.float32) for i in range(5)}


def adelaidet(num_classes=NUM_CLASSES):
    head = "proposal_generator.fcos_head"
    names = DETECTRON2_RESNET | {
        r"backbone\.fpn\.inner_blocks\.(\d)\.0\.": lambda m: f"backbone.fpn_lateral{int(m[1]) + 3}.",
        r"backbone\.fpn\.layer_blocks\.(\d)\.0\.": lambda m: f"backbone.fpn_output{int(m[1]) + 3}.",
        r"backbone\.fpn\.extra_blocks\.": "backbone.top_block.",
        r"head\.classification_head\.conv\.": f"{head}.cls_tower.",
        r"head\.regression_head\.conv\.": f"{head}.bbox_tower.",
        r"head\.classification_head\.cls_logits\.": f"{head}.cls_logits.",
        r"head\.regression_head\.bbox_reg\.": f"{head}.bbox_pred.",
        r"head\.regression_head\.bbox_ctrness\.": f"{head}.ctrness.",
    }
    arrays = of_one_stage(torchvision_fcos(num_classes), names, head, f"{head}.scales")
    return arrays | {"pixel_mean": np.array([103.53, 116.28, 123.675]), "pixel_std": np.ones(3)}


def fcos_core(num_classes=NUM_CLASSES):
    names = {
        r"backbone\.body\.(conv1|bn1)\.": r"backbone.body.stem.\1.",
        r"backbone\.fpn\.inner_blocks\.(\d)\.0\.": lambda m: f"backbone.fpn.fpn_inner{int(m[1]) + 2}.",
        r"backbone\.fpn\.layer_blocks\.(\d)\.0\.": lambda m: f"backbone.fpn.fpn_layer{int(m[1]) + 2}.",
        r"backbone\.fpn\.extra_blocks\.": "backbone.fpn.top_blocks.",
        r"head\.classification_head\.conv\.": "rpn.head.cls_tower.",
        r"head\.regression_head\.conv\.": "rpn.head.bbox_tower.",
        r"head\.classification_head\.cls_logits\.": "rpn.head.cls_logits.",
        r"head\.regression_head\.bbox_reg\.": "rpn.head.bbox_pred.",
        r"head\.regression_head\.bbox_ctrness\.": "rpn.head.centerness.",
    }
    return of_one_stage(torchvision_fcos(num_classes), names, "rpn.head", "rpn.head.scales")


# The modules that each form of EmbedMask adds, with their outputs.
EMBEDMASK = {
    "ijcai": {
        "proposal_spatial_embed_pred": 2,
        "proposal_other_embed_pred": 6,
        "proposal_margin_pred": 8,
        "pixel_spatial_embed_pred": 2,
        "pixel_other_embed_pred": 6,
    },
    "arxiv": {"proposal_embed_pred": 8, "proposal_margin_pred": 1, "pixel_embed_pred": 8},
}


def embedmask_arrays(form):
    rng = np.random.default_rng(0)
    arrays = {f"rpn.head.{name}.bias": rng.normal(size=count) for name, count in EMBEDMASK[form].items()}
    for name, count in EMBEDMASK[form].items():
        inputs = (4, 1, 1) if (form, name) == ("arxiv", "proposal_margin_pred") else (CHANNELS, 3, 3)
        arrays[f"rpn.head.{name}.weight"] = rng.normal(size=(count, *inputs))
    for i in range(NUM_CONVS):
        tower = "rpn.head.mask_tower"
        arrays |= {f"{tower}.{3 * i}.weight": rng.normal(size=(CHANNELS, CHANNELS, 3, 3))}
        fields = (f"{3 * i}.bias", f"{3 * i + 1}.weight", f"{3 * i + 1}.bias")
        arrays |= {f"{tower}.{field}": rng.normal(size=CHANNELS) for field in fields}
    if form == "ijcai":
        arrays |= {f"rpn.head.margin_scales.{i}.scale": np.array([i / 4]) for i in range(5)}
        arrays["rpn.head.position_scale.scale"] = np.array([3.0])
    return fcos_core() | {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def small_config(get_config=fcos.get_config, argument=None, **model):
    config = get_config(argument)
    config.model.backbone.update(stage_sizes=(1, 1, 1, 1), width=WIDTH)
    dense = config.model.dense
    dense.fpn.channels = dense.head.channels = dense.embed_head.channels = CHANNELS
    dense.head.num_convs = dense.embed_head.num_convs = NUM_CONVS
    dense.embed_head.dimensions = 8
    set_fields(config, **model)
    return config


def taken_over(tmp_path, arrays, names=CLASSES, config=None, preset="auto", **options):
    """Take over the weights of a file with these arrays; return (variables by path, the changed config)."""
    config = config or small_config()
    file = WeightFile(tmp_path / "model.pth", arrays)
    weights = FileWeights(file, recognize(file) if preset == "auto" else LAYOUTS[preset])
    apply_conventions(config, weights.conventions)
    model = build(config.model, len(names))
    shapes = jax.eval_shape(lambda: initialize(model, jax.random.key(0)))
    fresh = jax.tree.map(lambda shape: np.broadcast_to(np.float32(np.nan), shape.shape), shapes)
    return traverse_util.flatten_dict(take_over(fresh, weights, names, **options), sep="/"), config


@pytest.mark.parametrize(
    ("make", "preset"),
    [(old_torchvision_fcos, "torchvision_detector"), (adelaidet, "detectron2"), (fcos_core, "fcos_core")],
)
def test_one_network_under_the_names_of_the_code_bases_gives_the_same_parameters(tmp_path, make, preset):
    assert recognize(WeightFile(tmp_path, make())) is LAYOUTS[preset]
    expected, _ = taken_over(tmp_path, torchvision_fcos())
    actual, _ = taken_over(tmp_path, make())
    scales = {f"params/head/scale{level}": 1 + i / 8 for i, level in enumerate(LEVELS)}
    assert sorted(actual) == sorted(expected | (scales if "torch" not in preset else {}))
    for path, value in actual.items():
        # One adds 1e-5 to variances, which are at least .6 here, and one nothing.
        tolerance = 1e-4 if path.startswith("frozen") else 0
        np.testing.assert_allclose(value, {**expected, **scales}[path], atol=tolerance, err_msg=path)


@pytest.mark.parametrize(
    ("make", "order", "mean", "stride_in_1x1", "expected"),
    [
        (torchvision_fcos, "rgb", 123.675, False, ("torchvision", False, False, "root", True, 0.2)),
        (adelaidet, "bgr", 103.53, True, ("centre", True, True, "root", False, 0.05)),
        (fcos_core, "bgr", 102.9801, True, ("centre", True, True, "product", False, 0.05)),
    ],
)
def test_a_file_brings_its_dialect_whatever_the_config_says(tmp_path, make, order, mean, stride_in_1x1, expected):
    points, closed, scales, score, after, _ = expected
    wrong = {
        "points": "centre" if points == "torchvision" else "torchvision",
        "level_sizes": (1.0, 2.0, 3.0, 4.0),
        "closed_ranges": not closed,
        "learned_scales": not scales,
        "score": "product" if score == "root" else "root",
        "threshold_score": not after,
        "score_threshold": 0.7,
    }
    config = small_config(**{f"head__{name}": value for name, value in wrong.items()})
    config.evaluation.paste_grid = "integer"
    _, config = taken_over(tmp_path, make(), config=config)
    head, model = config.model.dense.head, config.model
    found = (head.points, head.closed_ranges, head.learned_scales, head.score, head.threshold_score)
    assert (*found, head.score_threshold) == expected and head.level_sizes == (64.0, 128.0, 256.0, 512.0)
    assert (model.pixels.channel_order, model.pixels.mean[0]) == (order, mean)
    assert model.backbone.stride_in_1x1 is stride_in_1x1
    # It has no masks, so it says nothing of how they are pasted.
    assert config.evaluation.paste_grid == "integer"


def test_torchvisions_fcos_of_coco_divides_by_the_variance_with_an_epsilon(tmp_path):
    # Unlike its R-CNNs with as many rows, whose epsilon is set to 0 after they are loaded.
    arrays = torchvision_fcos(90)
    arrays["backbone.body.bn1.running_var"] = np.full(WIDTH, 1e-5, np.float32)
    weight = arrays["backbone.body.bn1.weight"]
    variables, _ = taken_over(tmp_path, arrays)
    np.testing.assert_allclose(variables["frozen/backbone/stem_norm/scale"], weight / np.sqrt(2e-5), rtol=1e-5)
    name = "backbone.body.stem.bn1.running_var"
    variables, _ = taken_over(tmp_path, fcos_core() | {name: arrays["backbone.body.bn1.running_var"]})
    np.testing.assert_allclose(variables["frozen/backbone/stem_norm/scale"], weight / np.sqrt(1e-5), rtol=1e-5)


@pytest.mark.parametrize("names", [tuple(COCO_IDS), ("zebra", "unicorn", "person")])
@pytest.mark.parametrize(("make", "num_classes"), [(torchvision_fcos, 90), (adelaidet, 80), (fcos_core, 80)])
def test_classes_of_coco_are_found_by_name(tmp_path, make, num_classes, names):
    arrays = make(num_classes)
    predictor = next(name for name in arrays if name.endswith("cls_logits.bias"))
    arrays[predictor] = np.arange(len(arrays[predictor]), dtype=np.float32)
    variables, _ = taken_over(tmp_path, arrays, names=names)
    # torchvision's channels are COCO's ids.
    rows = COCO_IDS if num_classes == 90 else {name: row for row, name in enumerate(COCO_IDS)}
    expected = [rows.get(name, np.nan) for name in names]
    np.testing.assert_array_equal(variables["params/head/classification/bias"], expected)
    fresh = np.isnan(variables["params/head/classification/kernel"]).all(axis=(0, 1, 2))
    np.testing.assert_array_equal(fresh, np.isnan(expected))


@pytest.mark.parametrize("form", EMBEDMASK)
def test_embedmask_finds_a_place_for_each_array(tmp_path, form):
    config = small_config(embedmask.get_config, f"form={form}")
    arrays = embedmask_arrays(form)
    variables, _ = taken_over(tmp_path, arrays, config=config)
    head = "params/embed_head"
    other = "other_" if form == "ijcai" else ""
    places = {"pixel_embedding": f"pixel_{other}embed_pred", "object_embedding": f"proposal_{other}embed_pred"}
    if form == "ijcai":
        places |= {"pixel_position": "pixel_spatial_embed_pred", "object_position": "proposal_spatial_embed_pred"}
        places["margin"] = "proposal_margin_pred"
        assert variables[f"{head}/position_scale"] == 3
        assert [variables[f"{head}/margin_scale{level}"] for level in LEVELS] == [0, 0.25, 0.5, 0.75, 1]
    else:
        margin = arrays["rpn.head.proposal_margin_pred.weight"]
        np.testing.assert_array_equal(variables[f"{head}/margin/kernel"], margin[:, :, 0, 0].T)
    for ours, theirs in places.items():
        expected = arrays[f"rpn.head.{theirs}.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(variables[f"{head}/{ours}/kernel"], expected)
    norm = arrays["rpn.head.mask_tower.4.weight"]
    np.testing.assert_array_equal(variables[f"{head}/pixel_tower/conv2_norm/scale"], norm)
    assert not any(np.isnan(value).any() for value in variables.values())


def test_a_file_of_another_family_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"missing, such as fpn/output6/bias"):
        taken_over(tmp_path, torchvision_arrays())
    # The second form's margins on the first.
    config = small_config(embedmask.get_config, "form=ijcai")
    with pytest.raises(ValueError, match=r"missing, such as embed_head/margin_scale3"):
        taken_over(tmp_path, embedmask_arrays("arxiv"), config=config)


# What torchvision's FCOS is; our own default has its points in the middle of their cells.
TORCHVISION = {"head__points": "torchvision", "fpn__channels": 256, "head__channels": 256, "head__num_convs": 1}


def test_what_is_exported_to_torchvision_comes_back_unchanged(tmp_path):
    config = small_config(**TORCHVISION)
    model = build(config.model, NUM_CLASSES)
    variables = numpy_variables(model)
    state = to_torchvision(variables, model, config.model)
    expected = fcos_shapes(NUM_CLASSES, (1, 1, 1, 1), WIDTH, 256, 1)
    assert {name: array.shape for name, array in state.items()} == expected
    # Its channel for background, which the training there never asks for, finds nothing.
    predictor = "head.classification_head.cls_logits"
    assert not state[f"{predictor}.weight"][0].any() and state[f"{predictor}.bias"][0] == -100
    back, _ = taken_over(tmp_path, state, config=config)
    expected = traverse_util.flatten_dict(variables, sep="/")
    assert sorted(back) == sorted(expected)
    for path, value in expected.items():
        np.testing.assert_allclose(back[path], value, rtol=1e-6, err_msg=path)
    categories = Categories(tuple(range(NUM_CLASSES)), CLASSES)
    text = recipe(Loaded(config, model, variables, categories, 0), "model.safetensors")
    compile(text, "recipe", "exec")
    assert "head=fcos.FCOSHead(256, 1, 4, 1)" in text and "[2, 3, 4], LastLevelP6P7(256, 256)" in text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("head__points", "centre"),
        ("head__learned_scales", True),
        ("head__score", "product"),
        ("head__threshold_score", False),
        ("head__channels", 128),
        ("masks", "embeddings"),
        ("backbone__stride_in_1x1", True),
        ("pixels__channel_order", "bgr"),
    ],
)
def test_what_torchvision_cannot_express_is_not_exported(field, value):
    config = small_config(**TORCHVISION | {field: value})
    model = build(config.model, NUM_CLASSES)
    with pytest.raises(
        ValueError, match=rf"torchvision's FCOS cannot express model\.\S*{field.replace('__', '.')} = {value!r}"
    ):
        to_torchvision({}, model, config.model)


def test_a_family_that_torchvision_lacks_is_named():
    with pytest.raises(ValueError, match=r"nothing for model.family = 'cells' \(expected rcnn or dense\)"):
        to_torchvision({}, None, {"family": "cells"})
