"""Tiles cover a picture, and what several parts see of one object becomes one."""

import itertools

import numpy as np
import pytest

from maskx_jax.prediction.tiles import Part, in_picture, merge, parts_of
from maskx_jax.structures import Detections


@pytest.mark.parametrize("size", [(100, 100), (1000, 300), (777, 1234), (64, 65)])
@pytest.mark.parametrize(("tile", "overlap"), [(64, 0.25), (100, 0.0), (128, 0.5)])
def test_tiles_cover_the_picture_and_overlap_by_their_share(size, tile, overlap):
    whole, *tiles = parts_of(size, tile, overlap)
    assert whole == Part(0, 0, size)
    if max(size) <= tile:
        assert not tiles
        return
    covered = np.zeros(size, bool)
    for part in tiles:
        height, width = part.size
        assert (height, width) == (min(tile, size[0]), min(tile, size[1]))
        assert part.top + height <= size[0] and part.left + width <= size[1]
        covered[part.top : part.top + height, part.left : part.left + width] = True
    assert covered.all()
    for starts, length in ((sorted({p.top for p in tiles}), size[0]), (sorted({p.left for p in tiles}), size[1])):
        assert all(later - earlier <= tile * (1 - overlap) + 1 for earlier, later in itertools.pairwise(starts))
        assert length <= tile or len(starts) > 1


def test_a_picture_without_tiles_is_one_part():
    assert parts_of((5000, 7000), None) == [Part(0, 0, (5000, 7000))]
    assert parts_of((64, 64), 64) == [Part(0, 0, (64, 64))]


def detections(*objects):
    """Return detections of (box, score, label)."""
    boxes, scores, labels = zip(*objects, strict=True)
    return Detections(
        boxes=np.array(boxes, np.float32),
        scores=np.array(scores, np.float32),
        labels=np.array(labels),
        masks=np.arange(len(boxes), dtype=np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32),
        valid=np.ones(len(boxes), bool),
    )


def test_what_the_inner_border_of_a_tile_cuts_is_not_valid():
    # A tile in the upper right corner of a picture of 100 x 200, at twice its size on the canvas.
    part = Part(0, 150, (50, 50))
    cases = [
        ([20, 20, 60, 60], True),
        ([0, 20, 60, 60], False),  # Cut on the left, where the picture goes on.
        ([20, 20, 60, 100], False),  # Cut below.
        ([20, 0, 60, 60], True),  # The upper border is the picture's.
        ([20, 20, 100, 60], True),  # And so is the right one.
    ]
    found = in_picture(detections(*((box, 0.5, 1) for box, _ in cases)), 2.0, part, (100, 200), tiled=True)
    assert found.valid.tolist() == [kept for _, kept in cases]
    assert found.boxes[0].tolist() == [160, 10, 180, 30]
    whole = in_picture(detections(*((box, 0.5, 1) for box, _ in cases)), 2.0, part, (100, 200), tiled=False)
    assert whole.valid.all()


def test_of_one_object_in_two_parts_the_better_stays_and_within_a_part_all_do():
    first = detections(([0, 0, 10, 10], 0.6, 1), ([1, 0, 10, 10], 0.5, 1), ([50, 0, 60, 10], 0.3, 2))
    second = detections(([0, 1, 10, 10], 0.9, 1), ([0, 0, 10, 10], 0.4, 2), ([52, 0, 62, 10], 0.8, 2))
    merged = merge([first, second])
    assert merged.scores.tolist() == pytest.approx([0.9, 0.8, 0.4])
    assert merged.labels.tolist() == [1, 2, 2]
    assert merged.masks[:, 0, 0].tolist() == [0, 2, 1]
    kept = merge([first, detections(([80, 0, 90, 10], 0.1, 1))])
    assert kept.scores.tolist() == pytest.approx([0.6, 0.5, 0.3, 0.1])


def test_parts_without_objects_merge_to_none():
    none = detections(([0, 0, 1, 1], 0.5, 1)).replace(valid=np.zeros(1, bool))
    assert len(merge([none, none]).scores) == 0
