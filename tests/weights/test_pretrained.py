import functools
import json
import re

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from benchmarks.parameters import make_parameter, parameter_shapes
from configs import mask_rcnn
from maskx_jax.coco.categories import COCO_IDS, Categories
from maskx_jax.models.build import build, initialize
from maskx_jax.runs.loading import Loaded
from maskx_jax.weights.arrays import to_ours
from maskx_jax.weights.export import describe, to_torchvision
from maskx_jax.weights.files import Metadata, WeightFile
from maskx_jax.weights.layouts import LAYOUTS, recognize
from maskx_jax.weights.pretrained import (
    FileWeights,
    RunWeights,
    apply_conventions,
    conventions_of,
    load_class_embeddings,
    open_weights,
    take_over,
    untrained_without_source,
    with_class_embeddings,
)
from tests.models.build import numpy_variables, set_fields, tiny_config, tiny_model

CLASSES = ("cat", "dog", "tv")
NUM_CLASSES = 3
# Narrow, so that the arrays are small; some widths differ, lest one is taken for the other.
WIDTH, CHANNELS, HIDDEN = 8, 24, 40

STEM = "backbone.bottom_up."
# The layers of torchvision's ResNet by detectron2's names.
DETECTRON2_RESNET = {
    r"backbone\.body\.conv1\.": f"{STEM}stem.conv1.",
    r"backbone\.body\.bn1\.": f"{STEM}stem.conv1.norm.",
    r"backbone\.body\.layer(\d)\.(\d+)\.conv(\d)\.": lambda m: f"{STEM}res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.",
    r"backbone\.body\.layer(\d)\.(\d+)\.bn(\d)\.": lambda m: f"{STEM}res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.norm.",
    r"backbone\.body\.layer(\d)\.(\d+)\.downsample\.0\.": lambda m: f"{STEM}res{int(m[1]) + 1}.{m[2]}.shortcut.",
    r"backbone\.body\.layer(\d)\.(\d+)\.downsample\.1\.": (lambda m: f"{STEM}res{int(m[1]) + 1}.{m[2]}.shortcut.norm."),
}


@functools.cache
def torchvision_arrays(num_classes=NUM_CLASSES):
    """Return torchvision's Mask R-CNN with one block a stage, by its names."""
    shapes = parameter_shapes(num_classes, (1, 1, 1, 1), WIDTH, CHANNELS, HIDDEN)
    return {name: make_parameter(name, shape) for name, shape in shapes.items()}


def detectron2_arrays(num_classes=NUM_CLASSES):
    """Return the same network by detectron2's names."""
    return as_detectron2(torchvision_arrays(num_classes))


def as_detectron2(theirs):
    """Return a network of torchvision's by detectron2's names: background comes last, and has no box and no mask."""
    names = DETECTRON2_RESNET | {
        r"backbone\.fpn\.inner_blocks\.(\d)\.0\.": lambda m: f"backbone.fpn_lateral{int(m[1]) + 2}.",
        r"backbone\.fpn\.layer_blocks\.(\d)\.0\.": lambda m: f"backbone.fpn_output{int(m[1]) + 2}.",
        r"rpn\.head\.conv\.0\.0\.": "proposal_generator.rpn_head.conv.",
        r"rpn\.head\.cls_logits\.": "proposal_generator.rpn_head.objectness_logits.",
        r"rpn\.head\.bbox_pred\.": "proposal_generator.rpn_head.anchor_deltas.",
        r"roi_heads\.box_head\.fc6\.": "roi_heads.box_head.fc1.",
        r"roi_heads\.box_head\.fc7\.": "roi_heads.box_head.fc2.",
        r"roi_heads\.mask_head\.(\d)\.0\.": lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}.",
        r"roi_heads\.mask_predictor\.conv5_mask\.": "roi_heads.mask_head.deconv.",
        r"roi_heads\.mask_predictor\.mask_fcn_logits\.": "roi_heads.mask_head.predictor.",
    }
    arrays = renamed(theirs, names)
    for field in ("weight", "bias"):
        predictor = "roi_heads.box_predictor"
        arrays[f"{predictor}.cls_score.{field}"] = np.roll(arrays[f"{predictor}.cls_score.{field}"], -1, axis=0)
        arrays[f"{predictor}.bbox_pred.{field}"] = arrays[f"{predictor}.bbox_pred.{field}"][4:]
        arrays[f"roi_heads.mask_head.predictor.{field}"] = arrays[f"roi_heads.mask_head.predictor.{field}"][1:]
    return arrays | {"pixel_mean": np.array([103.53, 116.28, 123.675]), "pixel_std": np.ones(3)}


def detectron_arrays(num_classes=NUM_CLASSES):
    """Return the same network as Detectron's blobs."""
    return as_detectron(torchvision_arrays(num_classes))


def as_detectron(arrays):
    """Return a network of torchvision's as Detectron's blobs: BatchNorm is folded, momenta lie beside the weights."""
    branch = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "downsample.0": "branch1"}
    norm = {"bn1": "branch2a", "bn2": "branch2b", "bn3": "branch2c", "downsample.1": "branch1"}
    stage = r"backbone\.body\.layer(\d)\.(\d+)\."
    names = {
        r"backbone\.body\.conv1\.": "conv1.",
        r"backbone\.body\.bn1\.": "res_conv1_bn.",
        stage + r"(conv\d|downsample\.0)\.": lambda m: f"res{int(m[1]) + 1}_{m[2]}_{branch[m[3]]}.",
        stage + r"(bn\d|downsample\.1)\.": lambda m: f"res{int(m[1]) + 1}_{m[2]}_{norm[m[3]]}_bn.",
        r"backbone\.fpn\.inner_blocks\.3\.0\.": "fpn_inner_res5_0_sum.",
        r"backbone\.fpn\.inner_blocks\.(\d)\.0\.": lambda m: f"fpn_inner_res{int(m[1]) + 2}_0_sum_lateral.",
        r"backbone\.fpn\.layer_blocks\.(\d)\.0\.": lambda m: f"fpn_res{int(m[1]) + 2}_0_sum.",
        r"rpn\.head\.conv\.0\.0\.": "conv_rpn_fpn2.",
        r"rpn\.head\.cls_logits\.": "rpn_cls_logits_fpn2.",
        r"rpn\.head\.bbox_pred\.": "rpn_bbox_pred_fpn2.",
        r"roi_heads\.box_head\.(fc\d)\.": r"\1.",
        r"roi_heads\.box_predictor\.(cls_score|bbox_pred)\.": r"\1.",
        r"roi_heads\.mask_head\.(\d)\.0\.": lambda m: f"_[mask]_fcn{int(m[1]) + 1}.",
        r"roi_heads\.mask_predictor\.(conv5_mask|mask_fcn_logits)\.": r"\1.",
    }
    theirs = renamed(arrays, names)
    blobs = {}
    for name, array in theirs.items():
        module, _, field = name.rpartition(".")
        if field == "running_var":
            scale = theirs[f"{module}.weight"] / np.sqrt(array + 1e-5)
            blobs[f"{module}_s"] = scale
            blobs[f"{module}_b"] = theirs[f"{module}.bias"] - theirs[f"{module}.running_mean"] * scale
        elif not module.endswith("_bn"):
            blobs[f"{module}_{field[0]}"] = array
            blobs[f"{module}_{field[0]}_momentum"] = array
    return blobs


