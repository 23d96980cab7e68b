import errno
import time
import types

import numpy as np
import pytest

from maskx_jax.data import loaders, reading
from maskx_jax.data.pipeline import Statistics, evaluation_batches, train_batches
from maskx_jax.data.records import BrokenRecordError
from maskx_jax.data.schedule import Schedule
from maskx_jax.data.shapes.source import ShapesSource
from maskx_jax.data.transforms import Transform

TRANSFORM = Transform(canvas=(64, 64), short_sides=(64,))


class Failing:
    """A source of which the first reads of each record fail."""

    def __init__(self, source, error, times):
        self.categories, self.sizes, self.skeleton = source.categories, source.sizes, source.skeleton
        self.reads = dict.fromkeys(range(len(source)), 0)
        self._source, self._error, self._times = source, error, times

    def __getitem__(self, index):
        self.reads[index] += 1
        if self.reads[index] <= self._times:
            raise self._error
        return self._source[index]


@pytest.fixture
def source():
    return ShapesSource(6, 0, image_size=64)


@pytest.fixture
def waits(monkeypatch):
    """Return the waits, as they are made."""
    made = []
    monkeypatch.setattr(reading, "time", types.SimpleNamespace(sleep=made.append))
    return made


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, None])
def test_a_read_that_fails_for_the_moment_is_tried_again_after_longer_waits(source, waits, caplog, number):
    failing = Failing(source, OSError(number, "no answer") if number else OSError("no answer"), 3)
    assert reading.read_record(failing, 2).image_id == source[2].image_id
    assert failing.reads[2] == 4 and waits == sorted(set(waits)) and len(waits) == 3
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3 and all("example 2 cannot be read and is tried again in" in line for line in said)
    assert all("no answer" in line for line in said)


def test_a_read_that_fails_for_good_is_given_up(source, waits):
    failing = Failing(source, TimeoutError("no answer"), 100)
    with pytest.raises(TimeoutError, match="no answer"):
        reading.read_record(failing, 2)
    assert 5 < sum(waits) < 60 and failing.reads[2] == 1 + len(waits)


@pytest.mark.parametrize("error", [MemoryError(), BrokenRecordError("cut off"), TypeError("a defect")])
def test_what_another_try_does_not_change_is_not_tried_again(source, waits, error):
    failing = Failing(source, error, 1)
    with pytest.raises(type(error)):
        reading.read_record(failing, 2)
    assert failing.reads[2] == 1 and waits == []


@pytest.mark.parametrize("loader", ["threads", "tf_data"])
def test_training_and_evaluation_go_on_after_reads_that_failed(source, waits, loader):
    schedule = Schedule(source.sizes, 2, seed=0)
    allowed = np.ones(len(source.categories) + 1, bool)
    statistics = Statistics()
    options = {"stop_step": 3, "loader": loader, "num_workers": 2}
    failing = Failing(source, OSError(errno.EIO, "no answer"), 2)
    made = list(train_batches(failing, schedule, TRANSFORM, allowed, statistics=statistics, **options))
    whole = list(train_batches(source, schedule, TRANSFORM, allowed, **options))
    for mine, other in zip(made, whole, strict=True):
        np.testing.assert_array_equal(mine.images, other.images)
    assert statistics.broken == {} and waits
    failing = Failing(source, OSError(errno.EIO, "no answer"), 2)
    batches = evaluation_batches(failing, TRANSFORM, 3, loader=loader, num_workers=2)
    assert sorted(np.concatenate([batch.image_ids for batch in batches]).tolist()) == [1, 2, 3, 4, 5, 6]


class Slow:
    """A source whose reads take time, as those of an object store; they write down when they began and ended."""

    def __init__(self, source, seconds, file):
        self.categories, self.sizes, self.skeleton = source.categories, source.sizes, source.skeleton
        self._source, self._seconds, self._file = source, seconds, file

    def __getitem__(self, index):
        record, begin = self._source[index], time.monotonic()
        time.sleep(self._seconds)
        # Other processes have the same clock.
        with self._file.open("a") as file:
            file.write(f"{begin} {time.monotonic()}\n")
        return record

    def most_at_once(self):
        spans = [tuple(map(float, line.split())) for line in self._file.read_text().splitlines()]
        return max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans)


@pytest.mark.parametrize("loader", loaders.LOADERS)
def test_records_are_read_ahead_of_the_workers(loader, tmp_path):
    source = ShapesSource(48, 0, image_size=64)
    batches = {}
    for read_ahead in (0, 8):
        slow = Slow(source, 0.1, tmp_path / f"{read_ahead}")
        options = {"loader": loader, "num_workers": 1, "prefetch": 0, "read_ahead": read_ahead}
        batches[read_ahead] = list(evaluation_batches(slow, TRANSFORM, 2, **options))
        at_once = slow.most_at_once()
        assert at_once == 1 if read_ahead == 0 else 4 <= at_once <= 8
    for mine, other in zip(*batches.values(), strict=True):
        np.testing.assert_array_equal(mine.images, other.images)


def test_no_more_is_read_ahead_than_asked_for():
    counting = Failing(ShapesSource(60, 0, image_size=64), OSError(), 0)
    options = {"loader": "threads", "num_workers": 1, "prefetch": 1, "read_ahead": 7}
    batches = evaluation_batches(counting, TRANSFORM, 3, **options)
    next(batches)
    deadline = time.monotonic() + 30
    # One batch is taken, two are in hand, and seven records read ahead.
    while sum(counting.reads.values()) < 16 and time.monotonic() < deadline:
        time.sleep(0.01)
    batches.close()
    assert list(counting.reads.values()) == [1] * 16 + [0] * 44
