"""Masks as run lengths."""

import copy
import itertools

import numpy as np
import pytest
from pycocotools import mask as authority

from maskx_jax.coco import rle


def random_mask(random, height=23, width=31):
    bitmap = random.random((height, width)) < random.choice([0.0, 0.02, 0.5, 1.0])
    # Runs of all lengths.
    bitmap = np.repeat(bitmap, random.integers(1, 9), axis=0)[:height]
    return authority.encode(np.asfortranarray(bitmap, np.uint8))


def compressed(bitmap):
    runs = authority.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    counts = runs["counts"]
    return {"size": list(bitmap.shape), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def uncompressed(bitmap):
    counts = [len(list(run)) for _, run in itertools.groupby(bitmap.T.ravel().tolist())]
    return {"size": list(bitmap.shape), "counts": [0] * int(bitmap[0, 0]) + counts}


def random_regions():
    """Regions of all kinds in small images: on the borders, as high or wide as the image, empty, full."""
    random = np.random.default_rng(0)
    for number in range(1500):
        height, width = random.integers(1, 12, 2)
        rows = height if number % 3 == 0 else random.integers(0, height + 1)
        columns = width if number % 5 == 0 else random.integers(0, width + 1)
        top, left = random.integers(0, height - rows + 1), random.integers(0, width - columns + 1)
        region = random.random((rows, columns)) < random.choice([0.0, 0.2, 0.5, 0.9, 1.0])
        yield region, (int(top), int(left)), int(height), int(width)


def test_run_totals_of_masks_of_all_kinds():
    random = np.random.default_rng(0)
    results = [{"segmentation": random_mask(random)} for _ in range(700)]
    rle.check_totals(results)
    for number in random.integers(0, 700, 40):
        changed = copy.deepcopy(results)
        # The same runs in an image of another size.
        changed[number]["segmentation"]["size"] = [24, 31]
        with pytest.raises(ValueError, match=rf"results\[{number}\]: .* add up to 713 pixels .*expected 24 x 31 = 744"):
            rle.check_totals(changed)


@pytest.mark.parametrize("counts", ["", "o", "1o", "\x00", "é", "ooooooooooo0", "~~~", "hb", "P"])
def test_corrupt_counts(counts):
    with pytest.raises(ValueError, match="are corrupt; expected 20 x 30 = 600"):
        rle.check_totals([{"segmentation": {"size": [20, 30], "counts": counts}}])


def test_negative_runs_are_found_before_they_are_scored():
    # Runs of -1 and 601 pixels.
    with pytest.raises(ValueError, match=r"results\[1\]: segmentation: .*negative"):
        rle.areas([{"size": [20, 30], "counts": "hb0"}, {"size": [20, 30], "counts": "Oib0"}])


def test_regions_are_encoded_as_by_pycocotools():
    for region, (top, left), height, width in random_regions():
        full = np.zeros((height, width), np.uint8, order="F")
        full[top : top + region.shape[0], left : left + region.shape[1]] = region
        encoded = rle.encode(region, (top, left), (height, width))
        assert encoded == {"size": [height, width], "counts": authority.encode(full)["counts"].decode()}


def test_regions_are_decoded_as_they_were_encoded():
    for region, (top, left), height, width in random_regions():
        bitmap, origin = rle.decode_region(rle.encode(region, (top, left), (height, width)))
        rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            assert bitmap.size == 0
            continue
        tight = region[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        np.testing.assert_array_equal(bitmap, tight)
        assert origin == (top + rows[0], left + columns[0])


def test_encoding_a_small_region_of_a_large_image_does_not_scan_it():
    # 50,000 megapixels would not fit into memory; and their runs not into 32 bits.
    encoded = rle.encode(np.ones((2, 3), bool), (40_000, 50_000), (60_000, 70_000))
    assert authority.area(encoded) == 6 and authority.toBbox(encoded).tolist() == [50_000, 40_000, 3, 2]


@pytest.mark.parametrize("density", [0, 0.01, 0.5, 0.99, 1])
def test_decoding_undoes_encoding(density):
    rng = np.random.default_rng(int(density * 100))
    for size in [(1, 1), (1, 17), (23, 1), (37, 53), (300, 5)]:
        bitmap = rng.random(size) < density
        # Long runs too, whose differences are negative and take several digits.
        for mask in (bitmap, np.repeat(np.repeat(bitmap, 9, 0), 40, 1)):
            np.testing.assert_array_equal(rle.decode(compressed(mask)), mask)
            np.testing.assert_array_equal(rle.decode(uncompressed(mask)), mask)
