import jax.numpy as jnp
import numpy as np

from maskx_jax.ops.detections import select

BOXES = jnp.array([[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 10.0, 10.0], [20.0, 20.0, 60.0, 30.0], [0.0, 0.0, 5.0, 5.0]])
# Of two classes.
SCORES = jnp.array([[0.9, 0.3], [0.8, 0.7], [0.1, 0.6], [1.0, 1.0]])
VALID = jnp.array([True, True, True, False])


def found(**changes):
    options = {"score_threshold": 0.2, "pre_nms_top_k": 8, "nms_threshold": 0.5, "max_detections": 6} | changes
    result = select(SCORES, VALID, lambda candidate, label: BOXES[candidate], jnp.array([40.0, 50.0]), **options)
    rows = zip(result.candidates, result.labels, result.scores, result.valid, strict=True)
    return [(int(i), int(label), round(float(score), 2)) for i, label, score, valid in rows if valid], result


def test_the_best_come_first_and_lose_the_worse_of_their_own_label():
    # Candidates 0 and 1 overlap: each is the best for one label.
    assert found()[0] == [(0, 1, 0.9), (1, 2, 0.7), (2, 2, 0.6)]


def test_boxes_are_clipped_and_empty_slots_have_no_score():
    _, result = found()
    np.testing.assert_array_equal(result.boxes[2], [20, 20, 50, 30])
    assert result.boxes.shape == (6, 4) and not result.scores[~result.valid].any()


def test_fewer_slots_pairs_or_labels_keep_the_best():
    assert found(max_detections=2)[0] == [(0, 1, 0.9), (1, 2, 0.7)]
    assert found(pre_nms_top_k=1)[0] == [(0, 1, 0.9)]
    assert found(labels_per_candidate=1)[0] == [(0, 1, 0.9), (2, 2, 0.6)]
    assert found(score_threshold=0.65)[0] == [(0, 1, 0.9), (1, 2, 0.7)]