def renamed(arrays, names):
    result = {}
    for name, array in arrays.items():
        pattern = next((pattern for pattern in names if re.match(pattern, name)), None)
        result[name if pattern is None else re.sub(pattern, names[pattern], name)] = array
    assert len(result) == len(arrays)
    return result


def small_config(**model):
    config = mask_rcnn.get_config()
    config.model.backbone.update(stage_sizes=(1, 1, 1, 1), width=WIDTH)
    config.model.rcnn.fpn.channels = config.model.rcnn.rpn.channels = config.model.rcnn.mask_head.channels = CHANNELS
    config.model.rcnn.box_head.hidden = HIDDEN
    set_fields(config, **model)
    return config


@functools.cache
def _shapes(num_classes, fields):
    model = build(json.loads(fields, object_hook=lists_to_tuples), num_classes)
    return jax.eval_shape(lambda: initialize(model, jax.random.key(0)))


def lists_to_tuples(fields):
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def shapes_of(config, num_classes=NUM_CLASSES):
    """Return the shapes of a model's variables; the conventions that have no part in them are left out."""
    fields = config.model.to_dict()
    fields["pixels"] = fields["rcnn"]["roi_align"] = {}
    return _shapes(num_classes, json.dumps(fields))


def taken_over(tmp_path, arrays, preset="auto", names=CLASSES, config=None, classes=(), metadata=None, **options):
    """Take over the weights of a file with these arrays; return (variables by path, config.model, the model)."""
    config = config or small_config()
    file = WeightFile(tmp_path / "model.pth", arrays, metadata=metadata)
    weights = FileWeights(file, recognize(file) if preset == "auto" else LAYOUTS[preset], classes)
    apply_conventions(config, weights.conventions)
    model = build(config.model, len(names))
    shapes = shapes_of(config, len(names))
    fresh = jax.tree.map(lambda shape: np.broadcast_to(np.float32(np.nan), shape.shape), shapes)
    variables = take_over(fresh, weights, names, **options)
    return traverse_util.flatten_dict(variables, sep="/"), config.model, model


def assert_equal_but_for_unused_rows(actual, expected):
    """Compare variables; background has a box and a mask of its own in some code bases alone, and they are unused."""
    assert sorted(actual) == sorted(expected)
    for path, value in expected.items():
        first = {"box_head/boxes": 4, "mask_weights": 1}.get(path.partition("/")[2].rpartition("/")[0], 0)
        np.testing.assert_allclose(actual[path][..., first:], value[..., first:], rtol=1e-6, atol=1e-7, err_msg=path)


# torchvision's own arrangement is checked by tests/models/test_torchvision_parity.py, through what the model computes.
@pytest.mark.parametrize(("make", "preset"), [(detectron2_arrays, "detectron2"), (detectron_arrays, "detectron")])
def test_one_network_under_the_names_of_three_code_bases_gives_the_same_parameters(tmp_path, make, preset):
    expected, _, _ = taken_over(tmp_path, torchvision_arrays(), "torchvision_detector")
    actual, _, _ = taken_over(tmp_path, make())
    assert_equal_but_for_unused_rows(actual, expected)
    assert recognize(WeightFile(tmp_path, make())) is LAYOUTS[preset]


def backbone_of(arrays, pattern, replacement):
    return {re.sub(pattern, replacement, name): array for name, array in arrays.items() if re.match(pattern, name)}


@pytest.mark.parametrize(
    ("arrays", "extra", "preset"),
    [
        (lambda: backbone_of(torchvision_arrays(), r"backbone\.body\.", ""), "fc.weight", "torchvision_classifier"),
        (lambda: backbone_of(detectron2_arrays(), r"backbone\.bottom_up\.", ""), "stem.fc.weight", "detectron2"),
        (lambda: backbone_of(detectron_arrays(), r"(?=res|conv1_w)", ""), "fc1000_w", "detectron"),
    ],
)
def test_a_classifier_fills_the_backbone_and_leaves_the_rest_as_it_is(tmp_path, arrays, extra, preset, capsys):
    expected, _, _ = taken_over(tmp_path, torchvision_arrays(), "torchvision_detector")
    file = arrays() | {extra: np.zeros((1000, 2048), np.float32)}
    actual, fields, _ = taken_over(tmp_path, file)
    for path, value in actual.items():
        if "/backbone/" in path:
            np.testing.assert_allclose(value, expected[path], rtol=1e-6, atol=1e-7)
        else:
            assert np.isnan(value).all(), path
    report = capsys.readouterr().out
    assert f"model.pth ({preset}" in report
    assert "loaded 51 of 93 arrays (backbone 51)" in report
    assert "newly initialised: box_head 8, fpn 16, mask_head 10, mask_weights 2, rpn 6" in report
    # A classifier says nothing of anchors and boxes.
    assert fields.rcnn.rpn.anchor_convention == "detectron2" and fields.rcnn.roi_align.convention == "detectron2"


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("torchvision_detector", ("rgb", 123.675, 58.395, False, "torchvision")),
        ("detectron2", ("bgr", 103.53, 1.0, True, "detectron2")),
        ("detectron2_torchvision", ("rgb", 123.675, 58.395, False, "detectron2")),
        ("detectron", ("bgr", 102.9801, 1.0, True, "detectron")),
    ],
)
def test_a_preset_sets_the_conventions_whatever_the_config_says(tmp_path, preset, expected):
    make = {"torchvision_detector": torchvision_arrays, "detectron": detectron_arrays}.get(preset, detectron2_arrays)
    wrong = {"torchvision": "detectron", "detectron": "torchvision", "detectron2": "torchvision"}[expected[4]]
    config = small_config(
        pixels__channel_order="rgb" if expected[0] == "bgr" else "bgr",
        pixels__mean=(1.0, 2.0, 3.0),
        pixels__std=(9.0, 9.0, 9.0),
        backbone__stride_in_1x1=not expected[3],
        backbone__norm="group",
        rpn__anchor_convention=wrong,
        rpn__anchor_sizes=(1.0, 2.0, 3.0, 4.0, 5.0),
        roi_align__convention=wrong,
        roi_align__sampling_ratio=3,
        box_head__box_weights=(1.0, 1.0, 1.0, 1.0),
    )
    _, fields, _ = taken_over(tmp_path, make(), preset, config=config)
    found = (fields.pixels.channel_order, fields.pixels.mean[0], fields.pixels.std[0], fields.backbone.stride_in_1x1)
    assert (*found, fields.rcnn.rpn.anchor_convention) == expected
    assert fields.rcnn.roi_align.convention == expected[4]
    assert fields.rcnn.roi_align.sampling_ratio == (0 if expected[4] == "detectron2" else 2)
    assert fields.rcnn.box_head.box_weights == (10.0, 10.0, 5.0, 5.0)
    assert fields.rcnn.rpn.anchor_sizes == (32.0, 64.0, 128.0, 256.0, 512.0)
    assert fields.backbone.norm == "frozen_batch"


