"""Mask R-CNN on C4 under the names of three code bases."""

import functools

import numpy as np
import pytest

from benchmarks.parameters import c4_shapes, make_parameters
from configs import mask_rcnn
from maskx_jax.ops.anchors import cell_anchors
from maskx_jax.weights.files import WeightFile
from maskx_jax.weights.layouts import LAYOUTS, check_evidence
from tests.weights.test_pretrained import (
    NUM_CLASSES,
    WIDTH,
    as_detectron,
    as_detectron2,
    assert_equal_but_for_unused_rows,
    renamed,
    taken_over,
)


@functools.cache
def torchvision_arrays():
    return make_parameters(c4_shapes(NUM_CLASSES, (1, 1, 1, 1), WIDTH))


def in_backbone():
    """Return the arrays with res5 in the backbone, where it is in files of detectors with FPN and of classifiers."""
    return renamed(torchvision_arrays(), {r"roi_heads\.box_head\.layer4": "backbone.body.layer4"})


def detectron2_arrays():
    names = {r"backbone\.bottom_up\.res5": "roi_heads.res5", r"backbone\.bottom_up\.": "backbone."}
    return renamed(as_detectron2(in_backbone()), names)


def detectron_arrays():
    return renamed(as_detectron(in_backbone()), {r"(.*rpn.*)_fpn2": r"\1"})


def small_config():
    config = mask_rcnn.get_config("backbone=r50_c4")
    config.model.backbone.update(stage_sizes=(1, 1, 1, 1), width=WIDTH)
    config.model.rcnn.rpn.channels = 16 * WIDTH
    config.model.rcnn.mask_head.channels = 4 * WIDTH
    config.model.rcnn.roi_align.sampling_ratio = 1
    return config


@pytest.mark.parametrize(("make", "preset"), [(detectron2_arrays, "detectron2"), (detectron_arrays, "detectron")])
def test_the_same_network_comes_out_of_every_code_bases_file(tmp_path, make, preset):
    expected, fields, _ = taken_over(tmp_path, torchvision_arrays(), "torchvision_detector", config=small_config())
    assert fields.rcnn.roi_align.sampling_ratio == 2
    lines = []
    variables, fields, _ = taken_over(tmp_path, make(), config=small_config(), say=lines.append)
    assert "missing in the source: none" in lines[0] and "unexpected in the source: none" in lines[0]
    assert_equal_but_for_unused_rows(variables, expected)
    # Where the regions are pooled from one map, Detectron's configs do not say 2.
    assert (fields.rcnn.roi_align.convention, fields.rcnn.roi_align.sampling_ratio) == (preset, 0)


def test_a_classifier_fills_the_last_stage_too(tmp_path):
    arrays = {name.removeprefix("backbone.body."): array for name, array in in_backbone().items() if "body" in name}
    variables, _, _ = taken_over(tmp_path, arrays, "torchvision_classifier", config=small_config())
    kernel = variables["params/backbone/res5_block0/conv2/kernel"]
    np.testing.assert_array_equal(kernel, arrays["layer4.0.conv2.weight"].transpose(2, 3, 1, 0))
    assert np.isnan(variables["params/box_head/classification/kernel"]).all()


def test_all_anchors_of_a_detectron2_file_are_on_one_map():
    conventions = LAYOUTS["detectron2"].rcnn_conventions
    sizes, ratios = conventions["rcnn.rpn.anchor_sizes"], conventions["rcnn.rpn.aspect_ratios"]
    cells = cell_anchors(sizes, ratios, 16, "detectron2")
    name = "proposal_generator.anchor_generator.cell_anchors.0"
    check_evidence(WeightFile("model.pkl", {name: cells}), LAYOUTS["detectron2"])
    with pytest.raises(ValueError, match=r"cell_anchors\.0 is"):
        check_evidence(WeightFile("model.pkl", {name: cells[::-1]}), LAYOUTS["detectron2"])
