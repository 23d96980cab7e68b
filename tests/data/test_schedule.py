"""The order of examples."""

import numpy as np
import pytest

from maskx_jax.data import schedule as schedules
from maskx_jax.data.schedule import LANDSCAPE, PORTRAIT, Schedule, evaluation_order, repeat_factors

# 13 landscape images (one of them square) and 8 portrait ones, shuffled.
SIZES = np.random.default_rng(0).permutation(np.array([(480, 640)] * 12 + [(500, 500)] + [(640, 480)] * 8))


def streams(schedule, steps):
    """Collect what each orientation's stream holds, in order."""
    found = {LANDSCAPE: [], PORTRAIT: []}
    for step in range(steps):
        orientation, indices = schedule.step(step)
        found[orientation].extend(indices.tolist())
    return found


def test_every_example_comes_once_in_each_epoch_of_its_stream():
    schedule = Schedule(SIZES, 4, seed=3)
    found = streams(schedule, 21 * 3)
    portrait = SIZES[:, 1] < SIZES[:, 0]
    for orientation, members in ((LANDSCAPE, np.flatnonzero(~portrait)), (PORTRAIT, np.flatnonzero(portrait))):
        size = len(members)
        epochs = [found[orientation][i * size : (i + 1) * size] for i in range(12)]
        assert all(sorted(epoch) == members.tolist() for epoch in epochs)
        assert epochs[0] != epochs[1], "every epoch has an order of its own"


def test_no_batch_mixes_orientations_and_they_come_in_proportion():
    schedule = Schedule(SIZES, 4, seed=3)
    which = []
    for step in range(21):
        orientation, indices = schedule.step(step)
        assert ((SIZES[indices, 1] < SIZES[indices, 0]) == (orientation == PORTRAIT)).all()
        assert indices.shape == (4,)
        which.append(orientation)
    assert which.count(LANDSCAPE) == 13
    # Evenly mixed, not all of one kind first: no long run of one orientation.
    assert max(len(run) for run in "".join(map(str, which)).split("1")) <= 2


def test_order_is_a_pure_function_of_seed_and_step():
    schedule = Schedule(SIZES, 4, seed=3)
    forwards = [schedule.step(step) for step in range(40)]
    fresh = Schedule(SIZES, 4, seed=3)
    for step in reversed(range(40)):
        orientation, indices = fresh.step(step)
        assert orientation == forwards[step][0] and indices.tolist() == forwards[step][1].tolist()
    assert schedule.step(10**9)[1].tolist() == fresh.step(10**9)[1].tolist()
    other = Schedule(SIZES, 4, seed=4)
    assert any(other.step(step)[1].tolist() != forwards[step][1].tolist() for step in range(5))


def test_a_batch_may_hold_many_epochs_of_a_small_set():
    _, indices = Schedule(SIZES[:1], 5, seed=0).step(7)
    assert indices.tolist() == [0] * 5


@pytest.mark.parametrize(("height", "width", "orientation"), [(3, 4, LANDSCAPE), (4, 3, PORTRAIT), (3, 3, LANDSCAPE)])
def test_one_orientation_makes_one_canvas(height, width, orientation):
    schedule = Schedule(np.full((5, 2), (height, width)), 2, seed=0)
    assert {schedule.step(step)[0] for step in range(20)} == {orientation}


def test_a_single_canvas_mixes_orientations():
    schedule = Schedule(SIZES, 21, seed=0, single_canvas=True)
    orientation, indices = schedule.step(5)
    assert orientation == LANDSCAPE and sorted(indices.tolist()) == list(range(21))


def test_epoch_of_counts_examples():
    schedule = Schedule(SIZES, 7, seed=0)
    assert schedule.epoch_size == 21
    assert [schedule.epoch_of(step) for step in (0, 3, 6)] == [0, 1, 2]


def test_repeat_factors_repeat_whole_and_round_fractions_once():
    sizes = np.full((2000, 2), 10)
    factors = np.concatenate([np.full(1000, 3.0), np.full(1000, 1.25)])
    schedule = Schedule(sizes, 1, seed=1, repeat_factors=factors)
    counts = np.bincount(schedule.examples[LANDSCAPE], minlength=2000)
    assert (counts[:1000] == 3).all()
    assert set(counts[1000:].tolist()) == {1, 2} and 1.2 < counts[1000:].mean() < 1.3
    again = Schedule(sizes, 1, seed=1, repeat_factors=factors)
    assert again.step(12345)[1].tolist() == schedule.step(12345)[1].tolist()