def test_files_are_recognised(tmp_path):
    def preset_of(arrays):
        save_file({name: np.zeros(size, np.float32) for name, size in arrays.items()}, tmp_path / "file.safetensors")
        return open_weights(tmp_path / "file.safetensors").layout.name

    detector = {"backbone.body.conv1.weight": 1, "roi_heads.box_predictor.cls_score.bias": 91}
    # torchvision's published detectors were trained with an epsilon of 0.
    assert preset_of(detector) == "torchvision_coco"
    assert preset_of(detector | {"roi_heads.box_predictor.cls_score.bias": 4}) == "torchvision_detector"
    assert preset_of({"conv1.weight": 1, "layer1.0.conv1.weight": 1}) == "torchvision_classifier"
    assert preset_of({"stem.conv1.weight": 1}) == "detectron2"
    assert preset_of({"backbone.bottom_up.stem.conv1.weight": 1}) == "detectron2"
    assert preset_of({"conv1_w": 1}) == "detectron"
    with pytest.raises(ValueError, match=r"file.safetensors: of no known network: .*'blocks.0.attn.qkv.weight'"):
        preset_of({"blocks.0.attn.qkv.weight": 1})
    with pytest.raises(ValueError, match=r"preset 'caffe'; expected 'auto' or one of torchvision_detector"):
        open_weights(tmp_path / "file.safetensors", "caffe")


def test_the_epsilon_of_batch_norm_belongs_to_the_preset(tmp_path):
    arrays = dict(torchvision_arrays())
    arrays["backbone.body.bn1.running_var"] = np.full(WIDTH, 1e-5, np.float32)
    weight = arrays["backbone.body.bn1.weight"]
    with_epsilon, _, _ = taken_over(tmp_path, arrays, "torchvision_detector")
    without, _, _ = taken_over(tmp_path, arrays, "torchvision_coco")
    path = "frozen/backbone/stem_norm/scale"
    np.testing.assert_allclose(with_epsilon[path], weight / np.sqrt(2e-5), rtol=1e-5)
    np.testing.assert_allclose(without[path], weight / np.sqrt(1e-5), rtol=1e-5)


@pytest.mark.parametrize("names", [tuple(COCO_IDS), CLASSES, ("zebra", "person")])
@pytest.mark.parametrize(("preset", "num_classes"), [("torchvision", 90), ("detectron2", 80), ("detectron", 80)])
def test_classes_of_coco_are_found_by_name_whichever_rows_a_code_base_gives_them(tmp_path, preset, num_classes, names):
    make = {"torchvision": torchvision_arrays, "detectron2": detectron2_arrays, "detectron": detectron_arrays}[preset]
    arrays = dict(make(num_classes))
    names_of_rows = {"detectron2": "roi_heads.box_predictor.cls_score.bias", "detectron": "cls_score_b"}
    predictor = names_of_rows.get(preset, "roi_heads.box_predictor.cls_score.bias")
    arrays[predictor] = np.arange(num_classes + 1, dtype=np.float32)
    variables, _, _ = taken_over(tmp_path, arrays, names=names)
    order = list(COCO_IDS)
    expected = {
        "torchvision": [0, *(COCO_IDS[name] for name in names)],
        "detectron2": [80, *(order.index(name) for name in names)],
        "detectron": [0, *(order.index(name) + 1 for name in names)],
    }[preset]
    np.testing.assert_array_equal(variables["params/box_head/classification/bias"], expected)
    assert variables["params/box_head/boxes/kernel"].shape == (HIDDEN, 4 * (len(names) + 1))


def old_torchvision_arrays():
    """Return the network under the names of before torchvision 0.14, which its published detectors have."""
    names = {
        r"(backbone\.fpn\.\w+_blocks\.\d)\.0\.": r"\1.",
        r"rpn\.head\.conv\.0\.0\.": "rpn.head.conv.",
        r"roi_heads\.mask_head\.(\d)\.0\.": lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}.",
    }
    return renamed(torchvision_arrays(), names)


def test_files_of_old_torchvision_are_the_same_network(tmp_path):
    expected, _, _ = taken_over(tmp_path, torchvision_arrays())
    assert "roi_heads.mask_head.mask_fcn1.weight" in old_torchvision_arrays()
    actual, _, _ = taken_over(tmp_path, old_torchvision_arrays())
    assert sorted(actual) == sorted(expected)
    for path, value in expected.items():
        np.testing.assert_array_equal(actual[path], value, err_msg=path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rpn.head.conv.0.0.weight", np.full((CHANNELS, CHANNELS, 3, 3), np.nan), r"rpn/conv/kernel \(not finite\)"),
        ("backbone.body.bn1.running_var", np.full(WIDTH, -1.0), r"variance is not positive"),
        ("backbone.body.bn1.running_var", np.ones(1), r"BatchNorm of shapes"),
        # The corner of a 3x3 kernel is no 1x1 convolution.
        (
            "roi_heads.mask_predictor.mask_fcn_logits.weight",
            np.ones((4, CHANNELS, 3, 3)),
            r"mask_weights/kernel \(cannot",
        ),
    ],
)
def test_arrays_that_would_load_but_cannot_be_meant_are_refused(tmp_path, capsys, name, value, message):
    with pytest.raises(ValueError, match=r"that do not fit"):
        taken_over(tmp_path, torchvision_arrays() | {name: value.astype(np.float32)})
    assert re.search(message, capsys.readouterr().out)


