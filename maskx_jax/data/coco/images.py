"""Reads image files once and for all: their bytes as they are, or an equivalent that every decoder reads alike."""

import contextlib
import errno
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from maskx_jax.data.records import BrokenRecordError, decode_image

# An image takes three bytes a pixel in memory, and here as much again for a while.
MAX_PIXELS = 2**29
# A record holds the file, and protocol buffers end at 2 GiB.
MAX_FILE_BYTES = 2**31 - 2**20

T = TypeVar("T")

_EXIF_ORIENTATION = 0x0112
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


class UnreadableImageError(ValueError):
    """An image file is missing, empty, corrupt, too large or of another size than the annotations say.

    Attributes:
      reason: how it is counted where it is skipped, as named in `report.REASONS`.
    """

    reason = "image_skipped"


class ImageSizeError(UnreadableImageError):
    """An image is of another size than the annotations say."""

    reason = "image_other_size"


def read_image(path: Path, size: tuple[int, int] | None) -> tuple[bytes, tuple[int, int], list[str]]:
    """Read an image file, decode it by Pillow and as training does (OpenCV), and return what to store.

    A plain file (JPEG or PNG, 8-bit RGB or grayscale, no EXIF orientation) is stored as it is. Any other is stored as
    an 8-bit RGB PNG: alpha is left out, of 16 bits the high ones are kept, of several frames the first. EXIF
    orientation is applied where `size` is that of the turned image, ignored where it is that of the stored pixels.

    Args:
      path: the file.
      size: (height, width) that the annotations are made for, or None if unknown.

    Returns:
      data: an encoded image.
      size: (height, width) of its pixels.
      reasons: what was done, as named in `report.REASONS`.

    Raises:
      UnreadableImageError: the file is missing, no regular file, empty, corrupt or too large, or its image is.
      ImageSizeError: the image is of another size; an `UnreadableImageError` too.
    """
    data, converted, stored, reasons = _read(path, size)
    if converted is not None:
        buffer = io.BytesIO()
        # From the bare pixels: an image that Pillow opened would take EXIF, gamma and colour profile along.
        Image.fromarray(np.asarray(converted)).save(buffer, "PNG")
        data = buffer.getvalue()
    _as_training_reads_it(path, data, stored)
    return data, stored, reasons


