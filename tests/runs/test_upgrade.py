"""Configs of earlier versions are read."""

import json
from unittest import mock

import pytest

from configs import maskx_rcnn
from maskx_jax.coco.categories import Categories
from maskx_jax.runs import loading
from maskx_jax.runs.upgrade import upgrade, upgrade_name
from maskx_jax.runs.workdir import CONFIG_FILE, read_config


def config_of_0_1(mask_classes="voc", evaluation=""):
    """Return the config.json of a run of version 0.1."""
    config = maskx_rcnn.get_config().to_dict()
    del config["data"]["mask_classes"], config["data"]["read_ahead"], config["evaluation"]["mask_classes"]
    config["data"]["mask_split"], config["evaluation"]["split"] = mask_classes, evaluation
    config["data"]["directory"] = config["initialize"]["path"] = config["embedding"]["path"] = ""
    config["optimizer"]["ema_decay"] = 0.0
    config["optimizer"]["frozen"] = config["optimizer"].pop("untrained")
    model = config["model"]
    pixels, rcnn = model.pop("pixels"), model.pop("rcnn")
    roi_align = rcnn.pop("roi_align")
    del model["family"], model["backbone"]["kind"], rcnn["rpn"]["min_size"]
    del rcnn["keypoint_predictor"], rcnn["keypoint_head"], rcnn["box_supervision"], rcnn["class_prior"]
    del rcnn["box_head"]["conv_channels"]
    rcnn["box_head"]["max_detections"] = model.pop("max_detections")
    config["model"] = {
        **model,
        **rcnn,
        "channel_order": pixels["channel_order"],
        "pixel_mean": pixels["mean"],
        "pixel_std": pixels["std"],
        "roi_align_convention": roi_align["convention"],
        "roi_align_sampling_ratio": roi_align["sampling_ratio"],
    }
    return config


def test_the_model_of_version_0_1_is_read():
    old = config_of_0_1()
    upgraded, today = upgrade(old), maskx_rcnn.get_config().to_dict()
    # Its workers read their records themselves.
    today["data"]["read_ahead"] = 0
    rcnn = today["model"]["rcnn"]
    del rcnn["rpn"]["min_size"], rcnn["keypoint_predictor"], rcnn["keypoint_head"], rcnn["roi_align"]["operation"]
    del rcnn["box_supervision"], rcnn["class_prior"], rcnn["box_head"]["conv_channels"]
    assert upgraded == today
    assert old == config_of_0_1()
    assert upgrade(upgraded) == today


def test_a_model_older_than_a_section_has_the_defaults_of_its_time():
    old = config_of_0_1()
    del old["model"]["roi_align_convention"], old["model"]["roi_align_sampling_ratio"]
    assert upgrade(old)["model"]["rcnn"]["roi_align"] == {}


def test_a_run_older_than_the_field_pastes_masks_as_it_did():
    old = config_of_0_1()
    del old["evaluation"]["paste_grid"]
    assert upgrade(old)["evaluation"]["paste_grid"] == "continuous"
    old["evaluation"]["paste_grid"] = "integer"
    assert upgrade(old)["evaluation"]["paste_grid"] == "integer"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.channel_order", "model.pixels.channel_order"),
        ("model.rpn.anchor_convention", "model.rcnn.rpn.anchor_convention"),
        ("model.backbone.norm", "model.backbone.norm"),
        ("model.rcnn.rpn.anchor_convention", "model.rcnn.rpn.anchor_convention"),
    ],
)
def test_a_field_is_found_by_its_earlier_name(old, new):
    assert upgrade_name(old) == new


@pytest.mark.parametrize("mask_classes, evaluation", [("nonvoc", ""), ("random(1,4)", "voc"), (["cat", "dog"], "")])
def test_the_mask_classes_of_version_0_1_are_read(tmp_path, mask_classes, evaluation):
    text = json.dumps(config_of_0_1(mask_classes, evaluation))
    (tmp_path / CONFIG_FILE).write_text(text)
    config = read_config(tmp_path)
    expected = tuple(mask_classes) if isinstance(mask_classes, list) else mask_classes
    assert (config.data.mask_classes, config.evaluation.mask_classes) == (expected, evaluation or None)
    assert "mask_split" not in config.data and "split" not in config.evaluation
    assert (tmp_path / CONFIG_FILE).read_text() == text


def test_the_untrained_parameters_of_version_0_1_are_read():
    config = upgrade({"optimizer": {"name": "sgd", "frozen": ["backbone/.*"]}})
    assert config == {"optimizer": {"name": "sgd", "untrained": ["backbone/.*"]}}


def test_a_config_of_today_stays_as_it_is():
    config = maskx_rcnn.get_config().to_dict()
    assert upgrade(config) == config


def test_what_is_no_config_is_left_to_be_refused():
    for config in ({"data": 1}, {"model": []}, {"model": {"rpn": 3}, "data": None}):
        upgrade(config)


def test_a_config_that_does_not_fit_is_refused_with_the_remedy(tmp_path, monkeypatch):
    config = config_of_0_1()
    config["model"]["rpn"]["cascade"] = 3
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    checkpoints = mock.MagicMock()
    checkpoints.return_value.__enter__.return_value.categories.return_value = Categories((1,), ("person",))
    monkeypatch.setattr(loading, "Checkpoints", checkpoints)
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}: its config\.json does not fit .*'cascade'.*; load the run with the"
    ):
        loading.load(tmp_path)