def test_what_a_detectron2_file_says_of_its_pixels_and_anchors_must_hold(tmp_path):
    def opened(preset="auto", **stored):
        keys = {"anchors": "proposal_generator.anchor_generator.cell_anchors.0"}
        arrays = {"backbone.bottom_up.stem.conv1.weight": np.ones(1)}
        arrays |= {keys.get(key, key): np.array(value) for key, value in stored.items()}
        save_file({key: value.astype(np.float32) for key, value in arrays.items()}, tmp_path / "file.safetensors")
        return open_weights(tmp_path / "file.safetensors", preset).layout.name

    anchors = [[-22.6274, -11.3137, 22.6274, 11.3137], [-16, -16, 16, 16], [-11.3137, -22.6274, 11.3137, 22.6274]]
    bgr = {"pixel_mean": [[[103.53]], [[116.28]], [[123.675]]], "pixel_std": [[[1.0]], [[1.0]], [[1.0]]]}
    assert opened(**bgr, anchors=anchors) == "detectron2"
    rgb = {"pixel_mean": [123.675, 116.28, 103.53], "pixel_std": [58.395, 57.12, 57.375]}
    assert opened(**rgb) == "detectron2_torchvision"
    with pytest.raises(ValueError, match=r"pixel_mean is \[123.67.*with preset detectron2 \(103.53"):
        opened("detectron2", **rgb)
    with pytest.raises(ValueError, match=r"cell_anchors.0 is .*with preset detectron2 .*-22.6"):
        opened(**bgr, anchors=np.array(anchors) / 2)


def test_a_convention_can_be_kept_and_must_exist(tmp_path):
    save_file({"layer1.0.conv1.weight": np.ones(1, np.float32)}, tmp_path / "file.safetensors")
    conventions = open_weights(tmp_path / "file.safetensors").conventions
    config = small_config(pixels__mean=(1.0, 2.0, 3.0), pixels__channel_order="bgr")
    apply_conventions(config, conventions, keep=("model.pixels.mean",))
    assert config.model.pixels.mean == (1.0, 2.0, 3.0) and config.model.pixels.channel_order == "rgb"
    with pytest.raises(
        ValueError, match=r"\['pixels.mean'\] in initialize.keep; the conventions of these weights are model"
    ):
        apply_conventions(config, conventions, keep=("pixels.mean",))


@pytest.mark.parametrize(
    ("make", "grid"),
    [(torchvision_arrays, "integer"), (detectron_arrays, "integer"), (detectron2_arrays, "continuous")],
)
def test_masks_are_pasted_as_the_code_base_of_the_weights_does(tmp_path, capsys, make, grid):
    config = small_config()
    config.evaluation.paste_grid = "integer" if grid == "continuous" else "continuous"
    file = WeightFile(tmp_path / "model.pth", make())
    apply_conventions(config, FileWeights(file, recognize(file)).conventions)
    assert config.evaluation.paste_grid == grid
    assert f"the weights set evaluation.paste_grid to {grid} (was" in capsys.readouterr().out
    # A classifier has no masks.
    backbone = WeightFile(tmp_path / "model.pth", {name: a for name, a in make().items() if "conv1" in name[:30]})
    backbone.arrays.pop("conv_rpn_fpn2_w", None)
    assert "evaluation.paste_grid" not in FileWeights(backbone, recognize(backbone)).conventions


def test_a_run_keeps_its_conventions_and_one_of_an_older_version_has_fewer():
    begun = small_config(pixels__channel_order="bgr")
    begun.evaluation.paste_grid = "integer"
    config = small_config()
    apply_conventions(config, conventions_of(begun))
    assert (config.model.pixels.channel_order, config.evaluation.paste_grid) == ("bgr", "integer")
    with begun.unlocked():
        del begun.evaluation.paste_grid
    config = small_config()
    apply_conventions(config, conventions_of(begun))
    assert (config.model.pixels.channel_order, config.evaluation.paste_grid) == ("bgr", "continuous")


def numbered(arrays, num_classes):
    """Return the arrays with predictors whose columns say which of the file's rows they are."""
    rows = np.arange(num_classes + 1, dtype=np.float32)
    predictor = "roi_heads.box_predictor"
    return arrays | {
        f"{predictor}.cls_score.bias": rows,
        f"{predictor}.bbox_pred.bias": np.repeat(rows, 4),
        "roi_heads.mask_predictor.mask_fcn_logits.bias": rows,
    }


def rows_of(variables):
    """Return which of the file's rows each class has; NaN is a fresh one."""
    scores, masks = variables["params/box_head/classification/bias"], variables["params/mask_weights/bias"]
    np.testing.assert_array_equal(scores, masks)
    np.testing.assert_array_equal(variables["params/box_head/boxes/bias"], np.repeat(scores, 4))
    for path in ("box_head/classification/kernel", "mask_weights/kernel"):
        assert np.isnan(variables[f"params/{path}"]).any(axis=0).tolist() == np.isnan(scores).tolist()
    return [None if np.isnan(row) else int(row) for row in scores]


COCO = Metadata([{"id": i, "name": name} for name, i in COCO_IDS.items()])


