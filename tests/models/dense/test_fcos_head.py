"""Where the code bases of FCOS disagree: one test for each argument, on points and predictions written by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.models.dense.fcos_head import FCOSHead, PointPredictions, Points
from maskx_jax.ops.losses import total_loss
from maskx_jax.ops.point_matching import PointMatch
from maskx_jax.structures import GroundTruth
from tests.reference import points as reference
from tests.reference.giou import giou

NUM_CLASSES = 2


def points(*places, stride=8.0, counts=None):
    places = jnp.asarray(places, jnp.float32).reshape(-1, 2)
    count = len(places)
    return Points(places, jnp.full(count, stride), jnp.tile(jnp.array([0.0, 64.0]), (count, 1)), counts or (count,))


def predictions(logits, distances, centerness):
    """Return predictions of one image, or of several."""
    logits, distances, centerness = (jnp.asarray(x, jnp.float32) for x in (logits, distances, centerness))
    if logits.ndim == 2:
        logits, distances, centerness = logits[None], distances[None], centerness[None]
    return PointPredictions(logits, distances, centerness, {}, jnp.zeros((logits.shape[-1], 1)))


def objects(boxes, labels, is_crowd=False, images=1):
    boxes, labels = jnp.asarray([boxes] * images, jnp.float32), jnp.asarray([labels] * images)
    everything = jnp.ones(labels.shape, bool)
    return GroundTruth(boxes, labels, None, None, everything, everything & is_crowd, everything)


def logit(probability):
    return math.log(probability / (1 - probability))


# Two points of one object of 40 x 20 pixels, in its middle and beside it, and one that is background.
SCENE = points((20, 10), (12, 8), (60, 60))
BOX = (0.0, 0.0, 40.0, 20.0)
MATCH = PointMatch(jnp.zeros((1, 3), jnp.int32), jnp.array([[True, True, False]]))
DISTANCES = ((2.0, 1.0, 2.5, 1.5), (1.5, 1.5, 3.0, 1.0), (1.0, 1.0, 1.0, 1.0))
LOGITS = ((-1.0, 0.5), (0.2, -2.0), (-3.0, -0.5))
QUALITY = (0.3, -0.7, 2.0)


def losses(head, *arguments):
    """Return the losses of predictions, of assignments and of objects, at the points of the scene."""
    values = jax.jit(lambda made, matched, gt: total_loss(head.losses(made, SCENE, matched, gt))[1])(*arguments)
    return {name: float(value) for name, value in values.items()}


def losses_of(head, logits=LOGITS, distances=DISTANCES, quality=QUALITY, matched=MATCH, gt=None):
    gt = objects([BOX], [2]) if gt is None else gt
    return losses(head, predictions(logits, distances, quality), matched, gt)


def around(place, distances, stride=8):
    (x, y), (left, top, right, bottom) = place, distances
    return (x - stride * left, y - stride * top, x + stride * right, y + stride * bottom)


def cross_entropy(value, target):
    return -target * math.log(1 / (1 + math.exp(-value))) - (1 - target) * math.log(1 / (1 + math.exp(value)))


PLACES = ((20, 10), (12, 8))
CENTERNESS = [reference.centerness(*sides) for sides in ((20, 10, 20, 10), (12, 8, 28, 12))]
GIOU = [giou(around(place, d), BOX) for place, d in zip(PLACES, DISTANCES, strict=False)]


def test_losses_are_torchvisions_where_nothing_is_said():
    found = losses_of(FCOSHead(NUM_CLASSES))
    np.testing.assert_allclose(found["box"], np.mean([1 - g for g in GIOU]), rtol=1e-5)
    expected = [cross_entropy(value, target) for value, target in zip(QUALITY, CENTERNESS, strict=False)]
    np.testing.assert_allclose(found["centerness"], np.mean(expected), rtol=1e-5)
    focal = 0
    for row, labels in zip(LOGITS, ((0, 1), (0, 1), (0, 0)), strict=True):
        for value, target in zip(row, labels, strict=True):
            p = 1 / (1 + math.exp(-value))
            alpha, missing = (0.25, 1 - p) if target else (0.75, p)
            focal += alpha * missing**2 * cross_entropy(value, target)
    np.testing.assert_allclose(found["class"], focal / 2, rtol=1e-5)


def test_boxes_may_be_weighted_by_centerness_and_divided_by_its_sum():
    found = losses_of(FCOSHead(NUM_CLASSES, box_weight="centerness"))
    np.testing.assert_allclose(found["box"], np.average([1 - g for g in GIOU], weights=CENTERNESS), rtol=1e-5)


def test_the_smoothing_of_boxes_is_in_strides():
    # One point of a box of 5 x 2.5 strides, predicted exactly but half as wide.
    found = losses_of(
        FCOSHead(NUM_CLASSES, box_smoothing=1.0),
        distances=((1.25, 1.25, 1.25, 1.25), *DISTANCES[1:]),
        matched=PointMatch(MATCH.gt_index, jnp.array([[True, False, False]])),
    )
    np.testing.assert_allclose(found["box"], 1 - (6.25 + 1) / (12.5 + 1), rtol=1e-5)


def test_the_quality_may_be_the_iou_of_the_predicted_box():
    head = FCOSHead(NUM_CLASSES, quality="iou")
    # The predicted box of the middle point: x from 4 to 40, y from 2 to 22; 36 x 18 in common.
    iou = 36 * 18 / (36 * 20 + 40 * 20 - 36 * 18)
    one = PointMatch(MATCH.gt_index, jnp.array([[True, False, False]]))
    np.testing.assert_allclose(losses_of(head, matched=one)["centerness"], cross_entropy(QUALITY[0], iou), rtol=1e-5)

    def centerness(distances):
        made = predictions(LOGITS, distances, QUALITY)
        return head.losses(made, SCENE, MATCH, objects([BOX], [2]))["centerness"].value()

    # Boxes learn nothing from it.
    assert not jax.jit(jax.grad(centerness))(jnp.asarray(DISTANCES)).any()


def test_points_in_a_crowd_are_not_background_unless_asked_for():
    gt = objects([BOX, (50, 50, 70, 70)], [2, 1])
    gt = dataclasses.replace(gt, is_crowd=jnp.array([[False, True]]))
    ignored, counted = (losses_of(FCOSHead(NUM_CLASSES, ignore_crowds=ignore), gt=gt) for ignore in (True, False))
    assert counted["class"] > ignored["class"] and counted["box"] == ignored["box"]
    assert counted == losses_of(FCOSHead(NUM_CLASSES))


def test_denominators_are_those_of_the_batch_or_of_a_device_of_torchvision():
    # Two positive points in one image, one in the other.
    rng = np.random.default_rng(0)
    made = predictions(rng.normal(size=(2, 3, 2)), rng.uniform(1, 2, (2, 3, 4)), rng.normal(size=(2, 3)))
    foreground = jnp.array([[True, True, False], [True, False, False]])
    gt = objects([BOX], [2], images=2)

    def of(head, chosen=slice(None)):
        matched = PointMatch(jnp.zeros((2, 3), jnp.int32), foreground)
        return losses(head, *jax.tree.map(lambda x: x[chosen], (made, matched, gt)))

    head = FCOSHead(NUM_CLASSES)
    images, batch = [of(head, slice(i, i + 1)) for i in range(2)], of(head)
    each = of(FCOSHead(NUM_CLASSES, images_per_denominator=1))
    for name in batch:
        np.testing.assert_allclose(batch[name], (2 * images[0][name] + images[1][name]) / 3, rtol=1e-5)
        np.testing.assert_allclose(each[name], (images[0][name] + images[1][name]) / 2, rtol=1e-5)
    both = of(FCOSHead(NUM_CLASSES, images_per_denominator=2))
    np.testing.assert_allclose(list(both.values()), list(batch.values()), rtol=1e-6)
    with pytest.raises(ValueError, match="images_per_denominator 3; expected a divisor of the 2 images"):
        of(FCOSHead(NUM_CLASSES, images_per_denominator=3))


def test_without_positive_points_boxes_and_quality_cost_nothing():
    nothing = PointMatch(MATCH.gt_index, jnp.zeros((1, 3), bool))
    for box_weight in ("none", "centerness"):
        found = losses_of(FCOSHead(NUM_CLASSES, box_weight=box_weight), matched=nothing)
        assert found["box"] == found["centerness"] == 0 and found["class"] > 0


def detect(head, made, where, size=(100.0, 100.0)):
    found = jax.jit(lambda *arguments: head.detect(arguments[0], where, arguments[1]).detections)(
        made, jnp.array([size])
    )
    valid = np.asarray(found.valid[0])
    return [np.asarray(x[0])[valid] for x in (found.scores, found.labels, found.boxes)]


# A point that is surely of class 1 but far from the middle, and one that is neither.
UNSURE = predictions([[logit(0.9), -20], [logit(0.3), -20]], [[1, 1, 1, 1]] * 2, [logit(0.1), logit(0.5)])
APART = points((20, 20), (60, 60))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"score": "root"}, [math.sqrt(0.15), math.sqrt(0.09)]),
        ({"score": "product"}, [0.15, 0.09]),
        ({"score": "root", "score_threshold": 0.35}, [math.sqrt(0.15)]),
        ({"score": "product", "score_threshold": 0.1}, [0.15]),
        # The same thresholds on the class.
        ({"score": "root", "score_threshold": 0.35, "threshold_score": False}, [0.3]),
        ({"score": "product", "score_threshold": 0.1, "threshold_score": False}, [0.15, 0.09]),
        ({"score": "product", "score_threshold": 0.5, "threshold_score": False}, [0.09]),
    ],
)
def test_the_score_and_what_the_threshold_is_compared_with(options, expected):
    scores, _, _ = detect(FCOSHead(NUM_CLASSES, **{"score_threshold": 0.05} | options), UNSURE, APART)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_a_level_enters_nms_with_its_best_pairs_of_point_and_class():
    made = predictions(
        [[logit(0.9), logit(0.8)], [logit(0.7), -20], [logit(0.6), -20], [logit(0.5), -20]],
        [[1, 1, 1, 1]] * 4,
        [20.0] * 4,
    )
    where = points((10, 10), (30, 30), (50, 50), (70, 70), counts=(2, 2))
    scores, labels, _ = detect(FCOSHead(NUM_CLASSES, score="product", pre_nms_top_k=2), made, where)
    np.testing.assert_allclose(scores, [0.9, 0.8, 0.6, 0.5], rtol=1e-5)
    assert labels.tolist() == [1, 2, 1, 1]
    scores, labels, _ = detect(FCOSHead(NUM_CLASSES, score="product", max_detections=3), made, where)
    np.testing.assert_allclose(scores, [0.9, 0.8, 0.7], rtol=1e-5)


def test_boxes_are_in_strides_around_their_point_and_clipped():
    made = predictions([[logit(0.9), -20]], [[1, 2, 3, 4]], [20.0])
    _, _, boxes = detect(FCOSHead(NUM_CLASSES), made, points((20, 20), stride=16.0), size=(50.0, 60.0))
    np.testing.assert_allclose(boxes, [[4, 0, 60, 50]])


def test_overlapping_boxes_of_one_class_are_dropped_above_the_threshold():
    # The second is the first, 8 pixels to the right: 32 of 48 in common.
    made = predictions([[2.0, -20], [1.0, 1.5]], [[1, 2, 4, 2]] * 2, [20.0] * 2)
    where = points((20, 20), (28, 20))
    _, labels, _ = detect(FCOSHead(NUM_CLASSES, nms_threshold=0.6), made, where)
    assert labels.tolist() == [1, 2]
    _, labels, _ = detect(FCOSHead(NUM_CLASSES, nms_threshold=0.7), made, where)
    assert labels.tolist() == [1, 2, 1]


PYRAMID = {level: jnp.ones((1, cells, cells, 8)) for level, cells in zip((3, 4, 5, 6, 7), (5, 3, 2, 1, 1), strict=True)}


@pytest.fixture(scope="module")
def small():
    """Return a head without towers and its variables."""
    head = FCOSHead(NUM_CLASSES, channels=8, num_convs=0, learned_scales=True)
    return head, jax.jit(head.init)(jax.random.key(0), PYRAMID)


def test_a_class_is_found_with_probability_a_hundredth_at_first(small):
    params = small[1]["params"]
    np.testing.assert_allclose(jax.nn.sigmoid(params["classification"]["bias"]), 0.01, rtol=1e-5)
    assert 0.005 < params["classification"]["kernel"].std() < 0.015


def test_a_scale_of_the_level_multiplies_its_distances_before_they_are_cut_at_zero(small):
    head, variables = small
    params = dict(variables["params"])
    params["boxes"] = {"kernel": jnp.zeros((3, 3, 8, 4)), "bias": jnp.array([1.0, -1.0, 2.0, 0.0])}
    params |= {"scale3": jnp.float32(3), "scale5": jnp.float32(-1)}
    found = head.apply({"params": params}, PYRAMID).distances[0]
    np.testing.assert_array_equal(found[0], [3, 0, 6, 0])
    np.testing.assert_array_equal(found[25], [1, 0, 2, 0])
    np.testing.assert_array_equal(found[25 + 9], [0, 1, 0, 0])


def test_points_lie_in_the_middle_of_their_cells_or_where_torchvision_has_them():
    images = jnp.zeros((1, 40, 40, 3), jnp.uint8)
    ours = FCOSHead(NUM_CLASSES).grid(PYRAMID, images)
    theirs = FCOSHead(NUM_CLASSES, points="torchvision").grid(PYRAMID, images)
    # The second point of P3, P4 and P5: 40 pixels over 5, 3 and 2 cells.
    assert ours.places[jnp.array([1, 26, 35])].tolist() == [[12, 4], [24, 8], [48, 16]]
    assert theirs.places[jnp.array([1, 26, 35])].tolist() == [[8, 0], [13, 0], [20, 0]]
    # The unit of distances is the level's own stride in both.
    np.testing.assert_array_equal(ours.strides, theirs.strides)
    assert ours.strides[jnp.array([0, 25, 34, 38, 39])].tolist() == [8, 16, 32, 64, 128]
    assert ours.size_ranges[jnp.array([0, 39])].tolist() == [[0, 64], [512, math.inf]]
    with pytest.raises(ValueError, match="got 3 level_sizes; expected one less than the 5 levels"):
        FCOSHead(NUM_CLASSES, level_sizes=(64.0, 128.0, 256.0)).grid(PYRAMID, images)
