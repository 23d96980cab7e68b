"""Batches: who makes them does not matter, what is in them does."""

import dataclasses
import errno
import os
import re
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest

from maskx_jax.data import loaders, reading
from maskx_jax.data.pipeline import Statistics, evaluation_batches, train_batches
from maskx_jax.data.records import BrokenRecordError, check_record
from maskx_jax.data.schedule import Schedule
from maskx_jax.data.shapes.source import ShapesSource
from maskx_jax.data.transforms import Transform
from maskx_jax.structures import Keypoints

NUM_IMAGES = 21
SEED = 5


@pytest.fixture(scope="module")
def source():
    return ShapesSource(NUM_IMAGES, 0, image_size=(48, 80), num_hues=3, num_textures=2)


@pytest.fixture(scope="module")
def schedule(source):
    return Schedule(source.sizes, 4, SEED)


# Each worker process imports the program anew, so fewer tests take "processes".
IN_PROCESS = [name for name in loaders.LOADERS if name != "processes"]
ALLOWED = np.array([False, True, False, True, False, True, False])
TRANSFORM = Transform(canvas=(64, 96), short_sides=(48, 64), max_long_side=96, num_slots=6)


def take(iterator, count):
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def assert_same(first, second):
    for mine, other in zip(loaders.arrays_of(first), loaders.arrays_of(second), strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(mine, other)


@pytest.fixture(scope="module")
def reference(source, schedule):
    return take(train_batches(source, schedule, TRANSFORM, ALLOWED, loader="threads", num_workers=1, prefetch=0), 12)


@pytest.mark.parametrize("loader", loaders.LOADERS)
def test_loaders_agree_to_the_bit(loader, source, schedule, reference):
    workers = 2 if loader == "processes" else 3
    made = take(train_batches(source, schedule, TRANSFORM, ALLOWED, loader=loader, num_workers=workers, prefetch=2), 12)
    for mine, other in zip(made, reference, strict=True):
        assert_same(mine, other)


@pytest.mark.parametrize("loader", loaders.LOADERS)
def test_batches_are_the_same_if_records_are_read_ahead(loader, source, schedule, reference):
    options = {"loader": loader, "num_workers": 2, "prefetch": 1, "start_step": 2, "stop_step": 11}
    made = list(train_batches(source, schedule, TRANSFORM, ALLOWED, read_ahead=5, **options))
    for mine, other in zip(made, reference[2:11], strict=True):
        assert_same(mine, other)


@pytest.mark.parametrize("loader", IN_PROCESS)
def test_any_start_step_continues_the_same_run(loader, source, schedule, reference):
    made = take(train_batches(source, schedule, TRANSFORM, ALLOWED, start_step=7, loader=loader), 5)
    for mine, other in zip(made, reference[7:], strict=True):
        assert_same(mine, other)


def test_parts_of_the_processes_make_the_global_batch(source, schedule, reference):
    parts = [
        take(train_batches(source, schedule, TRANSFORM, ALLOWED, process_index=i, process_count=2, loader="threads"), 6)
        for i in range(2)
    ]
    for step in range(6):
        assert parts[0][step].images.shape[0] == 2
        leaves = zip(*(loaders.arrays_of(part[step]) for part in parts), strict=True)
        assert_same(loaders.batch_of([np.concatenate(pair) for pair in leaves]), reference[step])


@pytest.mark.parametrize("loader", loaders.LOADERS)
def test_a_run_that_ends_is_given_the_batches_up_to_its_end(loader, source, schedule, reference):
    arguments = {"start_step": 7, "stop_step": 10, "loader": loader, "num_workers": 2, "prefetch": 4}
    made = list(train_batches(source, schedule, TRANSFORM, ALLOWED, **arguments))
    for mine, other in zip(made, reference[7:10], strict=True):
        assert_same(mine, other)


@pytest.mark.parametrize("loader", IN_PROCESS)
def test_keypoints_come_with_their_objects_by_every_loader(loader, source, schedule, reference):
    marked = ShapesSource(NUM_IMAGES, 0, image_size=(48, 80), num_hues=3, num_textures=2, keypoints=True)
    made = take(train_batches(marked, schedule, TRANSFORM, ALLOWED, loader=loader, num_workers=3, prefetch=2), 12)
    plain = take(train_batches(marked, schedule, TRANSFORM, ALLOWED, loader="threads", num_workers=1), 12)
    for mine, other, without in zip(made, plain, reference, strict=True):
        assert_same(mine, other)
        truth = mine.ground_truth
        assert truth.keypoints.points.shape == (4, 6, 5, 2) and without.ground_truth.keypoints is None
        # Crowds have none, and all else is as without keypoints.
        assert (truth.keypoints.labelled.any(axis=2) == (truth.valid & ~truth.is_crowd)).all()
        for name, value in vars(without.ground_truth).items():
            if name != "keypoints":
                np.testing.assert_array_equal(getattr(truth, name), value)
    for batch in evaluation_batches(marked, TRANSFORM, 4, loader=loader):
        assert batch.ground_truth.keypoints is None


@pytest.mark.parametrize("loader", IN_PROCESS)
def test_weights_of_masks_come_with_their_objects_by_every_loader(loader, source, schedule, reference):
    def weigh(record):
        predicted = record.labels % 2 == 1
        weight = np.where(predicted, np.float32(0.5), np.float32(1))
        return dataclasses.replace(record, mask_weight=weight, is_predicted=predicted)

    weighed = Changed(source, range(NUM_IMAGES), weigh)
    options = {"loader": loader, "num_workers": 3, "prefetch": 2, "predicted_mask_weight": 0.5}
    for batch, without in zip(
        take(train_batches(weighed, schedule, TRANSFORM, ALLOWED, **options), 12), reference, strict=True
    ):
        truth = batch.ground_truth
        assert without.ground_truth.mask_weight is None
        expected = np.where(truth.labels % 2 == 1, np.float32(0.25), truth.valid.astype(np.float32))
        np.testing.assert_array_equal(truth.mask_weight, expected)
        assert_same(batch.replace(ground_truth=truth.replace(mask_weight=None)), without)
    assert all(
        batch.ground_truth.mask_weight.shape == (4, 0)
        for batch in evaluation_batches(weighed, TRANSFORM, 4, loader=loader)
    )


def test_hidden_keypoints_leave_all_else_as_it_was(schedule):
    marked = ShapesSource(NUM_IMAGES, 0, image_size=(48, 80), num_hues=3, num_textures=2, keypoints=True)
    made = {
        fraction: take(
            train_batches(marked, schedule, TRANSFORM, ALLOWED, loader="threads", keypoint_fraction=fraction), 6
        )
        for fraction in (0.5, 1.0)
    }
    hidden = 0
    for part, whole in zip(made[0.5], made[1.0], strict=True):
        has, had = (batch.ground_truth.keypoints.labelled.any(axis=2) for batch in (part, whole))
        hidden += (had & ~has).sum()
        assert not (has & ~had).any()
        assert_same(
            *(batch.replace(ground_truth=batch.ground_truth.replace(keypoints=None)) for batch in (part, whole))
        )
    assert 0.3 < hidden / sum(batch.ground_truth.keypoints.labelled.any(axis=2).sum() for batch in made[1.0]) < 0.7


def test_batches_follow_the_schedule(source, schedule, reference):
    for step, batch in enumerate(reference):
        portrait, indices = schedule.step(step)
        assert batch.images.shape == (4, *TRANSFORM.canvas_of(portrait), 3)
        assert batch.image_ids.tolist() == (indices + 1).tolist()
        assert batch.valid.all()
    assert {batch.images.shape[1:3] for batch in reference} == {(64, 96), (96, 64)}


def test_augmentation_changes_from_step_to_step(source):
    single = Schedule(source.sizes[:1], 1, SEED)
    batches = take(train_batches(source, single, TRANSFORM, ALLOWED, loader="threads"), 24)
    assert len({batch.images.tobytes() for batch in batches}) == 4, "two sides, flipped or not"


def test_only_allowed_masks_arrive(reference):
    for batch in reference:
        truth = batch.ground_truth
        assert (truth.has_mask == (truth.valid & ALLOWED[truth.labels])).all()
        assert (truth.masks.any(axis=(2, 3)) == truth.has_mask).all()
    assert any((b.ground_truth.valid & ~b.ground_truth.has_mask).any() for b in reference)
    assert any(b.ground_truth.has_mask.any() for b in reference)


@pytest.mark.parametrize("loader", IN_PROCESS)
def test_evaluation_covers_each_image_once(loader, source):
    batches = list(evaluation_batches(source, TRANSFORM, 4, loader=loader))
    ids = np.concatenate([batch.image_ids[batch.valid] for batch in batches])
    assert sorted(ids.tolist()) == list(range(1, NUM_IMAGES + 1))
    assert sum((~batch.valid).sum() for batch in batches) == 4 * len(batches) - NUM_IMAGES
    parts = [list(evaluation_batches(source, TRANSFORM, 4, i, 2, loader=loader)) for i in range(2)]
    for whole, first, second in zip(batches, *parts, strict=True):
        leaves = zip(loaders.arrays_of(first), loaders.arrays_of(second), strict=True)
        assert_same(loaders.batch_of([np.concatenate(pair) for pair in leaves]), whole)


def test_evaluation_is_without_chance_and_without_ground_truth(source):
    (batch,) = evaluation_batches(source, dataclasses.replace(TRANSFORM, canvas=(96, 96)), NUM_IMAGES, loader="threads")
    assert batch.image_ids.tolist() == list(range(1, NUM_IMAGES + 1)), "a square canvas takes both orientations"
    assert batch.ground_truth.valid.shape == (NUM_IMAGES, 0)
    expected = np.minimum(64, 96 * source.sizes.min(axis=1) / source.sizes.max(axis=1))
    np.testing.assert_allclose(batch.image_sizes.min(axis=1), expected, atol=0.5)
    np.testing.assert_allclose(batch.image_sizes / batch.scales[:, None], source.sizes, atol=1)


class Broken:
    """A source some of whose images have broken bytes."""

    def __init__(self, source, indices):
        self.categories, self.sizes, self.skeleton = source.categories, source.sizes, source.skeleton
        self._source, self._indices = source, indices

    def __getitem__(self, index):
        record = self._source[index]
        return dataclasses.replace(record, image=b"broken") if index in self._indices else record


def stand_in(source, index, broken):
    """Return the next good example of the same orientation, the first after the last."""
    portrait = source.sizes[:, 1] < source.sizes[:, 0]
    while index in broken:
        index = (index + 1) % len(portrait)
        while portrait[index] != portrait[13]:
            index = (index + 1) % len(portrait)
    return index


@pytest.fixture(scope="module")
def broken(source):
    """Return three indices of one orientation: two neighbours, and the last one, after which comes the first."""
    portrait = source.sizes[:, 1] < source.sizes[:, 0]
    alike = np.flatnonzero(portrait == portrait[13]).tolist()
    place = alike.index(13)
    assert alike[place + 1] != alike[-1]
    return {13, alike[place + 1], alike[-1]}


@pytest.mark.parametrize("read_ahead", [0, 5])
@pytest.mark.parametrize("loader", IN_PROCESS)
def test_another_example_of_the_orientation_stands_in_for_a_broken_record(
    loader, read_ahead, source, schedule, broken, reference
):
    options = {"loader": loader, "num_workers": 3, "max_broken_records": 3, "read_ahead": read_ahead}
    batches = train_batches(Broken(source, broken), schedule, TRANSFORM, ALLOWED, **options)
    replaced = 0
    for step, (made, whole) in enumerate(zip(take(batches, 12), reference, strict=True)):
        expected = [stand_in(source, index, broken) for index in schedule.step(step)[1].tolist()]
        assert made.image_ids.tolist() == [index + 1 for index in expected]
        same = made.image_ids == whole.image_ids
        np.testing.assert_array_equal(made.images[same], whole.images[same])
        replaced += (~same).sum()
    assert replaced >= 3


def test_examples_that_stand_in_are_the_same_for_any_number_of_processes(source, schedule, broken):
    def steps(process_index, process_count):
        return take(
            train_batches(
                Broken(source, broken),
                schedule,
                TRANSFORM,
                ALLOWED,
                process_index=process_index,
                process_count=process_count,
                loader="threads",
                max_broken_records=3,
            ),
            12,
        )

    for whole, *parts in zip(steps(0, 1), steps(0, 2), steps(1, 2), strict=True):
        leaves = zip(*(loaders.arrays_of(part) for part in parts), strict=True)
        assert_same(loaders.batch_of([np.concatenate(pair) for pair in leaves]), whole)


@pytest.mark.parametrize("loader", loaders.LOADERS)
def test_broken_records_are_counted_and_named_once(loader, source, schedule, broken, caplog):
    statistics = Statistics()
    batches = train_batches(
        Broken(source, broken),
        schedule,
        TRANSFORM,
        ALLOWED,
        loader=loader,
        num_workers=2,
        prefetch=0,
        max_broken_records=3,
        statistics=statistics,
    )
    take(batches, 12)
    assert set(statistics.broken) == broken
    assert statistics.broken[13].startswith("example 13, image id 14: image 14: its 6 bytes")
    messages = [record.getMessage() for record in caplog.records if "broken record" in record.getMessage()]
    assert [message[: message.index(",")] for message in messages] == [
        f"broken record {count} of at most 3" for count in (1, 2, 3)
    ]
    assert {message.split("its place: ")[1] for message in messages} == set(statistics.broken.values())
    # Those that stood in are examples made, the broken ones are not.
    assert statistics.num_examples >= 48


WRONG = {
    "boxes": ("boxes", (0, 2), np.nan, "boxes holds .*nan.*; expected finite numbers"),
    "boxes beyond all": ("boxes", (0, 2), 1e30, "boxes holds .*; expected finite numbers"),
    "frames": ("mask_frames", (0, 1), -np.inf, "mask_frames holds .*inf.*; expected finite numbers"),
    "frames turned": ("mask_frames", (0, 2), -5, "mask_frames holds .*; expected x1 < x2, y1 < y2"),
    "labels below": ("labels", 0, 0, "labels holds 0; expected 1 to 6"),
    "labels above": ("labels", 0, 7, "labels holds 7; expected 1 to 6"),
    "weight": ("mask_weight", 0, np.nan, "mask_weight holds nan; expected 0 to 1"),
    "weight above": ("mask_weight", 1, 1.5, "mask_weight holds 1.5; expected 0 to 1"),
}


class Changed(Broken):
    """A source some of whose records are changed as they are read."""

    def __init__(self, source, indices, change):
        super().__init__(source, indices)
        self._change = change

    def __getitem__(self, index):
        record = self._source[index]
        return self._change(record) if index in self._indices else record


def with_value(record, name, place, value):
    values = getattr(record, name).copy()
    values[place] = value
    return dataclasses.replace(record, **{name: values})


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_learned_from_is_named(wrong, source):
    *change, said = WRONG[wrong]
    count = len(source[0].labels)
    record = dataclasses.replace(source[0], mask_weight=np.ones(count, np.float32), is_predicted=np.zeros(count, bool))
    check_record(record, 6)
    with pytest.raises(BrokenRecordError, match=said):
        check_record(with_value(record, *change), 6)
    for index in range(NUM_IMAGES):
        check_record(source[index], 6)


@pytest.mark.parametrize("name", ["mask_weight", "is_predicted"])
def test_a_weight_comes_with_what_was_predicted(name, source):
    record = dataclasses.replace(source[0], **{name: np.ones(len(source[0].labels), np.float32)})
    with pytest.raises(BrokenRecordError, match="one of mask_weight and is_predicted is None; expected both or"):
        check_record(record, 6)


WRONG_KEYPOINTS = {
    "none": (lambda keypoints: None, "there are no keypoints; expected some"),
    "another number": (
        lambda keypoints: Keypoints(*(value[:, :4] for value in vars(keypoints).values())),
        r"keypoints\.points has shape \(2, 4, 2\); expected \(2, 5, 2\)",
    ),
    "not finite": (
        lambda keypoints: keypoints.replace(points=keypoints.points * np.float32(np.nan)),
        r"keypoints\.points holds \[nan, nan\]; expected finite numbers where labelled",
    ),
    "visible only": (
        lambda keypoints: keypoints.replace(labelled=~keypoints.visible),
        r"keypoints\.visible holds a keypoint that is not labelled",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_KEYPOINTS)
def test_keypoints_that_cannot_be_learned_from_are_named(wrong):
    marked = ShapesSource(1, 3, max_objects=2, pair_fraction=1.0, keypoints=True)
    record, (change, said) = marked[0], WRONG_KEYPOINTS[wrong]
    check_record(record, 60, marked.skeleton)
    with pytest.raises(BrokenRecordError, match=said):
        check_record(dataclasses.replace(record, keypoints=change(record.keypoints)), 60, marked.skeleton)
    with pytest.raises(BrokenRecordError, match="there are some keypoints; expected none"):
        check_record(record, 60)


def test_what_cannot_be_learned_from_is_a_broken_record(source, schedule):
    def change(record):
        return with_value(record, *WRONG["boxes"][:3])

    statistics = Statistics()
    options = {"loader": "threads", "max_broken_records": 1, "statistics": statistics}
    made = take(train_batches(Changed(source, {0}, change), schedule, TRANSFORM, ALLOWED, **options), 12)
    assert list(statistics.broken) == [0] and re.search(WRONG["boxes"][3], statistics.broken[0])
    assert all(np.isfinite(batch.ground_truth.boxes).all() for batch in made)
    assert 1 not in np.concatenate([batch.image_ids for batch in made])


@pytest.mark.parametrize("arrays", [{"labels": np.zeros(0)}, {"masks": np.zeros((1, 8))}, {"size": (0, 5)}])
def test_a_record_of_other_shapes_is_broken(source, arrays):
    with pytest.raises(BrokenRecordError, match=r"; expected "):
        check_record(dataclasses.replace(source[0], **arrays), 6)


@pytest.mark.parametrize("read_ahead", [0, 5])
@pytest.mark.parametrize("loader", IN_PROCESS)
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "MemoryError: out of memory"),
        (OSError(errno.EIO, "Input/output error", "a"), "OSError: a: Input/output error"),
        (TypeError("a defect"), "TypeError: a defect"),
    ],
)
def test_what_fails_for_the_moment_is_no_broken_record(loader, read_ahead, source, schedule, error, said, monkeypatch):
    monkeypatch.setattr(reading, "_WAITS", (0.0, 0.0))

    def fail(record):
        raise error

    statistics = Statistics()
    options = {"loader": loader, "max_broken_records": 3, "statistics": statistics, "read_ahead": read_ahead}
    batches = train_batches(Changed(source, {13}, fail), schedule, TRANSFORM, ALLOWED, **options)
    with pytest.raises(RuntimeError, match=rf"^example 13: {said}$"):
        for _ in range(12):
            next(batches)
    assert statistics.broken == {}