@pytest.mark.parametrize(
    ("num_classes", "names", "options", "rows", "said"),
    [
        # Names in the file: in another order; beside new classes; none in common.
        (3, CLASSES, {"file": ("tv", "dog", "cat")}, [0, 3, 2, 1], "3 of 3 found by name (named in the file)"),
        (3, ("cow", "dog", "pig"), {"file": ("tv", "dog", "cat")}, [0, None, 2, None], "with fresh rows: cow, pig"),
        (3, ("a", "b", "c"), {"file": ("tv", "dog", "cat")}, [0, None, None, None], "0 of 3 found by name"),
        # COCO's rows: "person" keeps its own beside two new classes.
        (90, ("helmet", "person", "vest"), {}, [0, None, 1, None], "1 of 3 found by name (the file's 90 are taken for"),
        (90, ("tv", "toothbrush"), {}, [0, 72, 90], "2 of 2 found by name"),
        (80, ("tv", "toothbrush"), {}, [0, 63, 80], "2 of 2 found by name (the file's 80 are taken for COCO's"),
        # 90 classes of one's own are not those of COCO.
        (90, tuple(f"own {i}" for i in range(90)), {}, [0, *[None] * 90], "0 of 90 found by name"),
        # Unless the file, or the config, says so.
        (90, ("own 7",), {"file": tuple(f"own {i}" for i in range(90))}, [0, 8], "by name (named in the file)"),
        (90, ("own 7",), {"classes": tuple(f"own {i}" for i in range(90))}, [0, 8], "named in initialize.classes"),
        # Nothing known.
        (3, CLASSES, {}, [0, 1, 2, 3], "the file does not name its 3; they are taken for ours in their order"),
        (3, ("cat", "dog"), {}, [0, None, None], "0 of 2 found by name (the file does not name its 3)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_classes_are_matched_one_by_one(tmp_path, capsys, num_classes, names, options, rows, said):
    arrays = numbered(torchvision_arrays(num_classes), num_classes)
    if "file" in options:
        options = {"metadata": Metadata([{"name": name} for name in options["file"]])}
    variables, _, _ = taken_over(tmp_path, arrays, names=names, **options)
    assert rows_of(variables) == rows
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ("cat", "dog")}, "initialize.classes names 2 classes; the predictor has 3"),
        ({"metadata": COCO}, "the file names 80 classes; the predictor has 3"),
    ],
)
def test_names_of_another_number_of_classes_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        taken_over(tmp_path, torchvision_arrays(), **options)


def run_weights(names, config=None):
    config = config or small_config()
    model = build(config.model, len(names))
    variables = numpy_variables(model)
    categories = Categories(tuple(range(len(names))), tuple(names))
    return RunWeights("RUN", Loaded(config, model, variables, categories, 5)), variables


MLP = {"mask_predictor": "class_specific", "mask_head__body": "mlp", "mask_head__mlp": "none"}


@pytest.mark.parametrize("fields", [{"mask_predictor": "class_specific"}, {"mask_predictor": "transfer"}, MLP], ids=str)
def test_a_run_gives_a_longer_list_of_classes_all_that_it_has(capsys, fields):
    config = tiny_config(**fields, weight_transfer__input="embedding")
    weights, theirs = run_weights(CLASSES, config)
    names = ("bird", *CLASSES)
    fresh = numpy_variables(build(config.model, len(names)), scale=2.0)
    taken = traverse_util.flatten_dict(take_over(fresh, weights, names), sep="/")
    theirs, fresh = (traverse_util.flatten_dict(tree, sep="/") for tree in (theirs, fresh))
    assert "classes: 3 of 4 found by name (named in the run); new, with fresh rows: bird" in capsys.readouterr().out
    for path, value in taken.items():
        axis = 0 if path.endswith("embedding") else -1
        if value.shape == theirs[path].shape:
            np.testing.assert_array_equal(value, theirs[path], err_msg=path)
            continue
        split = [
            np.split(array, len(CLASSES) + i, axis) for i, array in ((1, theirs[path]), (2, value), (2, fresh[path]))
        ]
        (background, *old), (first, new, *kept), own = split
        for a, b in ((first, background), (new, own[1]), *zip(kept, old, strict=True)):
            np.testing.assert_array_equal(a, b, err_msg=path)


@pytest.mark.parametrize(("size", "num_convs"), [("tiny", 2), ("tiny", 0), ("tiny_c4", 2), ("tiny_c4", 0)])
@pytest.mark.parametrize("predictor", ["class_specific", "class_agnostic"])
def test_masks_of_fully_connected_layers_stay_with_their_class(size, num_convs, predictor):
    fields = MLP | {"mask_head__num_convs": num_convs, "mask_predictor": predictor}
    weights, theirs = run_weights(CLASSES, tiny_config(f"size={size},data=shapes", **fields))
    taken = take_over(theirs, weights, CLASSES[::-1])["params"]["mask_head"]["output"]
    order = [0, 3, 2, 1] if predictor == "class_specific" else [0]
    for leaf, value in theirs["params"]["mask_head"]["output"].items():
        masks = value.reshape(*value.shape[:-1], len(order), -1)[..., order, :]
        np.testing.assert_array_equal(taken[leaf], masks.reshape(value.shape), err_msg=leaf)


def test_what_the_export_writes_beside_the_arrays_decides_how_it_is_read(tmp_path):
    # 90 classes of our own, with a mean of our own: by the number of rows alone this would be torchvision's.
    config = small_config(pixels__mean=(1.0, 2.0, 3.0), rpn__aspect_ratios=(0.5, 1.0, 2.0, 4.0))
    categories = Categories(tuple(range(90)), tuple(f"own {i}" for i in range(90)))
    arrays = {"backbone.body.conv1.weight": np.ones(1, np.float32)}
    arrays["roi_heads.box_predictor.cls_score.bias"] = np.ones(91, np.float32)
    save_file(arrays, tmp_path / "own.safetensors", describe(config, categories).to_text())
    weights = open_weights(tmp_path / "own.safetensors")
    assert weights.layout.name == "torchvision_detector" and weights.layout.epsilon == 1e-5
    assert weights.conventions["model.pixels.mean"] == (1.0, 2.0, 3.0)
    assert weights.conventions["model.rcnn.rpn.aspect_ratios"] == (0.5, 1.0, 2.0, 4.0)
    assert weights.conventions["evaluation.paste_grid"] == "continuous"
    assert weights.classes(90) == (tuple(f"own {i}" for i in range(90)), "named in the file")
    with pytest.raises(
        ValueError, match=r"own.safetensors: BatchNorm's epsilon is 1e-05; with preset torchvision_coco 0"
    ):
        open_weights(tmp_path / "own.safetensors", "torchvision_coco")
    with pytest.raises(ValueError, match=r"initialize.classes \['a'\]; the file .* names its own"):
        open_weights(tmp_path / "own.safetensors", classes=("a",))
    # The same without metadata: what is assumed is said.
    save_file(arrays, tmp_path / "other.safetensors")
    origin = open_weights(tmp_path / "other.safetensors").origin
    assert "torchvision_coco, BatchNorm epsilon 0, assumed because of its 91 rows: name another in init" in origin


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("categories", "no JSON"),
        ("categories", "3"),
        ("categories", '[{"id": 1}]'),
        ("categories", "[null]"),
        ("categories", "[]"),
        ("categories", '[{"name": ["a"]}]'),
        ("categories", '[{"name": "a"}, {"name": "a"}]'),
        ("categories", "[" * 100_000),
        ("epsilon", '"small"'),
        ("epsilon", "-1.0"),
        ("epsilon", "NaN"),
        ("conventions", "[1]"),
        ("conventions", '{"seed": 3}'),
        ("conventions", '{"model.pixels.channel_order": 3}'),
        ("conventions", '{"model.pixels.mean": ["a", "b", "c"]}'),
        ("conventions", '{"model": {}}'),
    ],
    ids=lambda value: value[:20],
)
def test_metadata_that_are_damaged_are_refused(tmp_path, name, value):
    text = {"categories": '[{"name": "a"}]', "conventions": '{"model.pixels.channel_order": "rgb"}'}
    arrays, path = {"backbone.body.conv1.weight": np.ones(1, np.float32)}, tmp_path / "file.safetensors"
    save_file(arrays, path, text)
    open_weights(path)
    save_file(arrays, path, text | {name: value})
    with pytest.raises(ValueError, match=r"file\.safetensors: .*metadata") as caught:
        open_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "model.module."])
