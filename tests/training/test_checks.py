"""Every field that can be checked without data is refused by name, in one line."""

import importlib.util
import itertools
import re

import pytest

from configs import demo, embedmask, fcos, keypoint_rcnn, mask_rcnn, maskx_rcnn, paper, variants
from configs.families import rcnn
from maskx_jax.coco.keypoints import PERSON
from maskx_jax.data.shapes import marks
from maskx_jax.training.checks import check_config, check_keypoints, choose_best_metric
from tests.models.build import tiny_config
from tests.processes import ROOT


def changed(**fields):
    """Return a tiny config, of the family that fields are of, with fields changed, given as section__field."""
    is_dense = any(path.startswith("model__dense") for path in fields)
    config = embedmask.get_config("size=tiny,data=shapes") if is_dense else tiny_config()
    for path, value in fields.items():
        *sections, field = path.split("__")
        section = config
        for name in sections:
            section = section[name]
        with section.ignore_type():
            section[field] = value
    return config


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("seed", -1, "0 to 2.14748e+09"),
        ("distributed__peer_timeout", 0, "1 or more"),
        ("watchdog__heartbeat_every", 0.0, "0.001 or more"),
        ("initialize__preset", "torchvison", "one of auto, torchvision_detector"),
        ("initialize__new", ("box_head/(",), "regular expressions (missing )"),
        ("embedding__path", "/no/such/file.npz", "an existing file"),
        ("model__family", "yolo", "one of rcnn"),
        ("model__backbone__kind", "vit", "one of resnet"),
        ("model__rcnn__mask_predictor", "transfr", "one of none, class_specific"),
        ("model__dtype", "float16", "one of float32, bfloat16"),
        ("model__pixels__channel_order", "rbg", "one of rgb, bgr"),
        ("model__pixels__std", (1.0, 0.0, 1.0), "1e-06 or more"),
        ("model__pixels__mean", (1.0, 2.0), "3 values"),
        ("model__rcnn__roi_align__convention", "torch", "one of torchvision"),
        ("model__backbone__norm", "batch", "one of frozen_batch, group"),
        ("model__backbone__stage_sizes", (1, 1, 1), "4 values"),
        ("model__backbone__stage_sizes", (1, 1, 0, 1), "1 or more"),
        ("model__rcnn__rpn__anchor_sizes", (32.0, 64.0), "5 values"),
        ("model__rcnn__rpn__aspect_ratios", (), "one or more"),
        ("model__rcnn__rpn__anchor_convention", "caffe", "one of torchvision"),
        ("model__rcnn__rpn__nms_threshold", 1.5, "0 to 1"),
        ("model__rcnn__rpn__pre_nms_top_k", (0, 100), "1 or more"),
        ("model__max_detections", 0, "1 or more"),
        ("model__rcnn__box_head__num_samples", -3, "1 or more"),
        ("model__rcnn__box_head__box_weights", (1.0, 1.0), "4 values"),
        ("model__rcnn__box_head__body", "fpn", "one of mlp, conv, mean"),
        ("model__rcnn__box_head__conv_channels", (), "one or more"),
        ("model__rcnn__mask_head__mlp", "heavy", "one of none, paper, light"),
        ("model__rcnn__mask_head__train_on", "boxes", "one of proposals, gt_boxes"),
        ("model__rcnn__mask_head__body", "deep", "one of plain, residual"),
        ("model__rcnn__mask_head__stage_blocks", (), "one or more"),
        ("model__rcnn__mask_head__stage_channels", (64, 0), "1 or more"),
        ("model__rcnn__mask_head__remat", "yes", "one of False, True"),
        ("model__rcnn__mask_head__targets", "drawn", "one of sampled, averaged"),
        ("model__rcnn__roi_align__sampling_ratio", -1, "0 to 8"),
        ("model__rcnn__roi_align__operation", "roi_crop", "one of roi_align, roi_align_max"),
        ("model__rcnn__weight_transfer__input", "seg", "one of cls"),
        ("model__rcnn__weight_transfer__activation", "gelu", "one of leaky_relu"),
        ("model__rcnn__weight_transfer__num_layers", 4, "one of 1, 2, 3"),
        ("model__dense__masks", "embedding", "one of none, embeddings"),
        ("model__dense__head__points", "center", "one of centre, torchvision"),
        ("model__dense__head__level_sizes", (64.0, 128.0), "4 values"),
        ("model__dense__head__channels", 9, "what GroupNorm divides: a multiple of 4 up to 128, of 32 beyond"),
        ("model__dense__embed_head__channels", 132, "what GroupNorm divides"),
        ("model__dense__embed_head__form", "v3", "one of ijcai, arxiv"),
        ("model__dense__embed_head__dimensions", 2, "3 or more"),
        ("model__dense__embed_head__mask_loss", "focal", "one of lovasz, dice, bce"),
        ("model__dense__embed_head__coverage", 1.5, "0 to 1"),
        ("data__source", "coco", "one of prepared, shapes"),
        ("data__loader", "tfdata", "one of tf_data, threads"),
        ("data__num_workers", 0, "1 or more"),
        ("data__read_ahead", -1, "0 or more"),
        ("data__prefetch", -1, "0 or more"),
        ("data__max_broken_records", -1, "0 or more"),
        ("data__repeat_threshold", -0.5, "0 to 1"),
        ("data__predicted_mask_weight", 1.5, "0 to 1"),
        ("data__transform__canvas", (100, 128), "multiples of 32"),
        ("data__transform__max_long_side", 0, "1 or more"),
        ("optimizer__name", "adam", "one of sgd, adamw"),
        ("optimizer__schedule", "linear", "one of step, cosine"),
        ("optimizer__learning_rate", float("nan"), "a finite number"),
        ("optimizer__learning_rate", -0.1, "0 or more"),
        ("optimizer__untrained", ("*",), "regular expressions (nothing to repeat"),
        ("optimizer__warmup_steps", -1, "0 or more"),
        ("optimizer__ema_decay", 1.5, "1e-06 to 1"),
        ("optimizer__ema_decay", 0, "1e-06 to 1"),
        ("optimizer__num_microbatches", 0, "1 or more"),
        ("optimizer__num_microbatches", 3, "a divisor of the 4 images that a device has of train.batch_size"),
        ("train__batch_size", 0, "1 or more"),
        ("train__batch_size", 7, "a multiple of the 2 devices"),
        ("train__num_steps", -1, "1 or more"),
        ("train__log_every", 0, "1 or more"),
        ("train__checkpoint_every", 0, "1 or more"),
        ("train__eval_every", -1, "0 or more"),
        ("train__keep_checkpoints", 0, "1 or more"),
        ("train__state_sharding", "zero", "one of replicated, fsdp"),
        ("train__best_metric", ("segm/B/APP",), "<kind>/<group>/<number>"),
        ("train__best_metric", ("segm/C/AP",), "<kind>/<group>/<number>"),
        ("train__best_metric", ("boundary/all/AP",), "one of what is measured here: bbox, segm"),
        ("evaluation__batch_size", 5, "a multiple of the 2 devices"),
        ("evaluation__backend", "coco", "one of hotcoco"),
        ("evaluation__mask_threshold", 50, "0 to 1"),
        ("evaluation__paste_grid", "whole", "one of continuous, integer"),
        ("evaluation__keypoint_grid", "whole", "one of image, canvas"),
        ("evaluation__keypoint_score", "odds", "one of probability, logit"),
    ],
)
def test_a_value_out_of_range_is_named(field, value, expected):
    with pytest.raises(ValueError, match=rf"^config\.{field.replace('__', '.')} is ") as caught:
        check_config(changed(**{field: value}), num_devices=2)
    assert f"; expected {expected}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__transform__canvas": (128, 64)}, r"config\.data\.transform: canvas is \(128, 64\); expected"),
        ({"data__transform__flip_probability": 2.0}, r"config\.data\.transform: flip_probability is 2\.0"),
        ({"data__transform__num_slots": 0}, r"config\.data\.transform: num_slots is 0"),
        ({"data__mask_classes": "vok"}, r"config\.data\.mask_classes: unknown mask classes 'vok'; did you mean 'voc'"),
        (
            {"data__mask_classes": "random(1)"},
            r"config\.data\.mask_classes: the mask classes 'random\(1\)' are malformed",
        ),
        (
            {"data__mask_classes": "/no/names.txt"},
            r"^config\.data\.mask_classes: found no file /no/names\.txt; expected",
        ),
        ({"evaluation__mask_classes": "vok"}, r"config\.evaluation\.mask_classes: unknown mask classes 'vok'"),
        (
            {"model__rcnn__mask_head__body": "residual", "model__rcnn__mask_head__num_convs": 2},
            r"config\.model\.rcnn\.mask_head\.num_convs is 2; expected an odd number",
        ),
        (
            {"model__rcnn__mask_predictor": "none", "train__best_metric": ("segm/all/AP",)},
            r"config\.train\.best_metric is \('segm/all/AP',\); expected one of what is measured here: bbox$",
        ),
    ],
)
def test_values_that_do_not_fit_together_are_named(fields, message):
    with pytest.raises((ValueError, ModuleNotFoundError), match=message):
        check_config(changed(**fields), num_devices=2)


