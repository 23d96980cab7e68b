"""Keypoint R-CNN under the names of three code bases, and what its file is taken for."""

import functools
import re

import jax
import numpy as np
from flax import traverse_util

from benchmarks.parameters import keypoint_shapes, make_parameter
from configs import keypoint_rcnn
from maskx_jax.models.build import build, initialize
from maskx_jax.weights.files import Metadata, WeightFile
from maskx_jax.weights.layouts import LAYOUTS, recognize
from maskx_jax.weights.pretrained import FileWeights, open_weights, take_over

WIDTH, CHANNELS, HIDDEN, HEAD_CHANNELS, NUM_CONVS = 8, 24, 40, 12, 3
HEAD, PREDICTOR = r"roi_heads\.keypoint_head\.(\d+)\.", r"roi_heads\.keypoint_predictor\.kps_score_lowres\."


@functools.cache
def torchvision_arrays():
    """Return torchvision's Keypoint R-CNN with one block a stage and a small head, by its names."""
    shapes = keypoint_shapes((1, 1, 1, 1), WIDTH, CHANNELS, HIDDEN, HEAD_CHANNELS, NUM_CONVS)
    return {name: make_parameter(name, shape) for name, shape in shapes.items()}


@functools.cache
def shapes_of_variables():
    config = keypoint_rcnn.get_config()
    config.model.backbone.update(stage_sizes=(1, 1, 1, 1), width=WIDTH)
    config.model.rcnn.fpn.channels = config.model.rcnn.rpn.channels = CHANNELS
    config.model.rcnn.box_head.hidden = HIDDEN
    config.model.rcnn.keypoint_head.update(channels=HEAD_CHANNELS, num_convs=NUM_CONVS)
    model = build(config.model, 1)
    return jax.eval_shape(lambda: initialize(model, jax.random.key(0)))


def keypoint_parameters(arrays, preset):
    """Return what becomes of the arrays of the head alone, by path."""
    weights = FileWeights(WeightFile("head", arrays), LAYOUTS[preset])
    shapes = traverse_util.flatten_dict(shapes_of_variables(), sep="/")
    offers, unused = weights.offer({path: value.shape for path, value in shapes.items() if "keypoint_head" in path})
    assert not unused and len(offers) == 2 * NUM_CONVS + 2
    return offers


def head_arrays():
    return {name: array for name, array in torchvision_arrays().items() if "keypoint" in name}


def test_a_file_of_torchvision_fits_and_its_kernels_are_turned_around():
    arrays = torchvision_arrays()
    fresh = jax.tree.map(lambda shape: np.broadcast_to(np.float32(np.nan), shape.shape), shapes_of_variables())
    lines = []
    weights = FileWeights(WeightFile("keypoints.pth", arrays), recognize(WeightFile("keypoints.pth", arrays)))
    variables = take_over(fresh, weights, ["person"], say=lines.append)
    head = variables["params"]["keypoint_head"]
    assert "missing in the source: none" in lines[0] and "unexpected in the source: none" in lines[0]
    theirs = arrays["roi_heads.keypoint_predictor.kps_score_lowres.weight"]
    np.testing.assert_array_equal(head["deconvolution"]["kernel"][3, 1, 5, 11], theirs[5, 11, 3, 1])
    theirs = arrays["roi_heads.keypoint_head.4.weight"]
    np.testing.assert_array_equal(head["conv3"]["kernel"][2, 0, 5, 7], theirs[7, 5, 2, 0])


def test_the_head_under_the_names_of_three_code_bases_is_the_same():
    expected = keypoint_parameters(head_arrays(), "torchvision_detector")

    def renamed(conv, predictor):
        names = {HEAD: lambda found: f"{conv}{int(found[1]) // 2 + 1}.", PREDICTOR: f"{predictor}."}
        return {
            next(re.sub(old, new, name) for old, new in names.items() if re.match(old, name)): array
            for name, array in head_arrays().items()
        }

    of_detectron2 = renamed("roi_heads.keypoint_head.conv_fcn", "roi_heads.keypoint_head.score_lowres")
    blobs = {
        re.sub(r"\.(w|b)\w+$", r"_\1", name): array for name, array in renamed("conv_fcn", "kps_score_lowres").items()
    }
    # The fixed interpolation is a layer there.
    blobs |= {"kps_score_w": np.ones((17, 17, 4, 4)), "kps_score_b": np.zeros(17), "conv_fcn1_w_momentum": np.ones(1)}
    for arrays, preset in ((of_detectron2, "detectron2"), (blobs, "detectron")):
        actual = keypoint_parameters(arrays, preset)
        assert sorted(actual) == sorted(expected)
        for path, value in expected.items():
            np.testing.assert_array_equal(actual[path], value, err_msg=path)


def test_keypoints_are_found_and_scored_as_the_code_base_does():
    names = {
        "torchvision_coco": "roi_heads.keypoint_predictor.kps_score_lowres.bias",
        "detectron2": "roi_heads.keypoint_head.score_lowres.bias",
        "detectron": "kps_score_lowres_b",
    }
    rules = {}
    for preset, name in names.items():
        conventions = FileWeights(
            WeightFile("file", {name: np.zeros(17), "conv_rpn_fpn2_b": np.zeros(1)}), LAYOUTS[preset]
        ).conventions
        rules[preset] = conventions["evaluation.keypoint_grid"], conventions["evaluation.keypoint_score"]
    assert rules == {
        "torchvision_coco": ("canvas", "logit"),
        "detectron2": ("canvas", "probability"),
        "detectron": ("image", "logit"),
    }
    without = FileWeights(WeightFile("file", {"roi_heads.box_head.fc6.bias": np.zeros(1)}), LAYOUTS["torchvision_coco"])
    assert not [field for field in without.conventions if "keypoint" in field]


def test_a_file_of_one_class_and_17_keypoints_is_taken_for_the_published_one(tmp_path):
    published = WeightFile("keypoints.pth", torchvision_arrays())
    assert recognize(published) is LAYOUTS["torchvision_coco"] and recognize(published).epsilon == 0
    own = WeightFile("own.safetensors", torchvision_arrays(), metadata=Metadata([{"id": 1, "name": "person"}], 1e-5))
    assert recognize(own) is LAYOUTS["torchvision_detector"]
    without = {name: array for name, array in torchvision_arrays().items() if "keypoint" not in name}
    assert recognize(WeightFile("boxes.pth", without)) is LAYOUTS["torchvision_detector"]
    np.savez(tmp_path / "keypoints.npz", **torchvision_arrays())
    origin = open_weights(tmp_path / "keypoints.npz").origin
    assert "epsilon 0, assumed because of its 17 keypoints of one class: name another in initialize" in origin