def test_a_prefix_that_all_names_have_is_left_out(tmp_path, prefix):
    arrays = {"layer1.0.conv1.weight": np.ones(1, np.float32), "conv1.weight": np.ones(2, np.float32)}
    save_file({f"{prefix}{name}": array for name, array in arrays.items()}, tmp_path / "file.safetensors")
    weights = open_weights(tmp_path / "file.safetensors")
    assert sorted(weights.file.arrays) == sorted(arrays)
    assert weights.origin.endswith(f"epsilon 1e-05, names without their prefix {prefix!r})")


def test_a_prefix_that_some_names_lack_is_part_of_the_names(tmp_path):
    arrays = {"layer1.0.conv1.weight": 1, "module.conv1.weight": 1}
    save_file({name: np.ones(size, np.float32) for name, size in arrays.items()}, tmp_path / "file.safetensors")
    assert sorted(open_weights(tmp_path / "file.safetensors").file.arrays) == sorted(arrays)


def test_box_rows_stay_with_their_class(tmp_path):
    arrays = dict(torchvision_arrays(90))
    arrays["roi_heads.box_predictor.bbox_pred.bias"] = np.arange(4 * 91, dtype=np.float32)
    variables, _, _ = taken_over(tmp_path, arrays, names=("tv",))
    np.testing.assert_array_equal(variables["params/box_head/boxes/bias"], [0, 1, 2, 3, 288, 289, 290, 291])


def test_classes_of_ones_own_start_from_coco_in_one_command(tmp_path, capsys):
    names = ("nut", "bolt")
    variables, _, _ = taken_over(tmp_path, torchvision_arrays(90), names=names)
    assert np.isnan(variables["params/box_head/boxes/kernel"][:, 4:]).all()
    assert not np.isnan(variables["params/box_head/fc6/kernel"]).any()
    report = capsys.readouterr().out
    assert "new, with fresh rows: nut, bolt" in report and "loaded 93 of 93 arrays" in report
    # Whole predictors may be left fresh by name, background included.
    new = ("box_head/(boxes|classification)/.*", "mask_weights/.*")
    variables, _, _ = taken_over(tmp_path, torchvision_arrays(90), names=names, new=new)
    assert np.isnan(variables["params/box_head/boxes/kernel"]).all()
    assert "newly initialised: box_head 4, mask_weights 2" in capsys.readouterr().out


def test_a_predictor_without_a_row_for_each_class_does_not_fit(tmp_path, capsys):
    arrays = dict(torchvision_arrays())
    arrays["roi_heads.box_predictor.bbox_pred.bias"] = np.ones(8, np.float32)
    with pytest.raises(ValueError, match=r"1 that do not fit, such as box_head/boxes/bias"):
        taken_over(tmp_path, arrays)
    assert "box_head/boxes/bias (8 rows in the source, expected 16 of 3 classes)" in capsys.readouterr().out


def without(arrays, *patterns):
    return {name: a for name, a in arrays.items() if not any(re.search(pattern, name) for pattern in patterns)}


def test_missing_and_unexpected_arrays_stop_the_import_unless_they_are_named(tmp_path, capsys):
    faster = without(torchvision_arrays(), "mask")
    with pytest.raises(ValueError, match=r"does not fit the model: 12 missing, such as mask_head/conv1/bias") as caught:
        taken_over(tmp_path, faster)
    assert "\n" not in str(caught.value)
    assert "missing in the source: mask_head/conv1/bias" in capsys.readouterr().out
    variables, _, _ = taken_over(tmp_path, faster, new=("(mask_head|mask_weights)/.*",))
    assert np.isnan(variables["params/mask_head/conv1/kernel"]).all()

    keypoints = torchvision_arrays() | {"roi_heads.keypoint_head.0.weight": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=r"1 unexpected, such as roi_heads.keypoint_head.0.weight"):
        taken_over(tmp_path, keypoints)
    taken_over(tmp_path, keypoints, unused=(r"roi_heads\.keypoint_head\..*",))

    with pytest.raises(ValueError, match=r"pattern 'mask_heads/.\*' of the new parameters matches none"):
        taken_over(tmp_path, faster, new=("mask_heads/.*",))


def test_another_depth_is_no_fit(tmp_path):
    with pytest.raises(ValueError, match=r"18 missing, such as backbone/res2_block1/conv1/kernel"):
        taken_over(tmp_path, torchvision_arrays(), config=small_config(backbone__stage_sizes=(3, 1, 1, 1)))
    # A ResNet of basic blocks under the same names.
    basic = without(torchvision_arrays(), r"\.conv3\.", r"\.bn3\.")
    with pytest.raises(ValueError, match=r"12 missing, such as backbone/res2_block0/conv3"):
        taken_over(tmp_path, basic)


