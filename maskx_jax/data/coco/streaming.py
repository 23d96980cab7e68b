"""Reads large JSON files without holding all of them: COCO's instances, and lists.

Of the annotations of an instances file it is kept where each stands in the file, some 50 bytes. Only of files in which
nothing is to be refused or dropped: of any other, `read_instances` says what is wrong.
"""

import itertools
import json
import os
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
from tqdm import tqdm

from maskx_jax import files
from maskx_jax.coco.categories import Categories
from maskx_jax.coco.garbage import no_garbage_collection
from maskx_jax.data.coco.annotations import (
    SECTIONS,
    Instances,
    are_corners,
    are_fractions,
    are_integers,
    boxes_of,
    category_faults,
    fill_flags,
    flag_faults,
    id_faults,
    image_faults,
    read_instances,
    reference_faults,
)
from maskx_jax.data.coco.report import Report

_CHUNK_BYTES = 2**22
_AT_ONCE = 4096
_SPACE = re.compile(r"[ \t\n\r]*")


def open_instances(path: Path, report: Report, drop_unknown: bool = False, allow_outside: bool = False) -> Instances:
    """Return what `read_instances` returns, but with annotations that are read from the file as they are asked for.

    Arguments and errors are those of `read_instances`. The file must stay as it is, see `Annotations.check`.
    """
    found = Report(report.split)
    # What `read_json` opens is its own to refuse: pipes, for example, can be read only once.
    if path.is_file():
        try:
            with path.open("rb") as file, no_garbage_collection():
                instances = _read(path, file, found, allow_outside)
        # Whatever is wrong, the slow way names it.
        except (_UnsoundError, ValueError, OverflowError, RecursionError):
            pass
        else:
            report.merge(found)
            return instances
    return read_instances(path, report, drop_unknown, allow_outside)


def read_list(path: Path) -> Iterator[Any]:
    """Yield the entries of a JSON file that holds a list, one after the other.

    Raises:
      OSError: it cannot be read.
      ValueError: it is not JSON, or holds something else.
    """
    try:
        with path.open("rb") as file, _reading(path) as progress:
            text = _Text(file, progress)
            yield from (entry for entry, _, _ in text.entries())
            text.end()
    except (_UnsoundError, ValueError, RecursionError):
        content = files.read_json(path)
        found = "a list that other things follow" if isinstance(content, list) else f"a {type(content).__name__}"
        raise ValueError(f"{path}: got {found} at the top; expected a list") from None


class Annotations(Mapping[int, Sequence[dict]]):
    """The annotations of a file by image id; see `Instances.annotations`.

    Args:
      path: the JSON file.
      image_ids: of the images, in order.
      owners: int64 `n`, the image of each annotation, all among `image_ids`.
      spans: int64 `n 2`, where each begins and ends in the file, in bytes.

    Attributes:
      stamp: the size of the file in bytes, and when it was changed (ns).
    """

    def __init__(self, path: Path, image_ids: Sequence[int], owners: np.ndarray, spans: np.ndarray) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self.stamp = self._now()
        self._rows = {image_id: row for row, image_id in enumerate(image_ids)}
        ids = np.array(image_ids, np.int64)
        by_id = np.argsort(ids)
        rows = by_id[np.searchsorted(ids, owners, sorter=by_id)]
        self._spans = spans[np.argsort(rows, kind="stable")]
        self._ends = np.cumsum(np.bincount(rows, minlength=len(ids)))

    def __getitem__(self, image_id: int) -> Sequence[dict]:
        row = self._rows[image_id]
        begin = int(self._ends[row - 1]) if row else 0
        return _Entries(self, range(begin, int(self._ends[row])))

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def texts(self, places: range) -> list[bytes]:
        """Return the JSON of some annotations, by their places in the order of images."""
        spans = self._spans[places.start : places.stop].tolist()
        return [os.pread(self._file, end - begin, begin) for begin, end in spans]

    def check(self) -> None:
        """Check that the file is the one that was read.

        Raises:
          ValueError: it has changed since.
        """
        if self._now() != self.stamp:
            raise ValueError(f"{self._path} has changed while it was read; expected it to stay as it was")

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._file)
        return status.st_size, status.st_mtime_ns


