import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.nms_forms import nms
from maskx_jax.ops.nms import nms_of_sorted
from maskx_jax.ops.per_image import per_image
from tests.compilation import optimized
from tests.ops.collectives import collectives
from tests.reference.nms import greedy_nms

N = 40


@functools.cache
def suppressor(iou_threshold, max_outputs):
    """Return the jitted suppression of a batch."""
    suppress = functools.partial(nms, iou_threshold=iou_threshold, max_outputs=max_outputs)
    return jax.jit(per_image(suppress))


def scene(seed, num_labels=3, num_scores=12):
    """Return clustered integer boxes with duplicates and tied scores.

    Overlaps of small integer boxes are fractions that float32 tells apart, so thresholds are met exactly.
    """
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 12, (N // 4, 2))
    cluster = np.concatenate([corner, corner + rng.integers(4, 13, (N // 4, 2))], axis=1)
    boxes = np.repeat(cluster, 4, axis=0) + rng.integers(-2, 3, (N, 4)) * rng.integers(0, 2, (N, 1))
    boxes[rng.integers(0, N, 3)] = 5  # empty
    scores = rng.integers(0, num_scores, N) / num_scores
    labels = rng.integers(1, num_labels + 1, N)
    valid = rng.random(N) < 0.85
    return boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int32), valid


def expected(boxes, scores, labels, valid, iou_threshold):
    real = np.flatnonzero(valid)
    return [int(real[i]) for i in greedy_nms(boxes[real], scores[real], labels[real], iou_threshold)]


def batch(scenes):
    return [jnp.asarray(np.stack(arrays)) for arrays in zip(*scenes, strict=True)]


def kept(indices, valid):
    return np.asarray(indices)[np.asarray(valid)].tolist()


def run(boxes, scores, labels=None, valid=None, iou_threshold=0.5):
    """Suppress in one image, in N slots whatever the number of boxes."""
    labels = [1] * len(boxes) if labels is None else labels
    valid = [True] * len(boxes) if valid is None else valid
    arrays = (np.array(boxes, np.float32), np.array(scores, np.float32), np.array(labels, np.int32), np.array(valid))
    padded = [np.pad(a, [(0, N - len(a))] + [(0, 0)] * (a.ndim - 1))[None] for a in arrays]
    indices, valid = suppressor(iou_threshold, N)(*padded)
    return kept(indices[0], valid[0])


@pytest.mark.parametrize("iou_threshold", [0.0, 0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9])
def test_equals_greedy_at_every_threshold_with_ties_duplicates_labels_and_invalid_boxes(iou_threshold):
    scenes = [scene(seed, num_labels=1 + seed % 3) for seed in range(20)]
    indices, valid = suppressor(iou_threshold, N)(*batch(scenes))
    for i, one in enumerate(scenes):
        assert kept(indices[i], valid[i]) == expected(*one, iou_threshold)


def test_equals_greedy_on_boxes_that_overlap_in_long_chains():
    # Each box is suppressed by the one before it unless that one is itself suppressed: every other one survives.
    x = np.arange(N, dtype=np.float32)[:, None] * 2
    boxes = np.concatenate([x, 0 * x, x + 10, 0 * x + 10], axis=1)
    scores = np.linspace(1, 0.1, N, dtype=np.float32)
    assert run(boxes, scores, iou_threshold=0.6) == list(range(0, N, 2))
    shuffled = np.random.default_rng(0).permutation(N)
    one = (boxes[shuffled], scores[shuffled], np.ones(N, np.int32), np.ones(N, bool))
    assert run(*one, iou_threshold=0.6) == expected(*one, 0.6)


def crowd(seed, n, num_labels):
    """Return boxes of all sizes, twenty about each object of an 800 x 1344 image, with whole coordinates.

    So their overlaps are fractions that float32 tells apart, and thresholds are met exactly.
    """
    rng = np.random.default_rng(seed)
    centre = np.repeat(rng.uniform(0, [1344, 800], (n // 20, 2)), 20, axis=0)
    size = np.repeat(np.exp(rng.uniform(np.log(16), np.log(500), (n // 20, 2))), 20, axis=0)
    centre += rng.normal(size=(n, 2)) * size * 0.1
    size *= np.exp(rng.normal(size=(n, 2)) * 0.15)
    boxes = np.round(np.concatenate([centre - size / 2, centre + size / 2], axis=1)).astype(np.float32)
    labels = rng.integers(1, num_labels + 1, n).astype(np.int32)
    return boxes, rng.permutation(n).astype(np.float32), labels, rng.random(n) < 0.95


@pytest.mark.parametrize("iou_threshold", [0.5, 0.7])
def test_equals_greedy_in_order_on_as_many_boxes_as_detectors_have(iou_threshold):
    scenes = [crowd(0, 2000, 1), crowd(1, 2000, 80)]
    with optimized():
        indices, valid = suppressor(iou_threshold, 2000)(*batch(scenes))
    for i, one in enumerate(scenes):
        assert 50 < valid[i].sum() < 1900
        assert kept(indices[i], valid[i]) == expected(*one, iou_threshold)


def test_a_crowd_takes_a_few_rounds_and_a_chain_one_for_each_box(monkeypatch):
    rounds = []

    def counted_loop(condition, body, state):
        while condition(state):
            rounds.append(state := body(state))
        return state

    monkeypatch.setattr(jax.lax, "while_loop", counted_loop)
    crowded, scores, _, real = crowd(2, 100, 1)
    order = np.argsort(-scores)
    # Each box decides on the next.
    x = np.arange(100, dtype=np.float32)[:, None] * 2
    chain = np.concatenate([x, 0 * x, x + 10, 0 * x + 10], axis=1)
    for boxes, valid, most in ((crowded[order], real[order], 10), (chain, np.ones(100, bool), 101)):
        rounds.clear()
        one_label = np.ones(len(boxes), np.int32)
        keep = nms_of_sorted(*map(jnp.asarray, (boxes, one_label, valid)), 0.6)
        assert np.flatnonzero(keep).tolist() == expected(boxes, -np.arange(len(boxes)), one_label, valid, 0.6)
        assert most / 4 < len(rounds) <= most


@pytest.mark.parametrize("max_outputs", [1, 5, N, N + 25])
def test_max_outputs_cuts_the_list_and_changes_nothing_else(max_outputs):
    scenes = [scene(seed) for seed in range(4)]
    indices, valid = suppressor(0.5, max_outputs)(*batch(scenes))
    assert indices.shape == valid.shape == (4, min(max_outputs, N))
    for i, one in enumerate(scenes):
        assert kept(indices[i], valid[i]) == expected(*one, 0.5)[:max_outputs]


def test_overlap_equal_to_the_threshold_is_kept():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 5]]
    assert run(boxes, [0.9, 0.8], iou_threshold=0.5) == [0, 1]
    assert run(boxes, [0.9, 0.8], iou_threshold=0.4) == [0]


def test_a_suppressed_box_suppresses_nothing():
    boxes = [[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]]
    assert run(boxes, [0.9, 0.8, 0.7], iou_threshold=0.4) == [0, 2]


def test_labels_do_not_suppress_each_other():
    boxes = [[0, 0, 10, 10]] * 3
    assert run(boxes, [0.7, 0.8, 0.9], labels=[1, 2, 1]) == [2, 1]


def test_first_of_equal_scores_is_kept():
    assert run([[0, 0, 10, 10]] * 3, [0.5] * 3) == [0]


def test_negative_scores_of_valid_boxes_count():
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]
    assert run(boxes, [-5, -jnp.inf, 3], valid=[True, True, False]) == [0, 1]


def test_empty_boxes_are_kept():
    assert run([[3, 3, 3, 3]] * 2, [0.9, 0.8]) == [0, 1]


def test_nothing_valid_gives_nothing():
    assert run([[0, 0, 10, 10]] * 2, [0.9, 0.8], valid=[False, False]) == []


def test_invalid_slots_change_nothing():
    boxes, scores, labels, valid = (array[:29] for array in scene(0))
    plain = run(boxes, scores, labels, valid)
    # The worst padding: copies with the highest scores, and NaN.
    boxes = np.concatenate([boxes, boxes[:10], [[np.nan] * 4]])
    scores = np.concatenate([scores, [2.0] * 10, [np.nan]])
    labels = np.concatenate([labels, labels[:10], [1]])
    assert run(boxes, scores, labels, np.concatenate([valid, [False] * 11])) == plain
    assert plain == expected(*(array[:29] for array in scene(0)), 0.5)


def test_jit_and_vmap_equal_the_loop():
    scenes = [scene(seed) for seed in range(3)]
    indices, valid = suppressor(0.5, N)(*batch(scenes))
    for i, one in enumerate(scenes):
        alone_indices, alone_valid = nms(*map(jnp.asarray, one), 0.5, N)
        np.testing.assert_array_equal(indices[i], alone_indices)
        np.testing.assert_array_equal(valid[i], alone_valid)


def test_a_batch_split_over_devices_sends_nothing():
    scenes = batch([scene(seed) for seed in range(8)])
    assert not collectives(suppressor(0.5, 10), *scenes)
    # Without `per_image` all devices agree on the end in every round.
    assert collectives(jax.vmap(functools.partial(nms, iou_threshold=0.5, max_outputs=10)), *scenes)