def test_a_class_agnostic_mask_predictor_has_one_row(tmp_path):
    arrays = dict(torchvision_arrays())
    predictor = "roi_heads.mask_predictor.mask_fcn_logits"
    arrays[f"{predictor}.weight"] = arrays[f"{predictor}.weight"][:1]
    arrays[f"{predictor}.bias"] = arrays[f"{predictor}.bias"][:1]
    variables, _, _ = taken_over(tmp_path, arrays, config=small_config(mask_predictor="class_agnostic"))
    np.testing.assert_array_equal(
        variables["params/mask_weights/kernel"][:, 0], arrays[f"{predictor}.weight"][0, :, 0, 0]
    )


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_blobs_of_the_mask_x_release_fill_t(tmp_path, num_layers):
    rng = np.random.default_rng(num_layers)
    layers = [*(f"bbox2mask_mlp_l{i}" for i in range(1, num_layers)), "mask_fcn_logits_w_flat"]
    blobs = without(detectron_arrays(), "^mask_fcn_logits")
    inputs = 5 * HIDDEN
    for layer in layers:
        blobs |= {f"{layer}_w": rng.normal(size=(CHANNELS, inputs)), f"{layer}_b": rng.normal(size=CHANNELS)}
        inputs = CHANNELS
    blobs = {name: np.asarray(array, np.float32) for name, array in blobs.items()}
    config = small_config(mask_predictor="transfer", weight_transfer__num_layers=num_layers)
    variables, _, _ = taken_over(tmp_path, blobs, config=config)
    for i, layer in enumerate(layers, 1):
        np.testing.assert_array_equal(variables[f"params/mask_weights/fc{i}/kernel"], blobs[f"{layer}_w"].T)
        np.testing.assert_array_equal(variables[f"params/mask_weights/fc{i}/bias"], blobs[f"{layer}_b"])


def test_the_blobs_of_the_mask_x_release_fill_the_mlp_branch():
    # Each logit of the branch sees all of the region's features, flattened by channel, row and column.
    blob = np.zeros((784, CHANNELS * 28 * 28), np.float32)
    blob[5, (7 * 28 + 3) * 28 + 2] = 1  # channel 7, row 3, column 2
    params = traverse_util.flatten_dict(shapes_of(small_config(mask_head__mlp="paper"))["params"], sep="/")
    shapes = {path: leaf.shape for path, leaf in params.items()}
    modules = LAYOUTS["detectron"].modules({path.rpartition("/")[0] for path in shapes}, ())
    assert modules["mask_head/mlp"] == "mask_mlp_logits_raw"
    kernel = to_ours("mask_head/mlp/kernel", blob, shapes).reshape(28, 28, CHANNELS, 784)
    assert kernel[3, 2, 7, 5] == 1 and kernel.sum() == 1


# What a torchvision detector was trained with; our own defaults are others.
TORCHVISION = {"rpn__anchor_convention": "torchvision", "roi_align__convention": "torchvision"}


@pytest.mark.parametrize("predictor", ["class_specific", "class_agnostic", "none", "keypoints"])
def test_what_is_exported_to_torchvision_comes_back_unchanged(tmp_path, predictor):
    config = small_config(mask_predictor=predictor if predictor != "keypoints" else "none", **TORCHVISION)
    if predictor == "keypoints":
        config.model.rcnn.keypoint_predictor = "heatmaps"
        config.model.rcnn.keypoint_head.update(channels=64, num_convs=4)
    model = build(config.model, len(CLASSES))
    variables = numpy_variables(model)
    state = to_torchvision(variables, model, config.model)
    assert ("roi_heads.mask_predictor.mask_fcn_logits.weight" in state) == predictor.startswith("class")
    if predictor == "keypoints":
        assert state["roi_heads.keypoint_predictor.kps_score_lowres.weight"].shape == (64, 17, 4, 4)
        assert state["roi_heads.keypoint_head.6.weight"].shape == (64, 64, 3, 3)
    if predictor == "class_agnostic":
        # torchvision has a row for each class; here they are all the same.
        for field in ("weight", "bias"):
            name = f"roi_heads.mask_predictor.mask_fcn_logits.{field}"
            assert len(state[name]) == 4 and (state[name] == state[name][:1]).all()
            state[name] = state[name][:1]
    back, _, _ = taken_over(tmp_path, state, "torchvision_detector", config=config)
    expected = traverse_util.flatten_dict(variables, sep="/")
    assert sorted(back) == sorted(expected)
    for path, value in expected.items():
        np.testing.assert_allclose(back[path], value, rtol=1e-6, err_msg=path)


def test_the_export_of_mask_x_writes_out_what_t_predicts():
    config = small_config(mask_predictor="transfer", **TORCHVISION)
    model = build(config.model, len(CLASSES))
    variables = numpy_variables(model)
    state = to_torchvision(variables, model, config.model)
    params = variables["params"]
    boxes = params["box_head"]["boxes"]["kernel"].T.reshape(4, -1)
    w_det = np.concatenate([params["box_head"]["classification"]["kernel"].T, boxes], axis=1)
    hidden = w_det @ params["mask_weights"]["fc1"]["kernel"] + params["mask_weights"]["fc1"]["bias"]
    hidden = np.where(hidden > 0, hidden, 0.1 * hidden)
    w_seg = hidden @ params["mask_weights"]["fc2"]["kernel"] + params["mask_weights"]["fc2"]["bias"]
    name = "roi_heads.mask_predictor.mask_fcn_logits"
    np.testing.assert_allclose(state[f"{name}.weight"][:, :, 0, 0], w_seg, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(state[f"{name}.bias"], 0)
    assert not any(name.startswith("mask_weights") for name in state)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backbone__stride_in_1x1", True),
        ("pixels__channel_order", "bgr"),
        ("rpn__anchor_convention", "detectron"),
        ("roi_align__convention", "detectron2"),
        ("roi_align__sampling_ratio", 0),
        ("roi_align__operation", "roi_pool"),
        ("mask_head__mlp", "light"),
        ("mask_predictor", "multinomial"),
        ("mask_head__body", "mlp"),
        ("box_head__body", "conv"),
        ("box_head__resolution", 5),
        ("mask_head__resolution", 7),
        ("mask_head__body", "residual"),
        ("mask_head__body", "hourglass"),
    ],
)
def test_what_torchvision_cannot_express_is_not_exported(field, value):
    # A residual body needs an odd number, and this resolution can be halved once.
    stages = {"mask_head__stage_channels": (8, 8), "mask_head__stage_blocks": (1, 1)}
    fitting = {"residual": {"mask_head__num_convs": 5}, "hourglass": stages}.get(value, {})
    config = small_config(**TORCHVISION | fitting | {field: value})
    model = build(config.model, len(CLASSES))
    with pytest.raises(ValueError, match=rf"cannot express model\.\S*{field.replace('__', '.')} = {value!r}"):
        to_torchvision({}, model, config.model)


