"""Keypoint R-CNN against torchvision's, with the same parameters: `tests/golden/make_keypoints.py` made the outputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.evaluation.keypoints import decode
from maskx_jax.structures import Keypoints
from tests.compilation import optimized
from tests.golden import model_inputs as inputs
from tests.golden.comparing import (
    GRADIENT_TOLERANCE,
    SCORE_TOLERANCE,
    canvas_of,
    error_of_loss,
    error_of_map,
    errors_of_gradient,
    golden,
    in_order_of_golden,
)
from tests.models.build import shapes_batch
from tests.models.torchvision_model import imported_keypoint_rcnn, losses_and_gradients, with_proposals_of

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True, scope="module")
def full_precision():
    """Keep GPUs and TPUs from rounding float32 inputs of products."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def stages():
    """Return our keypoint maps on torchvision's regions, and our detections."""
    expected = golden("keypoint_shapes_512")
    canvas, size = canvas_of("shapes_512", None, expected)
    imported = imported_keypoint_rcnn()

    def run(model, images, image_sizes, rois):
        pyramid = model.pyramid(images, image_sizes)
        used, (head,) = jnp.ones(rois.shape[:2], bool), model.heads
        class_weights = model.box_predictions(pyramid, rois, used).class_weights
        maps = model.region_predictions(head, pyramid, rois, used.astype(jnp.int32), used, class_weights)
        return maps[0], jax.tree.map(lambda values: values[0], model.detect(images, image_sizes))

    step = jax.jit(lambda variables, *arrays: imported.model.apply(variables, *arrays, method=run))
    with optimized():
        arrays = canvas[None], np.array([size], np.float32), expected["keypoint_rois"][None]
        return jax.tree.map(np.asarray, step(imported.variables, *arrays))


def test_maps_agree_on_the_same_regions(stages, record_property):
    maps, _ = stages
    error = error_of_map("keypoint_maps", maps, golden("keypoint_shapes_512"))
    record_property("error", error)
    assert error <= 1e-4


def test_detections_and_their_keypoints_are_the_same_in_the_same_order(stages, record_property):
    expected = {name: golden("keypoint_shapes_512")[f"detections/{name}"] for name in ("boxes", "scores", "keypoints")}
    peaks = golden("keypoint_shapes_512")["detections/keypoints_scores"]
    assert stages[1].valid.sum() == len(expected["scores"]) == 100
    found = in_order_of_golden(stages[1], golden("keypoint_shapes_512"))
    boxes = np.abs(found.boxes - expected["boxes"]).max()
    scores = np.abs(found.scores - expected["scores"]).max()
    # By torchvision's boxes: where a side is a whole number but for rounding, one cell more or less would be there.
    points = decode(found.keypoint_maps, expected["boxes"], "logit")
    distances = np.abs(points[..., :2] - expected["keypoints"][..., :2]).max()
    heights = (np.abs(points[..., 2] - peaks) / np.abs(peaks).max()).max()
    for name, value in (("boxes", boxes), ("scores", scores), ("keypoints", distances), ("peaks", heights)):
        record_property(name, float(value))
    assert boxes <= 0.1 and scores <= SCORE_TOLERANCE
    assert distances <= 0.1
    assert heights <= 1e-4


@pytest.fixture(scope="module")
def losses():
    """Return our losses and gradients on a batch where all anchors and regions are trained on."""
    imported = imported_keypoint_rcnn(
        rpn__num_samples=inputs.LOSS_SAMPLES["rpn"],
        box_head__num_samples=inputs.LOSS_SAMPLES["box"],
        box_head__foreground_fraction=0.5,
        keypoint_head__num_samples=32,
    )
    batch = shapes_batch(image_size=inputs.LOSS_IMAGE_SIZE)
    gt = batch.ground_truth
    points, labelled = inputs.made_up_keypoints(np.asarray(gt.boxes))
    keypoints = jax.tree.map(jnp.asarray, Keypoints(points, labelled, labelled))
    gt = dataclasses.replace(gt, labels=jnp.ones_like(gt.labels), keypoints=keypoints)
    model = with_proposals_of("keypoint_losses", imported)
    batch = dataclasses.replace(batch, ground_truth=gt)
    return losses_and_gradients(model, imported.variables, batch, inputs.KEYPOINT_GRADIENTS.values())


@pytest.mark.parametrize(
    ("theirs", "name"),
    [
        ("loss_objectness", "rpn_class"),
        ("loss_rpn_box_reg", "rpn_box"),
        ("loss_classifier", "box_class"),
        ("loss_box_reg", "box"),
        ("loss_keypoint", "keypoint"),
    ],
)
def test_losses_agree(losses, theirs, name, record_property):
    parts, _ = losses
    error = error_of_loss(theirs, parts[name], golden("keypoint_losses"))
    record_property("error", error)
    assert error <= 1e-4


@pytest.mark.parametrize(("theirs", "path"), inputs.KEYPOINT_GRADIENTS.items())
def test_gradients_of_the_total_loss_agree(losses, theirs, path, record_property):
    _, gradients = losses
    ours = gradients[path]
    # In torchvision's order of the axes, where the positions were drawn.
    if path.startswith("box_head"):
        ours = ours.reshape(7, 7, 256, -1).transpose(3, 2, 0, 1)
    elif path.endswith("deconvolution/kernel"):
        ours = ours.transpose(2, 3, 0, 1)
    else:
        ours = ours.transpose(3, 2, 0, 1)
    error, error_of_norm = errors_of_gradient(theirs, ours, golden("keypoint_losses"))
    record_property("error", error)
    assert error <= GRADIENT_TOLERANCE
    assert error_of_norm <= GRADIENT_TOLERANCE