def test_a_backend_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="backend 'hotcoco' needs a package: pip install hotcoco"):
        check_config(changed(evaluation__backend="hotcoco"))


def test_devices_are_spread_evenly():
    with pytest.raises(ValueError, match="got 8 devices on 3 processes"):
        check_config(changed(), num_devices=8, num_processes=3)


def test_the_data_must_have_the_keypoints_that_the_model_finds():
    model = keypoint_rcnn.get_config("size=tiny,data=shapes").model
    check_keypoints(model, marks.SKELETON)
    check_keypoints(mask_rcnn.get_config().model, None)
    with pytest.raises(
        ValueError, match=r"^config.model finds 5 keypoints an object; the data have none: what 0.1 prep"
    ):
        check_keypoints(model, None)
    with pytest.raises(ValueError, match=r"finds 5 .* have 17 \(nose, .*: set config.model.rcnn.keypoint_head.num_key"):
        check_keypoints(model, PERSON)


def shipped_configs():
    """Return every config that the package ships, one for each choice of each variant."""
    predictors = [f"predictor={name}" for name in ("class_specific", "class_agnostic", "none")]
    common = [
        f"{variant}={choice}"
        for variant, choices in {"size": rcnn.SIZE, **variants.COMMON}.items()
        if variant != "batch"
        for choice in choices
    ]
    c4 = ["size=tiny_c4", "backbone=r50_c4", "backbone=r101_c4"]
    keypoints = [*(text for text in common if not text.startswith("masks=")), "masks=no", "masks=yes"]
    training = [f"training={name}" for name in ("end_to_end", "stage_wise")]
    forms = [f"form={name}" for name in ("ijcai", "arxiv")]
    dense = [text for text in common if text != "size=lite"]
    return {
        "rcnn": lambda: rcnn.get_config(),
        "demo": lambda: demo.get_config(),
        **{f"mask_rcnn:{text}": lambda text=text: mask_rcnn.get_config(text) for text in common + c4 + predictors},
        **{f"maskx_rcnn:{text}": lambda text=text: maskx_rcnn.get_config(text) for text in common + c4 + training},
        **{f"keypoint_rcnn:{text}": lambda text=text: keypoint_rcnn.get_config(text) for text in keypoints},
        **{f"fcos:{text}": lambda text=text: fcos.get_config(text) for text in dense},
        **{f"embedmask:{text}": lambda text=text: embedmask.get_config(text) for text in dense + forms},
        **{
            f"paper:{row},{size}": lambda row=row, size=size: paper.get_config(f"row={row},size={size}")
            for row, size in itertools.product([*paper.ROWS, paper.DETECTOR], ("full", "tiny", "lite"))
            if size != "lite" or row == paper.DETECTOR or paper.ROWS[row].fits_lite
        },
    }


