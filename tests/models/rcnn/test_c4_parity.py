"""Mask R-CNN on C4 against torchvision's parts put together: `tests/golden/make_c4.py` made the outputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compilation import optimized
from tests.golden import model_inputs as inputs
from tests.golden.comparing import SCORE_TOLERANCE, canvas_of, error_of_map, golden, in_order_of_golden
from tests.models.torchvision_model import imported_c4
from tests.reference import boxes as box_reference

pytestmark = pytest.mark.slow


@functools.cache
def program():
    model, variables, _ = imported_c4()

    def run(model, images, image_sizes, rois, labels):
        maps = model.pyramid(images, image_sizes)
        logits, deltas = model.rpn(maps)
        proposals = model.rpn.proposals(logits, deltas, model.rpn.anchors(maps), image_sizes, training=False)
        used = jnp.ones(labels.shape, bool)
        # What the box head saw, as in training.
        features = model.region_features(maps, rois, used, 14)
        predictions = model.box_head(features)
        masks = model.region_predictions(
            model.mask_branch, maps, rois, labels, used, predictions.class_weights, features
        )
        return {
            "res4": maps[4],
            "rpn_logits": logits[4],
            "rpn_deltas": deltas[4],
            "proposals": proposals,
            "box_logits": predictions.logits,
            "box_deltas": predictions.deltas.of_regions,
            "mask_logits": masks,
            "detections": model.detect(images, image_sizes),
        }

    step = jax.jit(lambda variables, *images: model.apply(variables, *images, method=run))
    return functools.partial(step, variables)


@pytest.fixture(scope="module", params=inputs.C4_CANVASES)
def image(request):
    """Return (the torch model's outputs, ours) for each image; the real one may be absent."""
    name = request.param
    expected = golden(f"c4_{name}")
    coco_mini = request.getfixturevalue("coco_mini") if name.startswith("coco") else None
    canvas, size = canvas_of(name, coco_mini, expected)
    regions = expected["rois"][None], expected["labels"][None]
    with jax.default_matmul_precision("highest"), optimized():
        return expected, jax.tree.map(np.asarray, program()(canvas[None], np.array([size], np.float32), *regions))


@pytest.mark.parametrize("name", ["res4", "rpn_logits", "rpn_deltas"])
def test_the_map_and_the_rpn_outputs_agree(image, name, record_property):
    expected, ours = image
    error = error_of_map(name, ours[name], expected)
    record_property("error", error)
    assert error <= 1e-4


def test_proposals_are_the_same_set(image):
    expected, ours = image
    proposals = ours["proposals"]
    assert proposals.valid.all() and proposals.boxes.shape[1] == len(expected["proposals"]) == inputs.C4_PROPOSALS
    overlaps = box_reference.iou(proposals.boxes[0], expected["proposals"])
    assert min((overlaps.max(axis=0) > 1 - 1e-3).mean(), (overlaps.max(axis=1) > 1 - 1e-3).mean()) > 0.99


@pytest.mark.parametrize("name", ["box_logits", "box_deltas", "mask_logits"])
def test_logits_agree_on_the_same_regions(image, name, record_property):
    expected, ours = image
    error = float(np.abs(ours[name].reshape(expected[name].shape) - expected[name]).max())
    record_property("error", error)
    assert error <= 1e-3


def test_detections_are_the_same_in_the_same_order(image, record_property):
    expected, ours = image
    found = jax.tree.map(lambda values: values[0], ours["detections"])
    assert found.valid.all() and len(expected["detections/scores"]) == 100
    found = in_order_of_golden(found, expected)
    np.testing.assert_array_equal(found.labels, expected["detections/labels"])
    differences = {
        "boxes": np.abs(found.boxes - expected["detections/boxes"]).max(),
        "scores": np.abs(found.scores - expected["detections/scores"]).max(),
        "masks": np.abs(found.masks - expected["detections/masks"] / inputs.MASK_STEPS).max(),
    }
    for name, difference in differences.items():
        record_property(name, float(difference))
    assert differences["boxes"] <= 0.1
    assert differences["scores"] <= SCORE_TOLERANCE
    assert differences["masks"] <= 1e-2
