"""The whole model against torchvision's, with the same parameters: `tests/golden/make_model.py` made the outputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.evaluation.paste_masks import paste_mask
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
from tests.models.torchvision_model import imported_model, losses_and_gradients, with_proposals_of
from tests.reference import boxes as box_reference

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def full_precision():
    """Keep GPUs and TPUs from rounding float32 inputs of products."""
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def _stages_of(name, coco_mini):
    """Return what our model makes of an image at every stage, on the regions that torchvision was asked about."""
    expected = golden(f"model_{name}")
    canvas, size = canvas_of(name, coco_mini, expected)
    sizes = np.array([size], np.float32)
    imported = imported_model()

    def run(model, images, image_sizes, box_rois, mask_rois, mask_labels):
        pyramid = model.pyramid(images, image_sizes)
        logits, deltas = model.rpn(pyramid)
        proposals = model.rpn.proposals(logits, deltas, model.rpn.anchors(pyramid), image_sizes, training=False)
        predictions = model.box_predictions(pyramid, box_rois, jnp.ones(box_rois.shape[:2], bool))
        used = jnp.ones(mask_labels.shape, bool)
        mask_logits = model.region_predictions(
            model.mask_branch, pyramid, mask_rois, mask_labels, used, predictions.class_weights
        )
        detections = model.detect(images, image_sizes)
        return {
            **{f"fpn/{level}": features for level, features in pyramid.items()},
            **{f"rpn_logits/{level}": values for level, values in logits.items()},
            **{f"rpn_deltas/{level}": values for level, values in deltas.items()},
            "proposals": proposals,
            "box_logits": predictions.logits[0],
            "box_deltas": predictions.deltas.of_regions.reshape(predictions.logits.shape[1], -1),
            "mask_logits": mask_logits[0],
            "detections": jax.tree.map(lambda values: values[0], detections),
        }

    step = jax.jit(lambda variables, *args: imported.model.apply(variables, *args, method=run))
    regions = (expected["box_rois"][None], expected["mask_rois"][None], expected["mask_labels"][None])
    with optimized():
        return jax.tree.map(np.asarray, step(imported.variables, canvas[None], sizes, *regions)), size


@pytest.fixture(scope="module", params=list(inputs.CANVASES))
def image(request):
    """Return (torchvision's outputs, ours, size of the image) for each image; the real ones may be absent."""
    name = request.param
    coco_mini = request.getfixturevalue("coco_mini") if name.startswith("coco") else None
    return golden(f"model_{name}"), *_stages_of(name, coco_mini)


@pytest.mark.parametrize("stage", ["fpn", "rpn_logits", "rpn_deltas"])
@pytest.mark.parametrize("level", [2, 3, 4, 5, 6])
def test_feature_maps_and_rpn_outputs_agree(image, stage, level, record_property):
    expected, ours, _ = image
    name = f"{stage}/{level}"
    error = error_of_map(name, ours[name], expected)
    record_property("error", error)
    assert error <= 1e-4


def test_proposals_are_the_same_set(image, record_property):
    expected, ours, _ = image
    proposals = ours["proposals"]
    boxes = proposals.boxes[0][proposals.valid[0]]
    overlaps = box_reference.iou(boxes, expected["proposals"])
    same = min((overlaps.max(axis=0) > 1 - 1e-3).mean(), (overlaps.max(axis=1) > 1 - 1e-3).mean())
    record_property("share", float(same))
    assert len(boxes) == len(expected["proposals"])
    assert same > 0.99


@pytest.mark.parametrize("name", ["box_logits", "box_deltas", "mask_logits"])
def test_logits_agree_on_the_same_regions(image, name, record_property):
    expected, ours, _ = image
    error = float(np.abs(ours[name] - expected[name]).max())
    record_property("error", error)
    assert error <= 1e-3


def test_detections_are_the_same_in_the_same_order(image, record_property):
    expected, ours, (height, width) = image
    count = len(expected["detections/scores"])
    assert ours["detections"].valid.sum() == count > 50
    found = in_order_of_golden(ours["detections"], expected)
    np.testing.assert_array_equal(found.labels, expected["detections/labels"])
    boxes = float(np.abs(found.boxes - expected["detections/boxes"]).max())
    scores = float(np.abs(found.scores - expected["detections/scores"]).max())
    masks = expected["detections/masks"] / np.float32(inputs.MASK_STEPS)
    overlaps = []
    for i in range(count):
        bitmaps = np.zeros((2, height, width), bool)
        pairs = [(found.masks[i], found.boxes[i]), (masks[i], expected["detections/boxes"][i])]
        for bitmap, (mask, box) in zip(bitmaps, pairs, strict=True):
            # Without rounding to whole pixels, which would move a mask whose box differs in the sixth digit by one.
            region, (top, left) = paste_mask(mask, box, height, width)
            bitmap[top : top + region.shape[0], left : left + region.shape[1]] = region
        union = (bitmaps[0] | bitmaps[1]).sum()
        overlaps.append((bitmaps[0] & bitmaps[1]).sum() / union if union else 1.0)
    record_property("boxes", boxes)
    record_property("scores", scores)
    record_property("mask_iou", float(min(overlaps)))
    assert boxes <= 0.1
    assert scores <= SCORE_TOLERANCE
    assert min(overlaps) > 0.99
    # Random weights leave some masks empty, in torchvision as in ours; that is no evidence.
    assert (masks > 0.5).any(axis=(1, 2)).mean() > 0.5


@pytest.fixture(scope="module")
def losses():
    """Return our losses and gradients on a batch where all anchors and regions are trained on."""
    samples = inputs.LOSS_SAMPLES
    imported = imported_model(
        rpn__num_samples=samples["rpn"],
        box_head__num_samples=samples["box"],
        box_head__foreground_fraction=0.5,
        mask_head__num_samples=samples["mask"],
    )
    batch = shapes_batch(image_size=inputs.LOSS_IMAGE_SIZE)
    model = with_proposals_of("model_losses", imported)
    return losses_and_gradients(model, imported.variables, batch, inputs.GRADIENTS.values())


@pytest.mark.parametrize(
    ("theirs", "name"),
    [
        ("loss_objectness", "rpn_class"),
        ("loss_rpn_box_reg", "rpn_box"),
        ("loss_classifier", "box_class"),
        ("loss_box_reg", "box"),
        ("loss_mask", "mask"),
    ],
)
def test_losses_agree(losses, theirs, name, record_property):
    parts, _ = losses
    error = error_of_loss(theirs, parts[name], golden("model_losses"))
    record_property("error", error)
    assert error <= 1e-4


@pytest.mark.parametrize(("theirs", "path"), inputs.GRADIENTS.items())
def test_gradients_of_the_total_loss_agree(losses, theirs, path, record_property):
    _, gradients = losses
    # In torchvision's order of the axes, where the positions were drawn.
    ours = gradients[path]
    if path.startswith("box_head"):
        ours = ours.reshape(7, 7, 256, -1).transpose(3, 2, 0, 1)
    else:
        ours = ours.transpose(3, 2, 0, 1)
    error, error_of_norm = errors_of_gradient(theirs, ours, golden("model_losses"))
    record_property("error", error)
    assert error <= GRADIENT_TOLERANCE
    assert error_of_norm <= GRADIENT_TOLERANCE
