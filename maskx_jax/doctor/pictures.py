"""Reads the pictures of a split as `prepare` does: what is wrong with them, their sizes, and what they show."""

import concurrent.futures
import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from maskx_jax.data.coco.annotations import image_faults, is_box
from maskx_jax.data.coco.images import ImageSizeError, UnreadableImageError, missing_files, read_image
from maskx_jax.doctor.structure import Split

_NUM_THREADS = 4
# Of what is compared to find a picture again that was resized or encoded again: so many gray cells a side.
_CELLS = 16
# Correlation from which two such pictures are the same. Pictures of one scene in a row reach 0.98.
_ALIKE = 0.995
# Of 255: below this there is nothing to compare.
_FLATTEST = 3.0
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


@dataclasses.dataclass(frozen=True)
class Picture:
    """What a file holds, as far as it was looked at.

    Attributes:
      size: (height, width) that annotations of it have; None where it cannot be read.
      reasons: as named in `causes.MEANINGS`.
      message: why it cannot be used as it is, or "".
      digest: of the file's bytes.
      cells: float32 `c`, its gray cells of mean 0 and length 1; zeros where it is flat.
    """

    size: tuple[int, int] | None
    reasons: Sequence[str] = ()
    message: str = ""
    digest: bytes = b""
    cells: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(_CELLS**2, np.float32))


def examine(split: Split) -> dict[int, Picture]:
    """Read all pictures of a split and count what is found; sizes are mended where the picture says them.

    Returns:
      The pictures that can be read, by image id.

    Raises:
      FileNotFoundError: there is no such folder.
    """
    folder = split.folder
    if folder is None:
        return {}
    if not folder.is_dir():
        raise FileNotFoundError(f"split {split.name!r}: there is no image folder {folder}")
    # What leads out of the folder is not opened.
    images = [image for image in split.images if not list(image_faults(image))]
    pictures = _read_all(split.name, folder, images)
    reach = _reach(split)
    dropped = set()
    for image, picture in zip(images, pictures, strict=True):
        message = picture.message.removeprefix(f"{folder}{os.sep}") + _mend_size(split, image, picture, reach)
        for reason in picture.reasons:
            split.findings.add(reason, image["id"], message)
        if picture.size is None:
            dropped.add(image["id"])
            split.drop("images", image, picture.reasons)
    if dropped:
        _drop_images(split, dropped)
    _count_unlisted(split, folder)
    return {image["id"]: picture for image, picture in zip(images, pictures, strict=True) if picture.size is not None}


def _read_all(name: str, folder: Path, images: Sequence[dict]) -> list[Picture]:
    missing = missing_files(folder, (image["file_name"] for image in images))
    with (
        concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool,
        tqdm(total=len(images), desc=f"reading pictures of {name}", unit="image", disable=None) as progress,
    ):

        def read(image: dict) -> Picture:
            message = missing.get(image["file_name"])
            size = (image["height"], image["width"]) if image.get("height") else None
            picture = Picture(None, ["image_missing"], message) if message else _read(folder / image["file_name"], size)
            progress.update()
            return picture

        return list(pool.map(read, images))


def _read(path: Path, size: tuple[int, int] | None) -> Picture:
    reasons: list[str] = []
    message = ""
    try:
        try:
            data, actual, reasons = read_image(path, size)
        except ImageSizeError as error:
            data, actual, reasons = read_image(path, None)
            message, reasons = str(error), [error.reason]
    except UnreadableImageError as error:
        return Picture(None, [error.reason], str(error))
    if size is None:
        reasons = [*reasons, "image_size_filled"]
    return Picture(actual, reasons, message, hashlib.blake2b(data, digest_size=16).digest(), _cells(data, actual))