@pytest.mark.parametrize("loader", IN_PROCESS)
@pytest.mark.parametrize("limit", [0, 2])
def test_more_broken_records_than_the_limit_stop_the_run_and_are_named(loader, limit, source, schedule, broken):
    batches = train_batches(
        Broken(source, broken), schedule, TRANSFORM, ALLOWED, loader=loader, max_broken_records=limit
    )
    with pytest.raises(RuntimeError) as caught:
        for _ in range(12):
            next(batches)
    message = str(caught.value)
    assert message.startswith(
        f"got {limit + 1} broken records, expected at most {limit} (data.max_broken_records): example "
    )
    named = {index for index in broken if f"example {index}, image id {index + 1}: image {index + 1}: " in message}
    assert len(named) == message.count("; ") + 1 == limit + 1


@pytest.mark.parametrize("loader", IN_PROCESS)
def test_a_run_stops_where_no_record_can_stand_in(loader, source, schedule):
    portrait = set(np.flatnonzero(source.sizes[:, 1] < source.sizes[:, 0]).tolist())
    batches = train_batches(
        Broken(source, portrait), schedule, TRANSFORM, ALLOWED, loader=loader, max_broken_records=NUM_IMAGES
    )
    with pytest.raises(RuntimeError, match=rf"step \d: every portrait record is broken.*example {min(portrait)}, "):
        for _ in range(12):
            next(batches)


