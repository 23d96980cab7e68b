"""Our ops against what torchvision returned for the same inputs (`python -m tests.golden.make_ops`)."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.nms_forms import nms
from maskx_jax.ops import boxes as box_ops
from maskx_jax.ops.anchors import cell_anchors, grid_anchors, grid_strides
from maskx_jax.ops.matching import Matcher
from maskx_jax.ops.roi_align import assign_levels, roi_align
from tests.golden import op_inputs

GOLDENS = np.load(pathlib.Path(op_inputs.__file__).with_name("ops.npz"))

ROI_CASES = op_inputs.roi_boxes()
SCENES = op_inputs.matching_scenes()


@pytest.mark.parametrize("size", op_inputs.ROI_SIZES)
@pytest.mark.parametrize("case", ROI_CASES)
def test_roi_align_equals_torchvision(case, size):
    pooled = jax.jit(lambda maps, boxes: roi_align(maps, boxes, size, convention="torchvision"))(
        op_inputs.pyramid(), ROI_CASES[case]
    )
    np.testing.assert_allclose(pooled, GOLDENS[f"roi_align/{case}/{size}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", op_inputs.ROI_SIZES)
@pytest.mark.parametrize("case", ["all", "none on level 4"])
def test_gradient_of_roi_align_equals_torchvision(case, size):
    boxes = op_inputs.all_roi_boxes() if case == "all" else ROI_CASES[case]
    cotangent = op_inputs.roi_cotangent(len(boxes), size)

    @jax.jit
    def gradient(maps, boxes):
        return jax.grad(lambda maps: (roi_align(maps, boxes, size, convention="torchvision") * cotangent).sum())(maps)

    for level, actual in gradient(op_inputs.pyramid(), boxes).items():
        expected = GOLDENS[f"roi_align_gradient/{case}/{size}/{level}"]
        assert expected.any() == (case == "all" or level != 4)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


def test_boxes_to_pool_are_on_the_levels_meant():
    levels = {name: assign_levels(jnp.asarray(boxes), 2, 5).tolist() for name, boxes in ROI_CASES.items()}
    assert levels["inside"] == [2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert levels["on the border"] == [5, 2, 2, 4, 4, 5]
    assert levels["between levels"] == [3, 2, 4, 3, 5, 4]
    assert levels["none on level 4"] == [2, 3, 3, 5]


@pytest.mark.parametrize("threshold", op_inputs.NMS_THRESHOLDS)
@pytest.mark.parametrize("batched", [False, True], ids=["one class", "per class"])
def test_nms_keeps_what_torchvision_keeps_in_its_order(batched, threshold):
    boxes, scores, labels = op_inputs.nms_boxes()
    labels = labels if batched else np.zeros_like(labels)
    suppress = jax.jit(lambda *arguments: nms(*arguments, threshold, len(boxes)))
    indices, valid = suppress(boxes, scores, labels, np.ones(len(boxes), bool))
    expected = GOLDENS[f"{'batched_nms' if batched else 'nms'}/{threshold}"]
    np.testing.assert_array_equal(indices[valid], expected)


def test_nms_scene_has_duplicates_and_ties_and_all_thresholds_and_labels_matter():
    boxes, scores, _ = op_inputs.nms_boxes()
    assert len(np.unique(boxes, axis=0)) <= 320 and len(np.unique(scores)) <= 60
    for name in ("nms", "batched_nms"):
        assert 0 < len(GOLDENS[f"{name}/0.3"]) < len(GOLDENS[f"{name}/0.5"]) < len(GOLDENS[f"{name}/0.7"]) < len(boxes)
    for threshold in op_inputs.NMS_THRESHOLDS:
        assert len(GOLDENS[f"nms/{threshold}"]) < len(GOLDENS[f"batched_nms/{threshold}"])


def test_a_float32_overlap_equal_to_the_threshold_is_kept_here_but_in_torchvision_only_if_the_threshold_rounds_down():
    # torchvision compares with the threshold in double precision, and 0.3 is less than the float32 nearest to it.
    for threshold, theirs in {0.3: [0], 0.5: [0, 1], 0.7: [0, 1]}.items():
        boxes, scores = map(jnp.asarray, op_inputs.nms_boxes_at_a_threshold(threshold))
        indices, valid = nms(boxes, scores, jnp.zeros(2, jnp.int32), jnp.ones(2, bool), threshold, 2)
        assert indices[valid].tolist() == [0, 1]
        assert GOLDENS[f"nms_at_the_threshold/{threshold}"].tolist() == theirs


@pytest.mark.parametrize("head", op_inputs.CODER_WEIGHTS)
def test_encode_equals_torchvision(head):
    boxes, anchors = op_inputs.coder_boxes()
    encode = jax.jit(lambda boxes, anchors: box_ops.encode(boxes, anchors, op_inputs.CODER_WEIGHTS[head]))
    expected = GOLDENS[f"encode/{head}"]
    # Relative above 1: deltas of small anchors reach into the hundreds, where 1e-5 is no longer a float32.
    error = np.abs(encode(boxes, anchors) - expected) / np.maximum(np.abs(expected), 1)
    assert error.max() <= 1e-5


@pytest.mark.parametrize("head", op_inputs.CODER_WEIGHTS)
def test_decode_equals_torchvision_also_beyond_the_clip(head):
    _, anchors = op_inputs.coder_boxes()
    weights = op_inputs.CODER_WEIGHTS[head]
    deltas = op_inputs.coder_deltas()
    assert (deltas[:, 2:] > box_ops.MAX_LOG_SCALE).any(axis=0).all()
    decode = jax.jit(lambda deltas, anchors: box_ops.decode(deltas, anchors, weights))
    expected = GOLDENS[f"decode/{head}"]
    # Relative to the box: coordinates of clipped boxes reach 10,000 pixels, where 1e-3 is one step of float32.
    side = np.maximum(expected[:, 2:] - expected[:, :2], 1).max(axis=1, keepdims=True)
    error = np.abs(decode(deltas * np.float32(weights), anchors) - expected) / side
    assert error.max() <= 1e-5


def anchors_of_levels(canvas):
    anchors = []
    for level, size in zip(op_inputs.ANCHOR_LEVELS, op_inputs.ANCHOR_SIZES, strict=True):
        cells = op_inputs.map_size(canvas, level)
        cell = cell_anchors((float(size),), op_inputs.ASPECT_RATIOS, 2**level, "torchvision")
        anchors.append(grid_anchors(cell, *cells, grid_strides(canvas, cells, 2**level, "torchvision")))
    return anchors


# On the last canvas P6 has 3 columns and 2 rows for 160 x 96 pixels.
@pytest.mark.parametrize("name", ["landscape", "portrait", "odd"])
def test_anchors_equal_torchvision_in_value_and_order(name):
    actual = np.concatenate(anchors_of_levels(op_inputs.ANCHOR_CANVASES[name]))
    np.testing.assert_array_equal(actual, GOLDENS[f"anchors/{name}"])


def matched(candidates, objects, settings):
    """Match as torchvision writes it: the object of a foreground candidate, else -1 (background) or -2 (ignored)."""
    foreground, background, low_quality = settings
    # Two empty slots, on top of the first candidates.
    slots = np.concatenate([objects, np.resize(candidates, (2, 4))])
    result = jax.jit(Matcher(foreground, background, crowd=0.7, low_quality=low_quality))(
        jnp.asarray(candidates),
        np.ones(len(candidates), bool),
        jnp.asarray(slots),
        np.arange(len(slots)) < len(objects),
        np.zeros(len(slots), bool),
    )
    assert not (result.foreground & result.background).any()
    return np.where(result.foreground, result.gt_index, np.where(result.background, -1, -2))


@pytest.mark.parametrize("head", op_inputs.MATCHERS)
@pytest.mark.parametrize("scene", SCENES)
def test_matching_equals_torchvision(scene, head):
    actual = matched(*SCENES[scene], op_inputs.MATCHERS[head])
    np.testing.assert_array_equal(actual, GOLDENS[f"match/{scene}/{head}"])


def test_matching_scenes_are_what_their_names_say():
    for head, outcomes in (("rpn", [-2, -1, 0]), ("box_head", [-1, 0])):
        assert np.unique(np.minimum(GOLDENS[f"match/several objects/{head}"], 0)).tolist() == outcomes
    assert GOLDENS["match/a candidate between two objects/rpn"].tolist() == [0, -1, -1, 1]
    assert GOLDENS["match/two candidates tie for the best/rpn"].tolist() == [0, 0, -1, 1, 1, -1]
    assert GOLDENS["match/overlaps equal to the thresholds/rpn"].tolist() == [0, -2, -2, -2, -2, -1]
    assert GOLDENS["match/overlaps equal to the thresholds/box_head"].tolist() == [0, 0, -1, 0, -1, -1]


def test_an_object_that_nothing_touches_makes_every_candidate_foreground_in_torchvision_but_changes_nothing_here():
    # All candidates tie for its best overlap, 0; torchvision would train all of them as objects they hardly touch.
    candidates, objects = op_inputs.scene_with_an_object_that_nothing_touches()
    assert (GOLDENS["match/an object that nothing touches/rpn"] >= 0).all()
    expected = GOLDENS["match/without the object that nothing touches/rpn"]
    assert (expected < 0).sum() > 50
    np.testing.assert_array_equal(matched(candidates, objects, op_inputs.MATCHERS["rpn"]), expected)