def test_repeat_factors_follow_the_formula():
    # Category 1 on every image, 2 on a quarter, 3 on one of a hundred, 4 on none.
    labels = [np.array([1, 2, 2]) if i < 25 else np.array([1]) for i in range(99)] + [np.array([3, 1])]
    factors = repeat_factors([*labels, np.zeros(0, int)], 4, threshold=0.5)
    assert factors[0] == pytest.approx(np.sqrt(0.5 / (25 / 101)))
    assert factors[50] == 1
    assert factors[99] == pytest.approx(np.sqrt(0.5 / (1 / 101)))
    assert factors[100] == 1, "an image without objects is seen once"


def slow_repeat_factors(image_labels, num_categories, threshold, keep_empty):
    """Image by image."""
    num_images_with = np.zeros(num_categories + 1)
    for labels in image_labels:
        num_images_with[np.unique(labels)] += 1
    share = num_images_with / max(1, len(image_labels))
    of_category = np.sqrt(np.maximum(1.0, threshold / np.maximum(share, 1e-12)))
    return [of_category[labels].max() if len(labels) else float(keep_empty) for labels in image_labels]


@pytest.mark.parametrize("keep_empty", [True, False])
@pytest.mark.parametrize("num_images", [0, 1, 400])
def test_repeat_factors_are_those_of_a_loop_over_images(num_images, keep_empty, monkeypatch):
    monkeypatch.setattr(schedules, "_IMAGES_AT_A_TIME", 64)
    rng = np.random.default_rng(num_images)
    # Some images have nothing, the last ones too; the rare classes are rare.
    counts = np.append(rng.integers(0, 9, num_images)[3:], np.zeros(min(3, num_images), int))
    labels = [np.minimum(rng.geometric(0.2, count), 30).astype(np.int32) for count in counts]
    expected = slow_repeat_factors(labels, 30, 0.1, keep_empty)
    found = repeat_factors(labels, 30, 0.1, keep_empty)
    assert found.dtype == np.float64 and found.tolist() == expected
    assert num_images < 400 or len(set(expected)) > 5


def test_images_without_objects_are_kept_or_left_out():
    labels = [np.array([1]) if i % 3 else np.zeros(0, int) for i in range(len(SIZES))]
    # Without a threshold every image is seen once, in the order that no factors give.
    kept = repeat_factors(labels, 1, threshold=0.0)
    assert (kept == 1).all()
    first, second = Schedule(SIZES, 4, seed=3), Schedule(SIZES, 4, seed=3, repeat_factors=kept)
    for step in range(12):
        assert second.step(step)[1].tolist() == first.step(step)[1].tolist()
    factors = repeat_factors(labels, 1, threshold=0.0, keep_empty=False)
    assert factors.tolist() == [float(i % 3 > 0) for i in range(len(SIZES))]
    left = Schedule(SIZES, 4, seed=3, repeat_factors=factors)
    seen = {index for step in range(12) for index in left.step(step)[1].tolist()}
    assert seen == set(np.flatnonzero(factors).tolist()) and left.epoch_size == len(seen)


def test_candidates_are_the_examples_of_the_orientation_once_each_in_a_ring():
    # The orientations are shuffled; one example is repeated, one is never seen.
    portrait = np.flatnonzero(SIZES[:, 1] < SIZES[:, 0])
    factors = np.ones(len(SIZES))
    factors[portrait[1]], factors[portrait[2]] = 3, 0
    schedule = Schedule(SIZES, 4, seed=3, repeat_factors=factors)
    seen = np.delete(portrait, 2).tolist()
    for place, index in enumerate(seen):
        assert list(schedule.candidates(PORTRAIT, index)) == seen[place:] + seen[:place]


def test_evaluation_covers_every_image_once_in_order():
    batches = evaluation_order(SIZES, 5)
    assert len(batches) == 3 + 2
    seen = []
    for orientation, indices, valid in batches:
        assert indices.shape == valid.shape == (5,)
        assert ((SIZES[indices, 1] < SIZES[indices, 0]) == (orientation == PORTRAIT)).all()
        assert (np.diff(indices[valid]) > 0).all()
        seen.extend(indices[valid].tolist())
    assert sorted(seen) == list(range(21))
    assert sum(not valid.all() for _, _, valid in batches) == 2
    assert len(evaluation_order(SIZES, 21, single_canvas=True)) == 1
    assert evaluation_order(SIZES[:0], 4) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": SIZES[:0]}, "no image"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"repeat_factors": np.ones(3)}, r"shape \(3,\).*expected 21"),
        ({"repeat_factors": -np.ones(21)}, "minimum -1"),
        ({"repeat_factors": np.zeros(21)}, "no example"),
        ({"repeat_factors": np.full(21, np.nan)}, "expected 21"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**{"sizes": SIZES, "batch_size": 2, "seed": 0, **arguments})


def test_negative_steps_are_refused():
    with pytest.raises(ValueError, match="step is -1"):
        Schedule(SIZES, 2, seed=0).step(-1)
    with pytest.raises(ValueError, match="batch_size is 0"):
        evaluation_order(SIZES, 0)