@pytest.mark.parametrize("loader", IN_PROCESS)
def test_evaluation_stops_at_a_broken_record(loader, source):
    with pytest.raises(RuntimeError, match=r"^example 13, image id 14: image 14: its 6 bytes"):
        list(evaluation_batches(Broken(source, {13}), TRANSFORM, 4, loader=loader))


@pytest.mark.parametrize("loader", IN_PROCESS)
def test_errors_of_workers_name_the_image(loader, source, schedule):
    batches = train_batches(Broken(source, {13}), schedule, TRANSFORM, ALLOWED, loader=loader)
    with pytest.raises(RuntimeError, match=r"example 13, image id 14: image 14: its 6 bytes"):
        for _ in range(12):
            next(batches)


@pytest.mark.parametrize("loader", IN_PROCESS)
def test_errors_of_the_source_name_the_example(loader, source):
    longer = Schedule(np.full((NUM_IMAGES + 1, 2), 64), NUM_IMAGES + 1, SEED)
    with pytest.raises(RuntimeError, match=f"example {NUM_IMAGES}: IndexError"):
        next(train_batches(source, longer, TRANSFORM, ALLOWED, loader=loader))


@pytest.mark.parametrize("loader", IN_PROCESS)
def test_overflow_is_counted_and_logged_once(loader, source, schedule, caplog):
    statistics = Statistics()
    crowded = dataclasses.replace(TRANSFORM, num_slots=1)
    take(train_batches(source, schedule, crowded, ALLOWED, loader=loader, prefetch=0, statistics=statistics), 6)
    expected = sum(max(0, len(source[i].labels) - 1) for step in range(6) for i in schedule.step(step)[1])
    assert statistics.num_examples >= 24 and statistics.overflow >= expected > 0
    messages = [record.getMessage() for record in caplog.records if "ground-truth slots" in record.getMessage()]
    assert len(messages) == 1 and "objects more than the 1 ground-truth slots" in messages[0]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are not bound to cores here")