class _Entries(Sequence[dict]):
    """The annotations of an image, read and decoded as they are asked for; pickled, their text is."""

    def __init__(self, annotations: Annotations, places: range) -> None:
        self._annotations, self._places = annotations, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> dict: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict]: ...
    def __getitem__(self, index: int | slice) -> dict | list[dict]:
        return list(self)[index]

    def __iter__(self) -> Iterator[dict]:
        return iter(_decode(self._annotations.texts(self._places)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __reduce__(self) -> tuple:
        return _decode, (self._annotations.texts(self._places),)


def _decode(texts: Sequence[bytes]) -> list[dict]:
    entries = [json.loads(text.decode("utf-8", "surrogatepass")) for text in texts]
    for entry in entries:
        fill_flags(entry)
    return entries


class _UnsoundError(Exception):
    """The file is not one to read this way."""


def _refuse(*faults: Any) -> None:
    """Leave where there is any fault."""
    if any(True for _ in itertools.chain(*faults)):
        raise _UnsoundError


def _reading(path: Path) -> tqdm:
    return tqdm(total=path.stat().st_size, desc=f"reading {path.name}", unit="B", unit_scale=True, disable=None)


def _read(path: Path, file: IO[bytes], report: Report, allow_outside: bool) -> Instances:
    with _reading(path) as progress:
        text = _Text(file, progress)
        columns = _Columns(report)
        content: dict[str, Any] = {}
        for key in text.fields():
            if key in content:
                raise _UnsoundError
            if key == "annotations":
                content[key] = []
                for entry, begin, end in text.entries():
                    columns.add(entry, begin, end)
            elif key == "images":
                content[key] = [entry for entry, _, _ in text.entries()]
            else:
                content[key] = text.value()[0]
    columns.flush()
    if any(not isinstance(content.get(key), list) for key in SECTIONS) or not content["images"]:
        raise _UnsoundError
    images, entries = content["images"], content["categories"]
    if not all(isinstance(entry, dict) for entry in (*images, *entries)):
        raise _UnsoundError
    _refuse(category_faults(entries), id_faults(images, "images"))
    _refuse(*(image_faults(image, allow_outside) for image in images))
    categories = Categories.from_coco(entries)
    header: dict[str, Any] = {key: content[key] for key in ("info", "licenses", "categories") if key in content}
    return Instances(
        categories, images, columns.check(path, images, categories), header, frozenset(columns.with_keypoints)
    )


class _Columns:
    """What is kept of annotations."""

    def __init__(self, report: Report) -> None:
        self.with_keypoints: set[int] = set()
        self._report = report
        self._waiting: list[tuple[Any, int, int]] = []
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._categories: set[int] = set()

    def add(self, entry: Any, begin: int, end: int) -> None:
        self._waiting.append((entry, begin, end))
        if len(self._waiting) == _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Check the annotations that wait, and keep where they stand."""
        entries = [entry for entry, _, _ in self._waiting]
        if not all(isinstance(entry, dict) for entry in entries):
            raise _UnsoundError
        if not are_integers([entry.get("id") for entry in entries]):
            raise _UnsoundError
        _refuse(reference_faults(entries, "image_id"), reference_faults(entries, "category_id"))
        _refuse(*map(flag_faults, entries))
        for entry in entries:
            for reason in fill_flags(entry):
                self._report.add(reason, entry["id"])
            self._categories.add(entry["category_id"])
            if entry.get("keypoints"):
                self.with_keypoints.add(entry["category_id"])
        ids = np.array([[entry["id"], entry["image_id"]] for entry in entries], np.int64).reshape(-1, 2)
        spans = np.array([span for _, *span in self._waiting], np.int64).reshape(-1, 2)
        self._parts.append((ids, spans, boxes_of(entries)))
        self._waiting = []

    def check(self, path: Path, images: Sequence[dict], categories: Categories) -> Annotations:
        """Return the annotations, if their ids are unique, those they refer to exist, and boxes are COCO's."""
        ids, spans, boxes = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        self._parts = []
        image_ids = np.array([image["id"] for image in images], np.int64)
        if len(np.unique(ids[:, 0])) != len(ids) or not np.isin(ids[:, 1], image_ids).all():
            raise _UnsoundError
        if not self._categories <= set(categories.ids):
            raise _UnsoundError
        by_id = np.argsort(image_ids)
        sizes = np.array([(image.get("width") or 0, image.get("height") or 0) for image in images], np.float64)
        sizes = sizes[by_id[np.searchsorted(image_ids, ids[:, 1], sorter=by_id)]]
        known = ~np.isnan(boxes[:, 0]) & (sizes[:, 0] > 0)
        for are_wrong in (are_fractions, are_corners):
            if 2 * int(are_wrong(boxes[known], sizes[known]).sum()) > int(known.sum()):
                raise _UnsoundError
        return Annotations(path, image_ids.tolist(), ids[:, 1], spans)


class _Text:
    """The text of a JSON file, a part of it at a time, with places in bytes.

    A byte is taken for a character: structure and numbers are the same. What is not ASCII is decoded once more.
    """

    def __init__(self, file: IO[bytes], progress: tqdm) -> None:
        self._file, self._progress = file, progress
        self._decode = json.JSONDecoder().raw_decode
        self._text, self._at, self._before = "", 0, 0
        self._more()
        if json.detect_encoding(self._text[:4].encode("latin-1")) != "utf-8":
            raise _UnsoundError

    def fields(self) -> Iterator[str]:
        """Yield the keys of the object that the file is; each value is to be read before the next key."""
        self._expect("{")
        for _ in self._until("}"):
            key = self.value()[0]
            if not isinstance(key, str):
                raise _UnsoundError
            self._expect(":")
            yield key
        self.end()

    def end(self) -> None:
        """Check that nothing follows."""
        if self._next():
            raise _UnsoundError

    def entries(self) -> Iterator[tuple[Any, int, int]]:
        """Yield the entries of a list, and where each begins and ends."""
        self._expect("[")
        for _ in self._until("]"):
            yield self.value()

    def value(self) -> tuple[Any, int, int]:
        """Return the value that follows, and where it begins and ends."""
        self._next()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except ValueError:
                if not self._more():
                    raise
                continue
            # A number may go on.
            if end < len(self._text) or not self._more():
                break
        text, begin = self._text[self._at : end], self._before + self._at
        self._at = end
        if not text.isascii():
            value = json.loads(text.encode("latin-1").decode())
        return value, begin, begin + len(text)

    def _until(self, end: str) -> Iterator[None]:
        if self._next() != end:
            yield
            while self._next() == ",":
                self._at += 1
                yield
        self._expect(end)

    def _expect(self, character: str) -> None:
        if self._next() != character:
            raise _UnsoundError
        self._at += 1

    def _next(self) -> str:
        """Return the next character that is no white space, or nothing at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        rest = self._text[self._at :]
        # Twice as much each time for a value that does not end.
        read = self._file.read(max(_CHUNK_BYTES, len(rest)))
        self._progress.update(len(read))
        self._before += self._at
        self._text, self._at = rest + read.decode("latin-1"), 0
        return bool(read)
