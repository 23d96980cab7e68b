import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.ops.boxes import encode, iou
from maskx_jax.ops.losses import masked_mean, smooth_l1
from maskx_jax.ops.matching import Matcher
from tests.compilation import optimized
from tests.ops.collectives import collectives
from tests.reference import matching as reference

RPN = {
    "foreground": 0.7,
    "background": 0.3,
    "crowd": 0.7,
    "low_quality": True,
}
BOX_HEAD = {**RPN, "foreground": 0.5, "background": 0.5, "low_quality": False}

SETTINGS = pytest.mark.parametrize("settings", [RPN, BOX_HEAD], ids=["rpn", "box_head"])


@functools.cache
def jitted(settings):
    return jax.jit(lambda *arguments: Matcher(**dict(settings))(*arguments))


def run(candidates, gt_boxes, gt_is_crowd, settings, candidate_valid=None, gt_valid=None):
    """Match in at least 64 and 16 slots, so that all small cases share one compilation."""

    def pad(array, dtype, slots):
        array = np.asarray(array, dtype)
        return np.pad(array, [(0, max(slots - len(array), 0))] + [(0, 0)] * (array.ndim - 1))

    num_candidates = len(candidates)
    candidate_valid = [True] * num_candidates if candidate_valid is None else candidate_valid
    gt_valid = [True] * len(gt_boxes) if gt_valid is None else gt_valid
    result = jitted(tuple(settings.items()))(
        pad(candidates, np.float32, 64),
        pad(candidate_valid, bool, 64),
        pad(gt_boxes, np.float32, 16),
        pad(gt_valid, bool, 16),
        pad(gt_is_crowd, bool, 16),
    )
    return jax.tree.map(lambda array: array[:num_candidates], result)


def names(result):
    states = np.where(result.foreground, "foreground", np.where(result.background, "background", "ignored"))
    return [
        (str(state), int(index) if state == "foreground" else None)
        for state, index in zip(states, result.gt_index, strict=True)
    ]


def lattice_boxes(rng, n, limit=24):
    # Overlaps of small integer boxes are fractions that float32 tells apart, so ties and thresholds are met exactly.
    corners = np.sort(rng.integers(0, limit, (n, 2, 2)), axis=1)
    return corners.reshape(n, 4).astype(np.float32)


def expected(candidates, gt_boxes, gt_is_crowd, settings):
    return reference.match(candidates, gt_boxes, gt_is_crowd, *settings.values())


@SETTINGS
@pytest.mark.parametrize("seed", range(8))
def test_equals_the_reference_with_ties_empty_boxes_and_crowds(settings, seed):
    rng = np.random.default_rng(seed)
    gt_boxes = lattice_boxes(rng, 6)
    gt_boxes[1] = gt_boxes[0]
    # Shifted copies and random boxes: foreground, borderline and background; exact copies in every second scene alone,
    # since with them no object needs a match of low quality.
    copies = gt_boxes if seed % 2 else lattice_boxes(rng, 6)
    shifted = np.repeat(gt_boxes, 5, axis=0) + rng.integers(-5, 6, (30, 4))
    candidates = np.concatenate([copies, shifted, lattice_boxes(rng, 24)]).astype(np.float32)
    gt_is_crowd = rng.random(6) < 0.3
    result = run(candidates, gt_boxes, gt_is_crowd, settings)
    assert names(result) == expected(candidates, gt_boxes, gt_is_crowd, settings)


def test_thresholds_are_inclusive_for_foreground_and_exclusive_for_background():
    gt = [[0, 0, 10, 10]]
    half, less = [[0, 0, 10, 5]], [[0, 0, 10, 4]]
    settings = {**BOX_HEAD, "background": 0.4}
    assert names(run(half, gt, [False], settings)) == [("foreground", 0)]
    assert names(run(less, gt, [False], settings)) == [("ignored", None)]
    assert names(run([[0, 0, 10, 3]], gt, [False], settings)) == [("background", None)]


def test_low_quality_takes_all_candidates_that_tie_for_the_best_of_an_object():
    gt = [[0, 0, 10, 10]]
    candidates = [[0, 0, 10, 2], [0, 8, 10, 10], [0, 0, 10, 1.99]]
    assert names(run(candidates, gt, [False], RPN)) == [("foreground", 0)] * 2 + [("background", None)]
    assert not run(candidates, gt, [False], BOX_HEAD).foreground.any()


def test_low_quality_candidate_keeps_the_object_it_overlaps_most():
    # The one candidate is the best of both objects, but overlaps object 1 more.
    gt = [[0, 0, 10, 10], [10, 0, 20, 10]]
    assert names(run([[8, 0, 18, 10]], gt, [False, False], RPN)) == [("foreground", 1)]


def test_object_without_any_overlap_makes_nothing_foreground():
    result = run([[0, 0, 5, 5], [6, 6, 9, 9]], [[50, 50, 60, 60]], [False], RPN)
    assert result.background.all() and not result.foreground.any()


def test_first_of_equal_objects_is_taken():
    gt = [[0, 0, 4, 4], [0, 0, 4, 4]]
    assert names(run(gt, gt, [False, False], RPN)) == [("foreground", 0)] * 2