def test_workers_are_as_many_as_the_cores_unless_a_number_is_given():
    cores = os.sched_getaffinity(0)
    try:
        for allowed in {min(cores)}, cores:
            os.sched_setaffinity(0, allowed)
            assert loaders.choose_workers(None) == min(16, len(allowed))
    finally:
        os.sched_setaffinity(0, cores)
    assert [loaders.choose_workers(number) for number in (1, 40)] == [1, 40]


def test_workers_are_as_many_as_the_machines_cores_where_none_are_granted(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert loaders.choose_workers(None) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allowed_masks": np.ones(6, bool)}, r"allowed_masks has shape \(6,\); expected \(7,\)"),
        ({"process_count": 3}, "4 images cannot be cut into 3"),
        ({"process_index": 2, "process_count": 2}, "process_index is 2"),
        ({"start_step": -1}, "start_step is -1"),
        ({"loader": "torch"}, "loader is 'torch'"),
        ({"num_workers": 0}, "num_workers is 0"),
        ({"prefetch": -1}, "prefetch is -1"),
        ({"read_ahead": -1}, "read_ahead is -1"),
        ({"max_broken_records": -1}, "max_broken_records is -1"),
        ({"keypoint_fraction": 1.5}, "keypoint_fraction is 1.5"),
    ],
)
def test_bad_arguments_are_refused_at_once(options, message, source, schedule):
    with pytest.raises(ValueError, match=message):
        train_batches(source, schedule, TRANSFORM, **{"allowed_masks": ALLOWED, **options})