def _cells(data: bytes, size: tuple[int, int]) -> np.ndarray:
    # A JPEG is decoded to an eighth in an eighth of the time.
    flags = cv2.IMREAD_REDUCED_GRAYSCALE_8 if min(size) >= 16 * _CELLS else cv2.IMREAD_GRAYSCALE
    gray = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if gray is None:
        # `read_image` decoded it.
        raise MemoryError(f"no memory for an image of {size[0]} x {size[1]} pixels")
    cells = cv2.resize(gray, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    cells -= cells.mean()
    length = float(np.linalg.norm(cells))
    return cells / length if length > _FLATTEST * _CELLS else np.zeros_like(cells)


def _reach(split: Split) -> dict[int, tuple[float, float]]:
    """Return for each image with boxes the largest y and x that one has."""
    reach: dict[int, tuple[float, float]] = {}
    for annotation in split.annotations:
        if is_box(box := annotation.get("bbox")):
            y, x = reach.get(annotation["image_id"], (0.0, 0.0))
            reach[annotation["image_id"]] = (max(y, box[1] + box[3]), max(x, box[0] + box[2]))
    return reach


def _mend_size(split: Split, image: dict, picture: Picture, reach: Mapping[int, tuple[float, float]]) -> str:
    """Take the size of a picture where that of the JSON is missing or must be wrong; say what it looks like."""
    if picture.size is None:
        return ""
    height, width = picture.size
    if "image_other_size" not in picture.reasons:
        if not image.get("height"):
            split.change("images", image, "image_size_filled", height=height, width=width)
        return ""
    said = (image["height"], image["width"])
    scales = (height / said[0], width / said[1])
    resized = abs(scales[0] / scales[1] - 1) < 0.02
    y, x = reach.get(image["id"], (0.0, 0.0))
    # A picture that was resized, or turned, after it was annotated: its annotations are of the size that the JSON says.
    if not resized and y <= height + 1 and x <= width + 1:
        split.change("images", image, "image_other_size", height=height, width=width)
        return "; the boxes fit the picture"
    if resized:
        return f"; it seems to be resized, {scales[0]:.3g} times as large"
    return "; it seems to be turned" if (width, height) == said else ""


def _drop_images(split: Split, dropped: set[int]) -> None:
    for annotation in split.annotations:
        if annotation["image_id"] in dropped:
            split.findings.add("annotation_image_skipped", annotation["id"])
            split.drop("annotations", annotation, "annotation_image_skipped")
    split.images = [image for image in split.images if image["id"] not in dropped]
    split.annotations = [annotation for annotation in split.annotations if annotation["image_id"] not in dropped]


def _count_unlisted(split: Split, folder: Path) -> None:
    named = {os.path.normpath(image["file_name"]) for image in split.images}
    for parent, _, names in os.walk(folder):
        below = os.path.relpath(parent, folder)
        for name in sorted(names):
            path = os.path.normpath(os.path.join(below, name))
            if os.path.splitext(name)[1].lower() in _SUFFIXES and path not in named:
                split.findings.add("file_unlisted", path)


def compare(splits: Sequence[Split], pictures: Mapping[str, Mapping[int, Picture]]) -> None:
    """Find pictures that come twice in a split, or in a split and a later one."""
    seen: dict[bytes, tuple[str, int]] = {}
    for number, split in enumerate(splits):
        own = pictures[split.name]
        found = set()
        for image_id, picture in own.items():
            name, first = seen.setdefault(picture.digest, (split.name, image_id))
            if (name, first) != (split.name, image_id):
                found.add(image_id)
                cause = "image_twice" if name == split.name else "image_in_splits"
                split.findings.add(cause, image_id, f"image {first} of {name}")
        rest = {image_id: picture for image_id, picture in own.items() if image_id not in found}
        for earlier in splits[:number]:
            for image_id, other in _alike(rest, pictures[earlier.name]):
                split.findings.add("image_alike_in_splits", image_id, f"image {other} of {earlier.name}")


def _alike(pictures: Mapping[int, Picture], others: Mapping[int, Picture]) -> list[tuple[int, int]]:
    """Return pairs of ids of pictures that look the same."""
    if not pictures or not others:
        return []
    ids, other_ids = list(pictures), list(others)
    cells = np.stack([picture.cells for picture in pictures.values()])
    other_cells = np.stack([picture.cells for picture in others.values()])
    pairs = []
    for begin in range(0, len(ids), 1000):
        likeness = cells[begin : begin + 1000] @ other_cells.T
        nearest = likeness.argmax(axis=1)
        for row in np.flatnonzero(likeness.max(axis=1) > _ALIKE).tolist():
            pairs.append((ids[begin + row], other_ids[nearest[row]]))
    return pairs
