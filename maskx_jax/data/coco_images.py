"""Reads image files once and for all: their bytes as they are, or an equivalent that every decoder reads alike."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

_EXIF_ORIENTATION = 0x0112


class UnreadableImageError(ValueError):
    """An image file is missing, empty or corrupt."""


def read_image(path: Path, size: tuple[int, int] | None) -> tuple[bytes, tuple[int, int], list[str]]:
    """Read an image file, decode it to be sure that it can be, and return what to store.

    A plain file (JPEG or PNG, 8-bit RGB or grayscale, no EXIF orientation) is stored as it is. Any other is stored as
    an 8-bit RGB PNG: alpha is left out, of 16 bits the high ones are kept, of several frames the first. EXIF
    orientation is applied where `size` is that of the turned image, ignored where it is that of the stored pixels.

    Args:
      path: the file.
      size: (height, width) that the annotations are made for, or None if unknown.

    Returns:
      data: an encoded image.
      size: (height, width) of its pixels.
      reasons: what was done, as named in `coco_checks.REASONS`.

    Raises:
      UnreadableImageError: the file is missing, empty or corrupt.
      ValueError: the image is of another size.
    """
    if not path.is_file():
        raise UnreadableImageError(missing_file(path))
    data = path.read_bytes()
    if not data:
        raise UnreadableImageError(f"{path}: the file is empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data))
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    # Pillow's decoders raise nearly anything on corrupt data: OSError, SyntaxError, struct.error, IndexError, ...
    except Exception as error:
        raise UnreadableImageError(f"{path}: cannot be read as an image: {error}") from error

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
    elif size not in (None, stored):
        raise ValueError(
            f"{path}: the image has height {stored[0]} and width {stored[1]}"
            + (f" ({turned[0]} and {turned[1]} by its EXIF orientation)" if turned != stored else "")
            + f"; the JSON says height {size[0]} and width {size[1]}"
        )
    try:
        image.load()
        plain = _is_plain(image, data)
        if plain and not reasons:
            return data, stored, []
        converted = _to_rgb(ImageOps.exif_transpose(image) if turn else image)
    except Exception as error:
        raise UnreadableImageError(f"{path}: cannot be decoded: {error}") from error
    if not plain:
        reasons.append("image_converted")
    buffer = io.BytesIO()
    # From the bare pixels: an image that Pillow opened would take EXIF, gamma and colour profile along.
    Image.fromarray(np.asarray(converted)).save(buffer, "PNG")
    return buffer.getvalue(), (converted.height, converted.width), reasons


def missing_file(path: Path) -> str:
    """Say that there is no such file, and whether there is one whose name differs in case only."""
    message = f"{path}: there is no such file"
    same = [other.name for other in path.parent.glob("*") if other.name.lower() == path.name.lower()]
    return message + (f", but {same[0]!r}: upper and lower case matter" if same else "")


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