def test_a_worker_ends_with_its_process_and_not_by_a_signal_to_all():
    program = (
        "import multiprocessing, sys\n"
        "from maskx_jax.data import pipeline, transforms\n"
        "from maskx_jax.data.shapes import source as shapes\n"
        "if __name__ == '__main__':\n"
        "    source = shapes.ShapesSource(40, 0, image_size=64)\n"
        "    transform = transforms.Transform(canvas=(64, 64), short_sides=(64,))\n"
        "    batches = pipeline.evaluation_batches(source, transform, 1, 0, 1, 'processes', 1, read_ahead=4)\n"
        "    for batch in batches:\n"
        "        print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "        sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        worker = psutil.Process(int(process.stdout.readline()))
        for ask in (signal.SIGINT, signal.SIGTERM):
            worker.send_signal(ask)
        for _ in range(10):
            print(file=process.stdin, flush=True)
            assert int(process.stdout.readline()) == worker.pid
        process.kill()
    assert psutil.wait_procs([worker], timeout=30)[1] == []


def test_training_on_shapes_needs_no_tensorflow():
    program = (
        "import sys; sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"
        "import numpy as np\n"
        "from maskx_jax.coco import mask_classes\n"
        "from maskx_jax.data import pipeline, schedule, transforms\n"
        "from maskx_jax.data.shapes import source as shapes\n"
        "source = shapes.ShapesSource(3, 0, image_size=64)\n"
        "order = schedule.Schedule(source.sizes, 2, 0)\n"
        "transform = transforms.Transform(canvas=(64, 64), short_sides=(64,))\n"
        "allowed = mask_classes.mask_labels('random(1, 30)', source.categories)\n"
        "batch = next(pipeline.train_batches(source, order, transform, allowed, loader='threads'))\n"
        "print(batch.images.shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(2, 64, 64, 3)", done.stderr
