"""Configs of earlier versions are read."""

import json

import pytest

from configs import maskx_rcnn
from maskx_jax.runs.upgrade import upgrade
from maskx_jax.runs.workdir import CONFIG_FILE, read_config


def config_of_0_1(mask_classes, evaluation):
    """Return the config.json of a run of version 0.1 as far as it is named otherwise today."""
    config = maskx_rcnn.get_config().to_dict()
    del config["data"]["mask_classes"], config["evaluation"]["mask_classes"]
    config["data"]["mask_split"], config["evaluation"]["split"] = mask_classes, evaluation
    return config


@pytest.mark.parametrize("mask_classes, evaluation", [("nonvoc", ""), ("random(1,4)", "voc"), (["cat", "dog"], "")])
def test_the_mask_classes_of_version_0_1_are_read(tmp_path, mask_classes, evaluation):
    text = json.dumps(config_of_0_1(mask_classes, evaluation))
    (tmp_path / CONFIG_FILE).write_text(text)
    config = read_config(tmp_path)
    expected = tuple(mask_classes) if isinstance(mask_classes, list) else mask_classes
    assert (config.data.mask_classes, config.evaluation.mask_classes) == (expected, evaluation)
    assert "mask_split" not in config.data and "split" not in config.evaluation
    assert (tmp_path / CONFIG_FILE).read_text() == text


def test_the_untrained_parameters_of_version_0_1_are_read():
    config = upgrade({"optimizer": {"name": "sgd", "frozen": ["backbone/.*"]}})
    assert config == {"optimizer": {"name": "sgd", "untrained": ["backbone/.*"]}}


def test_a_config_of_today_stays_as_it_is():
    config = maskx_rcnn.get_config().to_dict()
    assert upgrade(config) == config


def test_what_is_no_config_is_left_to_be_refused():
    assert upgrade({"data": 1}) == {"data": 1}
