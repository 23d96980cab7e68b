"""Masks as run lengths: the form of COCO's files and of all who evaluate them.

An encoding is `{"size": [height, width], "counts": ...}`, the lengths of the runs of 0, 1, 0, ... down the columns: a
list of numbers, or compressed into text (or bytes), whose format `totals` explains.

hotcoco does the coding. It draws polygons as pycocotools and faster-coco-eval do, to the bit and in a fraction of the
time, and raises at a corrupt run where those read and write past the end of their memory. (pycocotools' `decode` warns
under NumPy 2 besides: its arrays have an `__array__` without `copy`.) Two things are done here in NumPy: a small region
is encoded without making the image around it, and runs that fill less than their image are found; no library does that.
"""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hotcoco import mask as _coder

# Run lengths are numbers of 32 bits.
_MOST_PIXELS = 2**32 - 1


def encode(region: np.ndarray, origin: tuple[int, int] = (0, 0), size: tuple[int, int] | None = None) -> dict:
    """Return the compressed encoding of an image that is empty outside of a region.

    Args:
      region: bool `rows columns`.
      origin: row and column of the region's first pixel in the image.
      size: height and width of the image; by default the region is all of it.

    Returns:
      A dict of `size` (height and width) and `counts` (text), as it stands in a COCO results file.
    """
    top, left = origin
    rows, columns = region.shape
    height, width = size or region.shape
    # Down the columns, with a pixel outside before each and at the end: every run of the region begins and ends.
    padded = np.zeros(columns * (rows + 1) + 1, bool)
    padded[:-1].reshape(columns, rows + 1)[:, 1:] = region.T
    edges = np.flatnonzero(padded[1:] != padded[:-1])

    def places(indices: np.ndarray) -> np.ndarray:
        column, row = np.divmod(indices, rows + 1)
        return (left + column) * height + top + row - 1

    starts, stops = places(edges[0::2] + 1), places(edges[1::2]) + 1
    # A run over the bottom of the image goes on at the top of its next column.
    joined = np.flatnonzero(starts[1:] == stops[:-1])
    starts, stops = np.delete(starts, joined + 1), np.delete(stops, joined)
    counts = np.diff(np.stack([starts, stops], axis=1).ravel(), prepend=0, append=height * width)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    full = [int(height), int(width)]
    return {"size": full, "counts": _coder.rle_to_string({"size": full, "counts": counts.tolist()})}


