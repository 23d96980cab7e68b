"""Pictures from what a user names: files, folders, patterns, lists, videos, and what is in memory already."""

import collections
import concurrent.futures
import dataclasses
import glob
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import cv2
import numpy as np
from absl import logging
from PIL import Image

from maskx_jax.data.coco.images import UnreadableImageError, check_file, pixels_of, read_pixels
from maskx_jax.errors import some

T = TypeVar("T")

IMAGE_SUFFIXES = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".png", ".ppm", ".tif", ".tiff", ".webp"])
VIDEO_SUFFIXES = frozenset([".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"])

# What a picture may be given as: a path, a pattern or a folder, an image of Pillow, or uint8 `h w 3` RGB.
Given = str | os.PathLike | Image.Image | np.ndarray


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture to predict on.

    Attributes:
      name: what it is called in results: its path below the folder that was given, or its file name.
      read: returns its pixels, uint8 `h w 3` RGB.
      video: the path of the video that it is a frame of, or None.
    """

    name: str
    read: Callable[[], np.ndarray]
    video: pathlib.Path | None = None


def pictures_of(given: Given | Iterable[Given]) -> Iterator[Picture]:
    """Yield the pictures that are named, in order; those of a folder by name, with all its folders.

    Args:
      given: a path of an image or a video, a folder, a pattern (`**` for any folders), an image of Pillow, an RGB
        array, or any number of these.

    Raises:
      ValueError: a path, a folder or a pattern names no picture, or an array is no image.
    """
    if isinstance(given, str | os.PathLike):
        yield from _named(os.fspath(given))
    elif isinstance(given, np.ndarray):
        yield _array(given, "array")
    elif isinstance(given, Image.Image):
        yield _array(pixels_of(given), os.path.basename(getattr(given, "filename", "")) or "image")
    else:
        for one in given:
            yield from pictures_of(one)


def is_one(given: Given | Iterable[Given]) -> bool:
    """Return whether what is given names one picture, by its kind: no list, folder, pattern or video."""
    if isinstance(given, str | os.PathLike):
        path = os.fspath(given)
        several = os.path.isdir(path) or _is_pattern(path) or pathlib.Path(path).suffix.lower() in VIDEO_SUFFIXES
        return not several
    return isinstance(given, np.ndarray | Image.Image)


def read_ahead(
    pictures: Iterable[Picture], prepare: Callable[[np.ndarray], T], num_workers: int
) -> Iterator[tuple[Picture, tuple[np.ndarray, T] | ValueError]]:
    """Yield each picture in order with its pixels and what is prepared of them, or with why it cannot be read.

    Args:
      pictures: to read.
      prepare: is called with the pixels of each.
      num_workers: pictures read at the same time; as many wait to be yielded.
    """

    def work(picture: Picture) -> tuple[np.ndarray, T] | ValueError:
        try:
            pixels = picture.read()
        except ValueError as error:
            return error
        return pixels, prepare(pixels)

    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        waiting: collections.deque[tuple[Picture, concurrent.futures.Future]] = collections.deque()
        for picture in pictures:
            waiting.append((picture, pool.submit(work, picture)))
            if len(waiting) > num_workers:
                first, result = waiting.popleft()
                yield first, result.result()
        for first, result in waiting:
            yield first, result.result()


def _named(path: str) -> Iterator[Picture]:
    if os.path.isdir(path):
        yield from _in_folder(pathlib.Path(path))
    elif _is_pattern(path):
        found = sorted(name for name in glob.glob(path, recursive=True) if not os.path.isdir(name))
        if not found:
            raise ValueError(f"{path}: no file fits this pattern")
        for name in found:
            yield from _file(pathlib.Path(name), os.path.basename(name))
    else:
        yield from _file(pathlib.Path(path), os.path.basename(path))


def _is_pattern(path: str) -> bool:
    # A file may have brackets in its name.
    return glob.has_magic(path) and not os.path.exists(path)


def _in_folder(folder: pathlib.Path) -> Iterator[Picture]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES]
    if not found:
        others = sorted({path.suffix or path.name for path in files})
        raise ValueError(f"{folder}: holds no pictures and no videos" + (f", but {some(others)}" if others else ""))
    if len(found) < len(files):
        others = sorted({path.suffix or path.name for path in set(files) - set(found)})
        logging.warning("%s: %d files are no pictures (%s)", folder, len(files) - len(found), some(others))
    for path in found:
        yield from _file(path, path.relative_to(folder).as_posix())


def _file(path: pathlib.Path, name: str) -> Iterator[Picture]:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        yield from _frames(path, name)
    else:
        yield Picture(name, lambda: read_pixels(path))


def _frames(path: pathlib.Path, name: str) -> Iterator[Picture]:
    """Yield the frames of a video; one that cannot be read is a picture whose reading says so."""
    try:
        check_file(path)
    except UnreadableImageError as error:
        yield Picture(name, _raising(error))
        return
    capture = cv2.VideoCapture(os.fspath(path))
    try:
        number = 0
        while True:
            there, frame = capture.read()
            if not there:
                break
            yield _array(np.ascontiguousarray(frame[..., ::-1]), f"{name}#{number:06d}", path)
            number += 1
        if number == 0:
            yield Picture(name, _raising(UnreadableImageError(f"{path}: no frame of this video can be decoded")))
    finally:
        capture.release()


def _raising(error: ValueError) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        raise error

    return read


def _array(pixels: np.ndarray, name: str, video: pathlib.Path | None = None) -> Picture:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise ValueError(f"got an array of shape {pixels.shape} and type {pixels.dtype}; expected (h, w, 3) uint8, RGB")
    return Picture(name, lambda: pixels, video)


def frames_per_second(path: pathlib.Path) -> float:
    """Return the rate of a video; 25 where it does not say."""
    capture = cv2.VideoCapture(os.fspath(path))
    try:
        return capture.get(cv2.CAP_PROP_FPS) or 25.0
    finally:
        capture.release()