def test_crowd_is_never_matched_and_what_it_covers_is_ignored():
    crowd = [[0, 0, 20, 20]]
    candidates = [[0, 0, 20, 20], [2, 2, 8, 8], [0, 0, 10, 40], [15, 0, 25, 10], [30, 30, 40, 40]]
    for threshold, states in ((0.7, "iibbb"), (0.5, "iibbb"), (0.4, "iiiib")):
        settings = {**RPN, "crowd": threshold}
        assert "".join(state[0] for state, _ in names(run(candidates, crowd, [True], settings))) == states


def test_candidate_on_an_object_within_a_crowd_is_foreground():
    gt = [[0, 0, 40, 40], [5, 5, 15, 15]]
    assert names(run([[5, 5, 15, 15]], gt, [True, False], RPN)) == [("foreground", 1)]


@SETTINGS
def test_invalid_slots_change_nothing(settings):
    rng = np.random.default_rng(0)
    candidates, gt_boxes = lattice_boxes(rng, 40), lattice_boxes(rng, 5)
    gt_is_crowd = np.array([False, False, True, False, True])
    plain = run(candidates, gt_boxes, gt_is_crowd, settings)
    # The worst padding: copies of what is there, and NaN; as objects and crowds.
    padding = np.concatenate([candidates[:6], [[np.nan] * 4]])
    padded = run(
        np.concatenate([candidates, gt_boxes, [[np.nan] * 4]]),
        np.concatenate([gt_boxes, padding]),
        np.concatenate([gt_is_crowd, [True, True, True, False, False, False, True]]),
        settings,
        candidate_valid=np.arange(46) < 40,
        gt_valid=np.arange(12) < 5,
    )
    for name in plain._fields:
        np.testing.assert_array_equal(getattr(plain, name), getattr(padded, name)[:40])
    assert not padded.foreground[40:].any() and not padded.background[40:].any()


@SETTINGS
def test_without_ground_truth_all_valid_candidates_are_background(settings):
    candidates = lattice_boxes(np.random.default_rng(1), 20)
    result = run(candidates, np.zeros((3, 4)), [False, True, False], settings, gt_valid=[False] * 3)
    assert result.background.all() and not result.foreground.any()


def test_box_loss_without_ground_truth_is_zero_with_zero_gradient():
    candidates = jnp.asarray(lattice_boxes(np.random.default_rng(2), 20))
    gt_boxes = jnp.zeros((3, 4))
    result = run(candidates, gt_boxes, [False] * 3, RPN, gt_valid=[False] * 3)

    def loss(deltas):
        target = encode(gt_boxes[result.gt_index], candidates, (1.0, 1.0, 1.0, 1.0))
        return masked_mean(smooth_l1(deltas - target, 1.0).sum(-1), result.foreground).value()

    value, gradient = jax.value_and_grad(loss)(jnp.ones((20, 4)))
    assert value == 0
    np.testing.assert_array_equal(gradient, jnp.zeros((20, 4)))


@pytest.mark.parametrize("seed", range(2))
def test_every_object_that_any_candidate_touches_gets_one_under_jit(seed):
    # The rule compares recomputed overlaps for equality: a fused rounding that differs would lose the match. Only
    # optimisations fuse, and the cache of compiled functions would return what was compiled without them.
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 900, (4000, 2))
    candidates = np.concatenate([corner, corner + rng.uniform(1, 300, (4000, 2))], axis=1).astype(np.float32)
    corner = rng.uniform(0, 900, (100, 2))
    gt_boxes = np.concatenate([corner, corner + rng.uniform(0.1, 40, (100, 2))], axis=1).astype(np.float32)
    function = jax.jit(lambda *arguments: Matcher(**RPN)(*arguments))
    ones = np.ones(4000, bool), np.ones(100, bool)
    with optimized():
        result = function(candidates, ones[0], gt_boxes, ones[1], ~ones[1])
    overlaps = np.asarray(iou(jnp.asarray(candidates), jnp.asarray(gt_boxes)))
    matched = np.asarray(result.foreground)[overlaps.argmax(axis=0)]
    assert matched[overlaps.max(axis=0) > 0].all()


def test_jit_equals_no_jit_and_vmap_equals_loop():
    rng = np.random.default_rng(3)
    batch = (
        jnp.asarray(np.stack([lattice_boxes(rng, 30) for _ in range(4)])),
        jnp.asarray(rng.random((4, 30)) < 0.9),
        jnp.asarray(np.stack([lattice_boxes(rng, 5) for _ in range(4)])),
        jnp.asarray(rng.random((4, 5)) < 0.8),
        jnp.asarray(rng.random((4, 5)) < 0.3),
    )
    together = jax.jit(jax.vmap(lambda *arguments: Matcher(**RPN)(*arguments)))(*batch)
    for i in range(4):
        alone = Matcher(**RPN)(*(argument[i] for argument in batch))
        for name in alone._fields:
            np.testing.assert_array_equal(getattr(alone, name), getattr(together, name)[i])


def test_a_batch_split_over_devices_sends_nothing():
    batch = (jnp.ones((8, 30, 4)), jnp.ones((8, 30), bool), jnp.ones((8, 5, 4)), *[jnp.ones((8, 5), bool)] * 2)
    assert not collectives(jax.vmap(lambda *arguments: Matcher(**RPN)(*arguments)), *batch)