def decode(encoded: Mapping) -> np.ndarray:
    """Return the bool bitmap `h w` of an encoding that a file holds, whoever wrote it.

    Raises:
      ValueError: the counts are corrupt or do not fill the size.
    """
    counts, size = encoded["counts"], encoded["size"]
    if isinstance(counts, str | bytes):
        check_total(totals([counts]).item(), size)
        return _coder.decode(dict(encoded)).view(bool)
    if not all(isinstance(run, int) and run >= 0 for run in counts):
        raise ValueError(f"counts {reprlib.repr(counts)} of segmentation; expected whole numbers >= 0")
    check_total(sum(counts), size)
    height, width = size
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def decode_region(encoded: dict) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the part of an image that a mask fills: what `encode` makes the encoding of.

    Args:
      encoded: compressed, and sound; see `areas`.

    Returns:
      The bitmap of its tight box, bool `rows columns` with the columns contiguous, and the row and the column of the
      box' first pixel in the image.
    """
    left, top, columns, rows = map(int, tight_box(encoded))
    return _coder.decode(encoded).view(bool)[top : top + rows, left : left + columns], (top, left)


def draw(polygons: Sequence[Sequence[float]], size: Sequence[int]) -> dict:
    """Return the compressed encoding of the union of polygons, drawn as pycocotools draws them.

    Args:
      polygons: one or more flat lists x1, y1, x2, y2, ... of 3 points or more, in pixels.
      size: height and width of the image.
    """
    return _coder.merge(_coder.frPyObjects(polygons, *size))


def draw_bitmap(polygons: Sequence[Sequence[float]], size: Sequence[int]) -> np.ndarray:
    """Return the bool bitmap `h w` of the union of polygons; see `draw`."""
    # Nothing to check in what was drawn here.
    return _coder.decode(draw(polygons, size)).view(bool)


def of_segmentation(segmentation: Any, size: Sequence[int]) -> dict | None:
    """Return the compressed encoding of an annotation's mask; None where there is none.

    Args:
      segmentation: polygons, or run lengths, compressed or not; see `evaluation.checks.check_ground_truth`.
      size: height and width of the image.

    Raises:
      ValueError: run lengths are corrupt.
    """
    height, width = size
    try:
        if isinstance(segmentation, Mapping):
            counts = segmentation.get("counts")
            if isinstance(counts, list) and counts:
                return _coder.frPyObjects({"size": [height, width], "counts": counts}, height, width)
            return {"size": [height, width], "counts": counts} if counts else None
        # pycocotools would read "polygons" of 2 points as boxes, and fail on empty ones.
        polygons = [list(map(float, polygon)) for polygon in segmentation or () if len(polygon) >= 6]
        return draw(polygons, size) if polygons else None
    except (TypeError, OverflowError) as error:
        raise ValueError(f"segmentation: {error}") from error


def areas(masks: Sequence[dict], where: str = "results") -> list[int]:
    """Return the number of pixels of each of some compressed encodings.

    Args:
      masks: the encodings.
      where: what the list is called in an error.

    Raises:
      ValueError: runs are corrupt; it gives the place in the list, and what is wrong with it.
    """
    try:
        return _coder.area(list(masks)).tolist() if masks else []
    except (ValueError, TypeError, OverflowError):
        for index, mask in enumerate(masks):
            try:
                _coder.area(mask)
            except (ValueError, TypeError, OverflowError) as error:
                raise ValueError(f"{where}[{index}]: segmentation: {error}") from None
        raise


def ious(detected: Sequence[dict], objects: Sequence[dict], is_crowd: Sequence[int]) -> np.ndarray:
    """Return float64 `d g`: the IoU of `d` and `g` compressed encodings of one image.

    Args:
      detected: `d` masks.
      objects: `g` masks.
      is_crowd: `g`, 1 for a region of which each detection counts the part that lies in it.
    """
    return _coder.iou(list(detected), list(objects), list(is_crowd))


def tight_box(mask: dict) -> np.ndarray:
    """Return the box x, y, width, height of a compressed encoding, float64 `4`; zeros for an empty one."""
    return _coder.toBbox(mask)


def tight_boxes(masks: Sequence[dict]) -> np.ndarray:
    """Return the boxes x, y, width, height of compressed encodings, float64 `n 4`; zeros for an empty one."""
    return np.array(_coder.toBbox(list(masks)), np.float64).reshape(-1, 4)


def check_totals(entries: Sequence[Any], where: str = "results") -> None:
    """Check that the compressed masks of results or annotations fill exactly the size that they give.

    Longer ones are found by every reader; shorter ones, of a smaller image for instance, only here.

    Args:
      entries: what has no compressed mask is passed over.
      where: they come from, for the error.

    Raises:
      ValueError: at the first mask that does not.
    """
    masks = [
        (index, entry["segmentation"])
        for index, entry in enumerate(entries)
        if isinstance(entry, Mapping) and _is_compressed(entry.get("segmentation"))
    ]
    # Few at a time: their numbers stay in the processor's cache.
    for begin in range(0, len(masks), 500):
        part = masks[begin : begin + 500]
        sums = totals([mask["counts"] for _, mask in part]).tolist()
        for (index, mask), total in zip(part, sums, strict=True):
            try:
                check_total(total, mask["size"])
            except ValueError as error:
                raise ValueError(f"{where}[{index}]: {error}") from None


def totals(counts: Sequence[str | bytes]) -> np.ndarray:
    """Return int64 `n`: the pixels that the runs of compressed counts add up to; -1 for what is no counts.

    The format is that of `rleToString` in the COCO API. A number has 5 bits in each character, the least first; 0x20
    says that more follow, 0x10 of the last is the sign. From the fourth on, numbers are differences to the one two
    places before: so a number counts once for each later run of its colour.
    """
    texts = [text.encode("utf-8", "replace") if isinstance(text, str) else text for text in counts]
    totals = np.full(len(texts), -1, np.int64)
    # The last character must end a number.
    kept = [index for index, text in enumerate(texts) if text and not (text[-1] - 48) & 0x20]
    if not kept:
        return totals
    digits = np.frombuffer(b"".join(texts[index] for index in kept), np.uint8) - np.uint8(48)
    lasts = np.flatnonzero((digits & 0x20) == 0)
    firsts = np.concatenate([[0], lasts[:-1] + 1])
    lengths = lasts - firsts + 1
    shifts = 5 * np.minimum(np.arange(len(digits)) - np.repeat(firsts, lengths), 11)
    values = np.add.reduceat((digits & 0x1F).astype(np.int64) << shifts, firsts)
    values -= ((digits[lasts] & 0x10) > 0).astype(np.int64) << (5 * np.minimum(lengths, 11))

    text_ends = np.cumsum([len(texts[index]) for index in kept])
    text_begins = np.concatenate([[0], text_ends[:-1]])
    ends = np.searchsorted(lasts, text_ends)
    begins = np.concatenate([[0], ends[:-1]])
    nums = ends - begins
    places = np.arange(len(values)) - np.repeat(begins, nums)
    times = np.where(places == 0, 1, (np.repeat(nums, nums) - 1 - places) // 2 + 1)
    sums = np.add.reduceat(values * times, begins)
    # No number is longer than the 7 characters of 32 bits and a sign, and none has other characters.
    wrong = np.maximum.reduceat(np.maximum(np.repeat(lengths, lengths), np.where(digits >= 64, 99, 0)), text_begins) > 7
    totals[kept] = np.where(wrong, -1, sums)
    return totals


def check_total(total: int, size: Sequence[int]) -> None:
    """Raise a ValueError if runs of `total` pixels do not fill a size."""
    height, width = size
    if total != height * width:
        raise ValueError(
            f"the counts of segmentation add up to {reprlib.repr(total)} pixels or are corrupt; expected "
            f"{height} x {width} = {height * width}"
        )


def _is_compressed(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("counts"), str | bytes)
        and isinstance(value.get("size"), list | tuple)
        and len(value["size"]) == 2
        and is_size(value["size"])
    )


def is_size(size: Sequence[Any]) -> bool:
    """Return whether sides are whole numbers of pixels, few enough for run lengths."""
    return all(isinstance(side, int) and 0 < side <= _MOST_PIXELS for side in size) and (
        size[0] * size[1] <= _MOST_PIXELS
    )