def read_pixels(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return the pixels of an image file, uint8 `h w 3` RGB: those that `read_image` would store.

    Arguments and errors are those of `read_image`.
    """
    data, converted, stored, _ = _read(path, size)
    return _as_training_reads_it(path, data, stored) if converted is None else np.array(converted)


def pixels_of(image: Image.Image) -> np.ndarray:
    """Return the pixels of an image that Pillow holds, uint8 `h w 3` RGB, turned as its EXIF orientation says.

    Raises:
      ValueError: its pixels have more than 16 bits.
    """
    return np.array(_to_rgb(ImageOps.exif_transpose(image)))


def _read(path: Path, size: tuple[int, int] | None) -> tuple[bytes, Image.Image | None, tuple[int, int], list[str]]:
    """Return the bytes of a file, its image in 8-bit RGB unless the file is plain, and as `read_image` the others."""
    check_file(path)
    data = _reading(path, path.read_bytes)
    with _any_number_of_pixels():
        image = _open(path, io.BytesIO(data))
        orientation = _decoded(path, "read as an image", lambda: image.getexif().get(_EXIF_ORIENTATION, 1))

    # Before the pixels are decoded, lest a wrong header ask for all the memory.
    stored = (image.height, image.width)
    turned = stored[::-1] if orientation in (5, 6, 7, 8) else stored
    reasons = []
    turn = orientation in range(2, 9)
    if turn and size in (None, turned):
        reasons.append("image_turn_ambiguous" if turned == stored else "image_turned")
    elif turn and size == stored:
        reasons.append("image_turn_ignored")
        turn = False
    elif size is not None and size != stored:
        raise _other_size(path, stored, turned, size)

    def convert() -> Image.Image | None:
        image.load()
        if _is_plain(image, data) and not reasons:
            return None
        return _to_rgb(ImageOps.exif_transpose(image) if turn else image)

    converted = _decoded(path, "decoded", convert)
    if converted is None:
        return data, None, stored, []
    if not _is_plain(image, data):
        reasons.append("image_converted")
    return data, converted, (converted.height, converted.width), reasons


def _as_training_reads_it(path: Path, data: bytes, size: tuple[int, int]) -> np.ndarray:
    """Decode by OpenCV, as training does. Pillow is stricter with what is cut off or corrupt, and comes first."""
    try:
        pixels = decode_image(data, size)
    except BrokenRecordError as error:
        raise UnreadableImageError(
            f"{path}: Pillow can decode it, but OpenCV cannot, which training uses: {error}"
        ) from error
    if pixels.shape != (*size, 3):
        raise UnreadableImageError(f"{path}: OpenCV decodes it to shape {pixels.shape}; Pillow to {(*size, 3)}")
    return pixels


def check_header(path: Path, size: tuple[int, int] | None) -> None:
    """Check what the header of an image file says, without its pixels; arguments and errors are `read_image`'s."""
    check_file(path)
    with _reading(path, lambda: path.open("rb")) as file, _any_number_of_pixels():
        image = _open(path, file)
        stored = (image.height, image.width)
        # Where EXIF may turn the image, and how, is left to `read_image`: of a PNG it takes the pixels to know.
        if size is not None and size not in (stored, stored[::-1]):
            raise _other_size(path, stored, stored, size)


def check_file(path: Path) -> None:
    """Check that a path is a regular file that can be read, neither empty nor too large, without reading it.

    Raises:
      UnreadableImageError: it is not; the message says what it is.
    """
    status = _reading(path, path.stat)
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImageError(f"{path}: expected a file; it is {_KINDS.get(stat.S_IFMT(status.st_mode), 'none')}")
    if status.st_size == 0:
        raise UnreadableImageError(f"{path}: the file is empty (0 bytes)")
    if status.st_size > MAX_FILE_BYTES:
        raise UnreadableImageError(
            f"{path}: the file has {status.st_size / 2**30:.1f} GiB; expected at most {MAX_FILE_BYTES / 2**30:.0f} GiB"
        )


def missing_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return for each name that is no regular file below `folder` a message that says what it is instead.

    Every folder is listed once, however many names are missing. A name that differs from a file's in upper and lower
    case only is pointed out.
    """
    listings: dict[str, dict[str, bool]] = {}
    missing = {}
    for name in names:
        parent, base = os.path.split(os.path.join(folder, name))
        if parent not in listings:
            listings[parent] = _list(parent)
        if listings[parent].get(base):
            continue
        path = Path(parent, base)
        try:
            # A file system may know a file under other names than it lists.
            check_file(path)
        except UnreadableImageError as error:
            missing[name] = str(error)
    return _with_other_case(folder, missing, listings)


def _with_other_case(folder: Path, missing: dict[str, str], listings: dict[str, dict[str, bool]]) -> dict[str, str]:
    files: dict[str, dict[str, str]] = {}
    for name, message in missing.items():
        parent, base = os.path.split(os.path.join(folder, name))
        if parent not in files:
            files[parent] = {entry.lower(): entry for entry, is_file in listings[parent].items() if is_file}
        other = files[parent].get(base.lower())
        if other is not None and base not in listings[parent]:
            missing[name] = f"{message}, but {other!r}: upper and lower case matter"
    return missing


def _list(folder: str) -> dict[str, bool]:
    """Return for each entry of a folder whether it is a regular file, or a link to one."""

    def is_file(entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_file()
        except OSError:
            # A link to itself.
            return False

    try:
        with os.scandir(folder) as entries:
            return {entry.name: is_file(entry) for entry in entries}
    except OSError:
        # What is missing in it is found one by one.
        return {}


def _reading(path: Path, read: Callable[[], T]) -> T:
    """Return what `read` does; what cannot be opened is named."""
    try:
        return read()
    except FileNotFoundError as error:
        link = " but a link that leads nowhere" if path.is_symlink() else ""
        raise UnreadableImageError(f"{path}: there is no such file{link}") from error
    except (PermissionError, NotADirectoryError) as error:
        raise UnreadableImageError(f"{path}: {error.strerror}") from error
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG):
            # Of the moment, such as a network file system that does not answer: nothing is wrong with the file.
            raise
        raise UnreadableImageError(f"{path}: {error.strerror}") from error


def _open(path: Path, file: IO[bytes]) -> Image.Image:
    image = _decoded(path, "read as an image", lambda: Image.open(file))
    # Before the pixels are decoded, lest a wrong header ask for all the memory.
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImageError(
            f"{path}: the image has height {image.height} and width {image.width}, "
            f"{image.width * image.height / 1e6:,.0f} megapixels; expected at most {MAX_PIXELS / 1e6:.0f}"
        )
    return image


def _decoded(path: Path, what: str, decode: Callable[[], T]) -> T:
    """Return what `decode` does; any error of a decoder names the file."""
    try:
        return decode()
    except MemoryError as error:
        raise MemoryError(f"{path}: the image cannot be {what}") from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"{path}: cannot be {what}: it has no known image format") from error
    # Pillow's decoders raise nearly anything on corrupt data: OSError, SyntaxError, struct.error, IndexError, ...
    except Exception as error:
        raise UnreadableImageError(f"{path}: cannot be {what}: {error}") from error


@contextlib.contextmanager
def _any_number_of_pixels() -> Iterator[None]:
    """Turn Pillow's own limit off, which calls images above 179 megapixels an attack; `MAX_PIXELS` is the limit."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _other_size(path: Path, stored: tuple[int, int], turned: tuple[int, int], size: tuple[int, int]) -> ImageSizeError:
    return ImageSizeError(
        f"{path}: the image has height {stored[0]} and width {stored[1]}"
        + (f" ({turned[0]} and {turned[1]} by its EXIF orientation)" if turned != stored else "")
        + f"; the JSON says height {size[0]} and width {size[1]}"
    )


def _is_plain(image: Image.Image, data: bytes) -> bool:
    if image.format == "JPEG":
        return image.mode in ("RGB", "L")
    # Pillow opens 16-bit RGB as 8-bit RGB, so the header's bit depth and colour type (0 gray, 2 RGB) tell.
    return image.format == "PNG" and data[24] == 8 and data[25] in (0, 2) and "transparency" not in image.info


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError(f"pixel values from {values.min()} to {values.max()}; expected 8 or 16 bits")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels; expected 8 or 16 bits")
    if image.mode in ("P", "PA"):
        # By way of RGBA: a palette may hold transparency.
        image = image.convert("RGBA")
    return image.convert("RGB")