def test_torchvision_has_no_model_with_masks_and_keypoints():
    config = small_config(keypoint_predictor="heatmaps", mask_predictor="class_specific", **TORCHVISION)
    with pytest.raises(ValueError, match=r"^torchvision's R-CNNs have masks or keypoints; got a model with both$"):
        to_torchvision({}, build(config.model, len(CLASSES)), config.model)


@pytest.fixture
def vectors(tmp_path):
    path = tmp_path / "vectors.npz"
    np.savez(path, names=np.array(["cat", "dog", "cow"]), glove=np.arange(6, dtype=np.float32).reshape(3, 2))
    return path


def test_embeddings_follow_the_labels_after_a_row_of_zeros(vectors):
    table = load_class_embeddings(vectors, ["cow", "cat"], "glove")
    np.testing.assert_array_equal(table, [[0, 0], [4, 5], [0, 1]])


@pytest.mark.parametrize(
    ("names", "table", "message"),
    [
        (["cat", "horse"], "glove", "no vector for 1 of 2 classes, such as .'horse'."),
        (["cat"], "bert", "'bert'; found"),
    ],
)
def test_a_class_or_table_that_the_file_lacks_is_named(vectors, names, table, message):
    with pytest.raises(ValueError, match=message):
        load_class_embeddings(vectors, names, table)


def test_a_pickle_in_the_file_is_refused(tmp_path):
    np.savez(tmp_path / "bad.npz", names=np.array([{"a": 1}], dtype=object), glove=np.zeros((1, 2)))
    with pytest.raises(ValueError, match="allow_pickle"):
        load_class_embeddings(tmp_path / "bad.npz", ["cat"], "glove")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: whole[:-40], "cannot be read as an .npz of arrays: File is not a zip file"),
        (lambda whole: whole.replace(b"NUMPY", b"NUMPI"), "cannot be read as an .npz of arrays"),
        (lambda _: b"cat 1 2", "cannot be read as an .npz of arrays: File is not a zip file"),
        (lambda _: b"", "cannot be read as an .npz of arrays: File is not a zip file"),
    ],
)
def test_a_damaged_file_of_vectors_is_named(vectors, content, message):
    vectors.write_bytes(content(vectors.read_bytes()))
    with pytest.raises(ValueError, match=rf"vectors\.npz: {message}"):
        load_class_embeddings(vectors, ["cat"], "glove")


@pytest.mark.parametrize("glove", [np.zeros((2, 4)), np.zeros(3), np.zeros((3, 2), "S3")])
def test_vectors_without_a_row_a_name_are_refused(tmp_path, glove):
    np.savez(tmp_path / "vectors.npz", names=np.array(["cat", "dog", "cow"]), glove=glove)
    with pytest.raises(ValueError, match=r"vectors\.npz: got 'glove' of .* a row for each of 3 names"):
        load_class_embeddings(tmp_path / "vectors.npz", ["cat"], "glove")


def test_embeddings_go_into_the_frozen_constants_of_t():
    variables = numpy_variables(tiny_model(3, weight_transfer__input="embedding", weight_transfer__embedding_size=2))
    table = np.ones((4, 2), np.float32)
    filled = with_class_embeddings(variables, table)
    np.testing.assert_array_equal(filled["frozen"]["mask_weights"]["embedding"], table)
    with pytest.raises(ValueError, match=r"shape \(5, 2\); the model expects \(4, 2\)"):
        with_class_embeddings(variables, np.ones((5, 2)))
    with pytest.raises(ValueError, match="has no class embedding"):
        with_class_embeddings(numpy_variables(tiny_model(3)), table)


def tree(*paths):
    return traverse_util.unflatten_dict({path: np.zeros(1) for path in paths}, sep="/")


def test_what_stays_at_its_initial_value_for_good_is_warned_of():
    fresh = tree(
        *("params/backbone/stem/kernel", "params/backbone/res2_block0/conv1/kernel", "params/fpn/lateral2/kernel"),
        *("params/backbone/res2_block0/conv2/kernel", "frozen/backbone/stem_norm/scale"),
        "frozen/mask_weights/embedding",
    )
    frozen = ("backbone/stem/.*", "backbone/res2_.*")
    source = "that no weights were loaded for"
    parameters = (
        f"untrained parameters {source}: backbone/res2_block0, backbone/stem (3 arrays): "
        "set --config.initialize.path, or --config.optimizer.untrained='()'"
    )
    constants = (
        f"constants of BatchNorm {source}: backbone/stem_norm (1 arrays): "
        "set --config.initialize.path, or --config.model.backbone.norm=group"
    )
    embeddings = (f"random class embeddings {source}: mask_weights/embedding (1 arrays): set --config.embedding.path",)
    assert untrained_without_source(fresh, fresh, frozen) == (parameters, constants, *embeddings)
    # Nothing frozen: the constants are still nobody's.
    assert untrained_without_source(fresh, fresh, ()) == (constants, *embeddings)
    # Weights came for the whole backbone, then for the stem alone, then vectors of classes.
    loaded = tree(*(path for path in traverse_util.flatten_dict(fresh, sep="/") if "backbone" in path))
    loaded["frozen"]["mask_weights"] = fresh["frozen"]["mask_weights"]
    loaded["params"]["fpn"] = fresh["params"]["fpn"]
    assert untrained_without_source(fresh, loaded, frozen) == embeddings
    partly = {**loaded, "params": {**loaded["params"], "backbone": {**fresh["params"]["backbone"]}}}
    partly["params"]["backbone"]["stem"] = loaded["params"]["backbone"]["stem"]
    assert untrained_without_source(fresh, partly, frozen)[0].startswith(
        f"untrained parameters {source}: backbone/res2_block0 (2 arrays)"
    )
    given = with_class_embeddings(loaded, np.ones(1))
    assert untrained_without_source(fresh, given, frozen) == ()


def test_weights_of_a_backbone_leave_nothing_frozen_without_source(tmp_path):
    config = small_config()
    shapes = shapes_of(config)
    arrays = backbone_of(torchvision_arrays(), r"backbone\.body\.", "")
    file = WeightFile(tmp_path / "model.pth", arrays)
    frozen = config.optimizer.untrained
    before = untrained_without_source(shapes, shapes, frozen)
    assert [line.partition(" that")[0] for line in before] == ["untrained parameters", "constants of BatchNorm"]
    after = take_over(shapes, FileWeights(file, recognize(file)), CLASSES)
    assert untrained_without_source(shapes, after, frozen) == ()
