"""Where the code bases disagree by half a pixel or a factor: one test a convention, each failing if it flips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.nms_forms import nms
from configs import mask_rcnn
from maskx_jax.coco.categories import COCO_IDS
from maskx_jax.evaluation.paste_masks import paste_mask
from maskx_jax.models.backbones.resnet import ResNet
from maskx_jax.models.rcnn.box_head import BoxHead, BoxPredictions, ClassWeights, Deltas
from maskx_jax.models.rcnn.rpn import RPN
from maskx_jax.ops import boxes as box_ops
from maskx_jax.ops.roi_align import roi_align
from maskx_jax.structures import GroundTruth, Proposals, RoiTargets
from maskx_jax.weights.arrays import names_of_rows, rows_of_ours
from maskx_jax.weights.layouts import LAYOUTS
from tests.models.build import numpy_variables, tiny_model


def test_a_box_is_as_wide_as_x2_minus_x1():
    box = jnp.array([[10.0, 20.0, 14.0, 30.0]])
    assert box_ops.area(box)[0] == 40  # with the legacy + 1: 55
    halves = jnp.array([[10.0, 20.0, 14.0, 25.0]])
    assert box_ops.iou(box, halves)[0, 0] == 0.5  # 30 / 55
    # Twice as wide about the same centre.
    anchors = jnp.array([[0.0, 0.0, 4.0, 10.0]])
    deltas = box_ops.encode(jnp.array([[-2.0, 0.0, 6.0, 10.0]]), anchors, (1.0, 1.0, 1.0, 1.0))
    np.testing.assert_allclose(deltas, [[0, 0, np.log(2), 0]], atol=1e-6)


@pytest.mark.parametrize(("convention", "x"), [("torchvision", 2.5), ("detectron", 2.4375), ("detectron2", 2.0)])
def test_roi_align_places_a_box_in_the_map_as_its_code_base_does(convention, x):
    # A ramp whose value is the column; a box from column 2 to 4 of a map of stride 4, in two bins of one point each.
    ramp = {2: jnp.broadcast_to(jnp.arange(8.0)[None, :, None], (8, 8, 1))}
    box = jnp.array([[8.0, 8.0, 16.0, 16.0]])
    assert roi_align(ramp, box, 2, sampling_ratio=1, convention=convention)[0, 0, 0, 0] == x


def test_background_is_label_0_and_comes_first():
    # A region whose logits are largest in column 0 is no detection; in column 1 it is one with label 1.
    head = BoxHead(num_classes=2, score_threshold=0.5, max_detections=4)
    logits = jnp.array([[[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]])
    weights = ClassWeights(jnp.zeros((3, 1)), jnp.zeros((3, 4)))
    predictions = BoxPredictions(logits, Deltas(jnp.zeros((1, 2, 3, 4)), None), weights)
    boxes = jnp.array([[[0.0, 0.0, 8.0, 8.0], [20.0, 20.0, 28.0, 28.0]]])
    proposals = Proposals(boxes, jnp.ones((1, 2)), jnp.ones((1, 2), bool))
    found = head.detect(predictions, proposals, jnp.array([[64.0, 64.0]]))
    assert found.labels[found.valid].tolist() == [1]
    np.testing.assert_allclose(found.boxes[found.valid], [[20, 20, 28, 28]], atol=1e-4)


@pytest.mark.parametrize(
    ("preset", "order"), [("torchvision_detector", [0, 1, 2]), ("detectron", [0, 1, 2]), ("detectron2", [2, 0, 1])]
)
def test_background_is_found_where_each_code_base_has_it(preset, order):
    rows = np.arange(3, dtype=np.float32)
    ours = rows_of_ours("box_head/classification", rows, LAYOUTS[preset].background)
    assert ours.tolist() == order


@pytest.mark.parametrize(
    ("num_rows", "background", "expected"), [(91, "first", 90), (81, "first", 80), (81, "last", 79)]
)
def test_classes_of_coco_have_91_81_or_80_rows(num_rows, background, expected):
    # The toothbrush: category 90, the 80th class, index 79.
    rows = rows_of_ours("box_head/classification", np.arange(num_rows), background)
    names = names_of_rows(num_rows - 1)[0]
    assert sorted(filter(None, names)) == sorted(COCO_IDS)
    assert rows[1 + names.index("toothbrush")] == expected


def test_proposals_are_limited_for_each_image_not_for_the_batch():
    # Image 0 has the better scores throughout; it must not take the other's places.
    rpn = RPN(anchor_sizes=(8.0,), post_nms_top_k=(3, 3), nms_threshold=1.0)
    logits = {2: jnp.stack([jnp.arange(10.0, 22), jnp.arange(-12.0, 0)])}
    pyramid = {2: jnp.zeros((2, 2, 2, 1))}
    proposals = rpn.proposals(
        logits, {2: jnp.zeros((2, 12, 4))}, rpn.anchors(pyramid), jnp.full((2, 2), 64.0), training=True
    )
    assert proposals.valid.sum(axis=1).tolist() == [3, 3]


@pytest.mark.parametrize(("beta", "expected"), [(1.0, 0.125), (1 / 9, 0.5 - 1 / 18), (0.0, 0.5)])
def test_the_box_loss_has_the_beta_of_its_code_base(beta, expected):
    # One foreground region whose x is wrong by half a unit.
    head = BoxHead(num_classes=1, smooth_l1_beta=beta, box_weights=(1.0, 1.0, 1.0, 1.0))
    box = jnp.array([[[0.0, 0.0, 8.0, 8.0]]])
    rois = RoiTargets(box, *(jnp.ones((1, 1), int) * value for value in (1, 0)), *[jnp.ones((1, 1), bool)] * 2)
    weights = ClassWeights(jnp.zeros((2, 1)), jnp.zeros((2, 4)))
    deltas = jnp.zeros((1, 1, 2, 4)).at[..., 0].set(0.5)
    gt = GroundTruth(box, None, None, None, None, None, None)
    losses = head.losses(BoxPredictions(jnp.zeros((1, 1, 2)), Deltas(deltas, None), weights), rois, gt)
    np.testing.assert_allclose(losses["box"].value(), expected, rtol=1e-6)


def test_the_box_losses_have_detectrons_betas_where_the_config_says_nothing():
    model = mask_rcnn.get_config().model.rcnn
    assert (model.rpn.smooth_l1_beta, model.box_head.smooth_l1_beta) == (1 / 9, 1.0)
    assert (RPN().smooth_l1_beta, BoxHead(1).smooth_l1_beta) == (1 / 9, 1.0)


def test_anchors_are_exact_and_roi_align_is_aligned_where_the_config_says_nothing():
    model = mask_rcnn.get_config().model.rcnn
    assert model.rpn.anchor_convention == RPN().anchor_convention == "detectron2"
    assert model.roi_align.convention == "detectron2" and model.roi_align.sampling_ratio == 2


@pytest.mark.parametrize(("grid", "first", "columns"), [("continuous", 4, 8), ("integer", 3, 10)])
def test_masks_are_pasted_over_continuous_or_over_whole_pixels(grid, first, columns):
    # A full mask over x from 4 to 12: 8 pixels wide; more where it is enlarged, truncated and inclusive.
    region, (_, left) = paste_mask(np.ones((28, 28), np.float32), np.array([4.0, 4, 12, 12]), 32, 32, grid=grid)
    marked = np.flatnonzero(region.any(axis=0)) + left
    assert (marked[0], len(marked)) == (first, columns)


def pixels_seen(**fields):
    """Return what the backbone sees of an image whose pixels are (R, G, B) = (10, 20, 30)."""
    model = tiny_model(1, **fields)
    seen = []

    class Spy(ResNet):
        def __call__(self, images):
            seen.append(images)
            return super().__call__(images)

    spied = model.clone(backbone=Spy(**{f: getattr(model.backbone, f) for f in ("stage_sizes", "width", "norm")}))
    images = jnp.broadcast_to(jnp.array([10, 20, 30], jnp.uint8), (1, 64, 64, 3))
    spied.apply(numpy_variables(model), images, jnp.array([[64.0, 64.0]]), method="pyramid")
    return np.asarray(seen[0][0, 0, 0])


def test_pixels_are_rgb_with_mean_and_deviation_or_bgr_with_the_mean_alone():
    def conventions(preset):
        fields = LAYOUTS[preset].backbone_conventions
        return {f"pixels__{name}": fields[f"pixels.{name}"] for name in ("channel_order", "mean", "std")}

    rgb = pixels_seen(**conventions("torchvision_classifier"))
    np.testing.assert_allclose(
        rgb, (np.array([10, 20, 30]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], 1e-5
    )
    bgr = pixels_seen(**conventions("detectron"))
    np.testing.assert_allclose(bgr, np.array([30, 20, 10]) - [102.9801, 115.9465, 122.7717], 1e-6)


@pytest.mark.parametrize(("preset", "strided"), [("torchvision_classifier", "conv2"), ("detectron", "conv1")])
def test_a_stage_strides_in_its_3x3_or_in_its_first_1x1_convolution(preset, strided):
    fields = LAYOUTS[preset].backbone_conventions
    model = ResNet(stage_sizes=(1, 1, 1, 1), width=8, stride_in_1x1=fields["backbone.stride_in_1x1"])
    images = jnp.zeros((1, 64, 64, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    _, state = jax.eval_shape(
        lambda variables: model.apply(variables, images, capture_intermediates=True, mutable=["intermediates"]),
        variables,
    )
    # res3 sees 16 x 16 and makes 8 x 8.
    sizes = {
        name: state["intermediates"]["res3_block0"][name]["__call__"][0].shape[1]
        for name in ("conv1", "conv2", "conv3")
    }
    assert sizes == {"conv1": 8 if strided == "conv1" else 16, "conv2": 8, "conv3": 8}


def test_nms_drops_a_box_whose_iou_is_above_the_threshold_but_not_at_it():
    # Two boxes with an IoU of exactly one half, a number that float32 holds.
    boxes = jnp.array([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 4.0]])
    arguments = (boxes, jnp.array([0.9, 0.8]), jnp.zeros(2, jnp.int32), jnp.ones(2, bool))
    assert nms(*arguments, 0.5, 2)[1].sum() == 2
    assert nms(*arguments, 0.499, 2)[1].sum() == 1


@pytest.mark.parametrize(
    ("argument", "batch", "rate", "steps", "warmup", "decays"),
    [
        ("batch=4", 4, 0.005, 360_000, 2_000, (240_000, 320_000)),
        ("schedule=2x,batch=32", 32, 0.04, 90_000, 250, (60_000, 80_000)),
        ("backbone=r101,schedule=1x,batch=8", 8, 0.01, 180_000, 500, (120_000, 160_000)),
        ("size=tiny,batch=16", 16, 2e-3, 500, 25, (30_000, 40_000)),
    ],
)
def test_another_batch_size_scales_rate_and_steps_linearly(argument, batch, rate, steps, warmup, decays):
    config = mask_rcnn.get_config(argument)
    assert (config.train.batch_size, config.train.num_steps) == (batch, steps)
    assert config.optimizer.learning_rate == pytest.approx(rate)
    assert (config.optimizer.warmup_steps, config.optimizer.decay_steps) == (warmup, decays)
