"""The keypoint head: on which regions and keypoints it learns, and that it is the same in all its forms."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import keypoint_rcnn
from configs.families import rcnn
from maskx_jax.models.build import build, initialize
from maskx_jax.models.rcnn.box_head import ClassWeights
from maskx_jax.models.rcnn.keypoint_head import KeypointHead
from maskx_jax.models.rcnn.region_head import RegionHead
from maskx_jax.ops.losses import Mean
from maskx_jax.structures import GroundTruth, Keypoints, RoiTargets
from maskx_jax.training.optimizer import num_parameters

K = 3
# Of no class that is looked at.
WEIGHTS = ClassWeights(jnp.zeros((2, 1)), jnp.zeros((2, 4)))
HEAD = KeypointHead(num_keypoints=K, channels=8, num_convs=2, resolution=4, num_samples=3)


def scene(seed=0, images=2, slots=4, regions=6):
    """Return regions and ground truth with some keypoints, some of which are labelled."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (images, slots, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(30, 50, (images, slots, 2))], axis=-1).astype(np.float32)
    inside = rng.uniform(0, 1.1, (images, slots, K, 2))
    points = (boxes[:, :, None, :2] + inside * (boxes[:, :, None, 2:] - boxes[:, :, None, :2])).astype(np.float32)
    labelled = rng.random((images, slots, K)) < 0.8
    flags = jnp.ones((images, slots), bool)
    masks = jnp.zeros((images, slots, 112, 14), jnp.uint8)
    keypoints = Keypoints(*map(jnp.asarray, (points, labelled, labelled)))
    labels = jnp.ones((images, slots), jnp.int32)
    gt = GroundTruth(jnp.asarray(boxes), labels, masks, jnp.asarray(boxes), flags, ~flags, flags, keypoints)
    index = rng.integers(0, slots, (images, regions))
    rois = np.take_along_axis(boxes, index[..., None], 1) + rng.uniform(-6, 6, (images, regions, 4)).astype(np.float32)
    foreground = jnp.arange(regions)[None] < jnp.array([regions - 1, 2])[:, None]
    one = foreground.astype(jnp.int32)
    return RoiTargets(jnp.asarray(rois), one, jnp.asarray(index), foreground, foreground | True), gt


# Compiled once: operations one by one take longer.
regions_of = jax.jit(HEAD.regions)


@functools.partial(jax.jit, static_argnames=("normalize", "loss_weight"))
def loss_of(logits, rois, used, gt, **fields):
    """Return the loss as a `Mean`, and the gradient of its value with respect to the logits."""
    head = dataclasses.replace(HEAD, **fields)

    def value(logits):
        loss = head.losses(logits, rois, used, gt)["keypoint"]
        return loss.value(), loss

    return jax.grad(value, has_aux=True)(logits)[::-1]


LOGITS = np.random.default_rng(2).normal(size=(2, 3, K, 16, 16)).astype(np.float32)


def with_labelled(gt, labelled):
    return dataclasses.replace(gt, keypoints=dataclasses.replace(gt.keypoints, labelled=labelled))


@functools.cache
def head_variables(cpu=False):
    """Return variables of the head, and its maps as a function of them, features and which are used."""
    head = dataclasses.replace(HEAD, cpu=cpu)
    labels, used = jnp.ones((2, 3), jnp.int32), jnp.ones((2, 3), bool)
    pooled = jax.random.normal(jax.random.key(1), (2, 3, 4, 4, 5))
    apply = jax.jit(lambda variables, pooled, used: head.apply(variables, pooled, labels, used, WEIGHTS))
    return HEAD.init(jax.random.key(0), pooled, labels, used, WEIGHTS), pooled, apply


def test_it_is_a_region_head_with_maps_of_four_times_the_resolution():
    variables, pooled, apply = head_variables()
    assert isinstance(HEAD, RegionHead)
    maps = apply(variables, pooled, jnp.ones((2, 3), bool))
    assert maps.shape == (2, 3, K, 16, 16) and maps.dtype == jnp.float32
    assert set(variables["params"]) == {"conv1", "conv2", "deconvolution"}


def test_on_one_cpu_it_computes_the_same_for_the_regions_that_are_used():
    variables, pooled, apply = head_variables()
    used = jnp.array([[True, True, False], [False, False, False]])
    expected = apply(variables, pooled, used)
    actual = head_variables(cpu=True)[2](variables, pooled, used)
    np.testing.assert_allclose(actual[used], expected[used], atol=1e-5)


