"""Proposals and detections at the size of real images: the boxes of plain sorts and loops, in their order."""

import jax
import jax.numpy as jnp
import numpy as np

from maskx_jax.models.rcnn.box_head import BoxHead, BoxPredictions, ClassWeights, Deltas
from maskx_jax.models.rcnn.rpn import RPN
from maskx_jax.structures import Proposals
from tests.compilation import optimized
from tests.reference.nms import greedy_nms


def best_first(scores, count):
    return np.argsort(-scores, kind="stable")[:count]


def test_proposals_of_five_levels_equal_sorts_and_greedy_loops():
    # Anchors as they are, with whole coordinates: their overlaps are exact in float32.
    rpn = RPN(anchor_convention="torchvision", nms_threshold=0.7)
    sizes = {level: (800 >> level, 1344 >> level) for level in (2, 3, 4, 5)} | {6: (13, 21)}
    anchors = jax.tree.map(np.asarray, rpn.anchors({level: jnp.zeros((1, *size, 1)) for level, size in sizes.items()}))
    rng = np.random.default_rng(0)
    # Scores with ties, the best of them side by side.
    logits = {
        level: np.sort(rng.integers(0, 5000, (1, len(boxes)))).astype(np.float32) / 100
        for level, boxes in anchors.items()
    }
    image_sizes = np.array([[800, 1333]], np.float32)
    deltas = {level: np.zeros((1, len(boxes), 4), np.float32) for level, boxes in anchors.items()}
    propose = jax.jit(lambda *arguments: rpn.proposals(*arguments, training=True))
    with optimized():
        found = propose(logits, deltas, anchors, image_sizes)
    boxes, scores = [], []
    for level in sorted(anchors):
        best = best_first(logits[level][0], 2000)
        clipped = np.clip(anchors[level][best], 0, [1333, 800, 1333, 800])
        large = ((clipped[:, 2:] - clipped[:, :2]) > 1e-3).all(axis=1)
        clipped, best = clipped[large], best[large]
        kept = greedy_nms(clipped, logits[level][0][best], np.zeros(len(best)), 0.7)
        boxes.append(clipped[kept])
        scores.append(logits[level][0][best][kept])
    boxes, scores = np.concatenate(boxes), np.concatenate(scores)
    order = best_first(scores, 1000)
    valid = np.asarray(found.valid[0])
    assert 500 < len(order) == valid.sum() and valid[: len(order)].all()
    np.testing.assert_array_equal(found.scores[0][valid], scores[order])
    np.testing.assert_array_equal(found.boxes[0][valid], boxes[order])


def test_detections_among_3000_classes_equal_sorts_and_a_greedy_loop():
    rng = np.random.default_rng(1)
    head = BoxHead(num_classes=3000)
    corner = np.round(rng.uniform(10, 700, (40, 2))).repeat(25, axis=0) + rng.integers(-6, 7, (1000, 2))
    boxes = np.concatenate([corner, corner + rng.integers(40, 90, (1000, 2))], axis=1).astype(np.float32)
    # Three likely classes for each object.
    likely = rng.integers(1, 3001, (40, 3)).repeat(25, axis=0)
    logits = rng.normal(size=(1000, 3001)).astype(np.float32)
    np.put_along_axis(logits, likely, rng.uniform(8, 12, (1000, 3)).astype(np.float32), axis=1)
    weights = ClassWeights(jnp.zeros((3001, 1)), jnp.zeros((3001, 4)))

    def detect(logits, boxes, sizes):
        predictions = BoxPredictions(logits, Deltas(jnp.zeros((*logits.shape, 4)), None), weights)
        proposals = Proposals(boxes, jnp.zeros(boxes.shape[:2]), jnp.ones(boxes.shape[:2], bool))
        return head.detect(predictions, proposals, sizes), jax.nn.softmax(logits)

    with optimized():
        found, probabilities = jax.jit(detect)(logits[None], boxes[None], np.full((1, 2), 2000, np.float32))
    scores = np.asarray(probabilities)[0, :, 1:]
    regions, labels = np.nonzero(scores > 0.05)
    best = best_first(scores[regions, labels], 2000)
    regions, labels = regions[best], labels[best] + 1
    kept = greedy_nms(boxes[regions], scores[regions, labels - 1], labels, 0.5)[:100]
    assert len(regions) == 2000 and found.valid.all()
    np.testing.assert_array_equal(found.labels[0], labels[kept])
    np.testing.assert_array_equal(found.scores[0], scores[regions, labels - 1][kept])
    np.testing.assert_allclose(found.boxes[0], boxes[regions][kept], atol=1e-3)