SHIPPED = shipped_configs()


@pytest.mark.parametrize("other", ["start=scratch", "backbone=lite0", "size=tiny,data=shapes", "size=lite"])
def test_stage_wise_training_freezes_the_detector_whatever_else_is_chosen(other):
    config = maskx_rcnn.get_config(f"training=stage_wise,{other}")
    assert config.optimizer.untrained == ("(backbone|fpn|rpn|box_head)/.*",)
    assert config.initialize.new == ("(mask_head|mask_weights)/.*",)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_passes(name):
    check_config(SHIPPED[name](), num_devices=8, num_processes=2)


def test_every_config_that_the_docs_name_exists():
    texts = [path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    named = {found for text in texts for found in re.findall(r"--config=configs/(\w+)\.py(?::([\w=,/()]+))?", text)}
    assert ("maskx_rcnn", "masks=annotated,mlp=light,start=scratch") in named
    for module, argument in named:
        get_config = importlib.import_module(f"configs.{module}").get_config
        check_config(get_config(argument) if argument else get_config())


@pytest.mark.parametrize(
    ("preferences", "measured", "chosen"),
    [
        (("segm/B/AP", "segm/all/AP"), ["bbox/all/AP", "segm/all/AP", "segm/B/AP"], "segm/B/AP"),
        (("segm/B/AP", "segm/all/AP"), ["bbox/all/AP", "segm/all/AP"], "segm/all/AP"),
        ((), ["bbox/all/AP"], None),
    ],
)
def test_the_best_metric_is_the_first_that_is_measured(preferences, measured, chosen):
    assert choose_best_metric(preferences, measured) == chosen


def test_a_best_metric_that_this_data_does_not_measure_is_refused():
    with pytest.raises(ValueError, match=r"is \('segm/B/AP',\); expected one that this data measures: bbox/all/AP"):
        choose_best_metric(("segm/B/AP",), ["bbox/all/AP"])