def test_regions_with_a_labelled_keypoint_of_their_own_object_inside_come_first():
    rois, gt = scene()
    chosen, used = jax.tree.map(np.asarray, regions_of(rois, gt))
    rois, gt = jax.tree.map(np.asarray, (rois, gt))
    assert used.shape == (2, 3)
    for image in range(2):
        expected = []
        for region in range(6):
            x1, y1, x2, y2 = rois.boxes[image, region]
            slot = rois.gt_index[image, region]
            x, y = gt.keypoints.points[image, slot].T
            inside = (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2) & gt.keypoints.labelled[image, slot]
            if rois.foreground[image, region] and inside.any():
                expected.append(region)
        assert len(expected) >= 1
        count = min(len(expected), 3)
        assert used[image].tolist() == [True] * count + [False] * (3 - count)
        np.testing.assert_array_equal(chosen.boxes[image, :count], rois.boxes[image, expected[:count]])


def reference_loss(logits, rois, used, gt):
    """Return the mean over labelled keypoints inside their regions, one at a time."""
    errors = []
    side = logits.shape[-1]
    for image, region in np.argwhere(np.asarray(used)):
        x1, y1, x2, y2 = map(float, rois.boxes[image, region])
        slot = rois.gt_index[image, region]
        for keypoint in range(K):
            x, y = map(float, gt.keypoints.points[image, slot, keypoint])
            if gt.keypoints.labelled[image, slot, keypoint] and x1 <= x <= x2 and y1 <= y <= y2:
                row, column = int((y - y1) / (y2 - y1) * side), int((x - x1) / (x2 - x1) * side)
                scores = np.exp(np.float64(logits[image, region, keypoint]))
                errors.append(-np.log(scores[row, column] / scores.sum()))
    return np.sum(errors), len(errors)


@pytest.mark.parametrize("normalize", ["visible", "static"])
def test_the_loss_is_the_mean_cross_entropy_over_labelled_keypoints(normalize):
    rois, gt = scene()
    rois, used = regions_of(rois, gt)
    loss, _ = loss_of(LOGITS, rois, used, gt, normalize=normalize, loss_weight=0.5)
    total, count = reference_loss(LOGITS, *jax.tree.map(np.asarray, (rois, used, gt)))
    assert count >= 5 and float(loss.total) == pytest.approx(0.5 * total, rel=1e-5)
    assert loss.number == (count if normalize == "visible" else 2 * 3 * K)


def test_parts_of_a_batch_add_up_to_the_batch():
    rois, gt = scene()
    rois, used = regions_of(rois, gt)
    whole, _ = loss_of(LOGITS, rois, used, gt)
    # The other image is there, and without regions.
    parts = [loss_of(LOGITS, rois, used & np.array([[i == 0], [i == 1]]), gt)[0] for i in range(2)]
    assert parts[0].number != parts[1].number
    summed = Mean(*map(sum, zip(*parts, strict=True)))
    assert float(summed.value()) == pytest.approx(float(whole.value()), rel=1e-6)


def test_without_a_labelled_keypoint_the_loss_and_its_gradient_are_exactly_zero():
    rois, gt = scene()
    bare = with_labelled(gt, jnp.zeros_like(gt.keypoints.labelled))
    rois, used = regions_of(rois, bare)
    assert not used.any()
    loss, gradient = loss_of(LOGITS, rois, used, bare)
    assert loss.value() == 0 and (gradient == 0).all()


def test_keypoints_that_are_not_labelled_change_nothing():
    rois, gt = scene()
    moved = jnp.where(gt.keypoints.labelled[..., None], gt.keypoints.points, jnp.nan)
    other = dataclasses.replace(gt, keypoints=dataclasses.replace(gt.keypoints, points=moved))
    losses = [loss_of(LOGITS, *regions_of(rois, gt), gt) for gt in (gt, other)]
    jax.tree.map(np.testing.assert_array_equal, *losses)


def test_ground_truth_without_its_keypoints_is_refused():
    rois, gt = scene()
    with pytest.raises(
        ValueError, match="got ground truth with no keypoints an object; the keypoint head is trained on 3"
    ):
        HEAD.regions(rois, dataclasses.replace(gt, keypoints=None))
    with pytest.raises(ValueError, match=r"got ground truth with 3 keypoints an object; .* on 17"):
        dataclasses.replace(HEAD, num_keypoints=17).regions(rois, gt)


def test_c4_has_no_keypoints():
    config = keypoint_rcnn.get_config("size=tiny")
    rcnn.c4(config)
    with pytest.raises(ValueError, match=r"^rcnn.keypoint_predictor is 'heatmaps'; expected 'none' on C4"):
        build(config.model, 1)


def test_the_number_of_parameters_is_torchvisions():
    model = build(keypoint_rcnn.get_config().model, 1)
    variables = jax.eval_shape(lambda: initialize(model, jax.random.key(0)))
    assert num_parameters(variables["params"]) == 59_137_258
    assert model.produces == {"boxes", "keypoints"}
