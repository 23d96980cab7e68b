"""FCOS against torchvision's, with the same parameters: `tests/golden/make_fcos.py` made the outputs."""

import jax
import numpy as np
import pytest

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
from tests.models.torchvision_model import imported_fcos, losses_and_gradients

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def full_precision():
    """Keep GPUs and TPUs from rounding float32 inputs of products."""
    with jax.default_matmul_precision("highest"):
        yield


def _stages_of(name, coco_mini, cpu):
    """Return what our model makes of an image at every stage."""
    canvas, size = canvas_of(name, coco_mini, golden(f"fcos_{name}"))
    imported = imported_fcos(cpu)

    def run(model, images, image_sizes):
        pyramid = model.pyramid(images, image_sizes)
        points, predictions = model.head.grid(pyramid, images), model.head(pyramid)
        maps = {"logits": predictions.logits, "distances": predictions.distances, "centerness": predictions.centerness}
        starts = np.cumsum((0, *points.counts))
        found, _ = model.head.detect(predictions, points, image_sizes)
        return {
            **{f"fpn/{level}": features for level, features in pyramid.items()},
            **{
                f"{stage}/{level}": values[:, starts[i] : starts[i + 1]]
                for stage, values in maps.items()
                for i, level in enumerate(sorted(pyramid))
            },
            "points": points.places,
            "detections": jax.tree.map(lambda values: values[0], found),
        }

    step = jax.jit(lambda variables, *args: imported.model.apply(variables, *args, method=run))
    with optimized():
        return jax.tree.map(np.asarray, step(imported.variables, canvas[None], np.array([size], np.float32)))


ON_ONE_CPU = ("shapes_512", True)


@pytest.fixture(
    scope="module",
    params=[*((name, False) for name in inputs.CANVASES), ON_ONE_CPU],
    ids=lambda param: param[0] if param != ON_ONE_CPU else f"{param[0]}_on_one_cpu",
)
def image(request):
    """Return (torchvision's outputs, ours) for each image; the real ones may be absent. One CPU convolves otherwise."""
    name, cpu = request.param
    coco_mini = request.getfixturevalue("coco_mini") if name.startswith("coco") else None
    return golden(f"fcos_{name}"), _stages_of(name, coco_mini, cpu)


@pytest.mark.parametrize("stage", ["fpn", "logits", "distances", "centerness"])
def test_maps_agree(image, stage, record_property):
    expected, ours = image
    error = max(error_of_map(f"{stage}/{level}", ours[f"{stage}/{level}"], expected) for level in range(3, 8))
    record_property("error", error)
    assert error <= 1e-4


def test_points_lie_where_torchvision_has_its_anchors(image):
    # On 800 rows those of P6 and P7 are 61 and 114 pixels apart.
    expected, ours = image
    np.testing.assert_array_equal(ours["points"], expected["points"])


def test_detections_are_the_same_in_the_same_order(image, record_property):
    expected, ours = image
    assert ours["detections"].valid.sum() == len(expected["detections/scores"]) == 100
    found = in_order_of_golden(ours["detections"], expected)
    np.testing.assert_array_equal(found.labels, expected["detections/labels"])
    boxes = float(np.abs(found.boxes - expected["detections/boxes"]).max())
    scores = float(np.abs(found.scores - expected["detections/scores"]).max())
    record_property("boxes", boxes)
    record_property("scores", scores)
    assert boxes <= 0.1
    assert scores <= SCORE_TOLERANCE


@pytest.fixture(scope="module")
def losses():
    """Return our losses, and the gradients of their sum."""
    imported, batch = imported_fcos(), shapes_batch(image_size=inputs.FCOS_LOSS_IMAGE_SIZE)
    return losses_and_gradients(imported.model, imported.variables, batch, inputs.FCOS_GRADIENTS.values())


@pytest.mark.parametrize(
    ("theirs", "name"),
    [("classification", "class"), ("bbox_regression", "box"), ("bbox_ctrness", "centerness")],
)
def test_losses_agree(losses, theirs, name, record_property):
    parts, _ = losses
    error = error_of_loss(theirs, parts[name], golden("fcos_losses"))
    record_property("error", error)
    assert error <= 1e-4


@pytest.mark.parametrize(("theirs", "path"), inputs.FCOS_GRADIENTS.items())
def test_gradients_of_the_total_loss_agree(losses, theirs, path, record_property):
    _, gradients = losses
    ours = gradients[path].transpose(3, 2, 0, 1)
    error, error_of_norm = errors_of_gradient(theirs, ours, golden("fcos_losses"))
    record_property("error", error)
    assert error <= GRADIENT_TOLERANCE
    assert error_of_norm <= GRADIENT_TOLERANCE
