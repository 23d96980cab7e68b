import errno
import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from maskx_jax.data.coco.images import (
    ImageSizeError,
    UnreadableImageError,
    check_header,
    missing_files,
    read_image,
    read_pixels,
)
from maskx_jax.data.coco.report import REASONS
from maskx_jax.data.records import Record
from maskx_jax.data.transforms import decode

HEIGHT, WIDTH = SIZE = (24, 36)


def photo(size=SIZE):
    """Smooth, so that JPEG keeps it, and different in each channel and along each axis."""
    y, x = np.mgrid[: size[0], : size[1]] / np.array([size[0], size[1]]).reshape(2, 1, 1)
    return np.round(np.stack([255 * x, 255 * y, 255 - 200 * x * y], axis=-1)).astype(np.uint8)


def decoded(data, size):
    empty = np.zeros(0)
    return decode(Record(data, 1, size, empty, empty, empty, empty, empty, empty))


def store(path, image, kind, **options):
    image.save(path, kind, **options)
    return path


def assert_converted(path, expected, reasons=("image_converted",), tolerance=0, size=None):
    size = size or expected.shape[:2]
    data, actual_size, actual_reasons = read_image(path, size)
    assert tuple(actual_reasons) == tuple(reasons) and set(reasons) <= set(REASONS)
    assert actual_size == expected.shape[:2]
    assert data.startswith(b"\x89PNG") and data[24] == 8 and data[25] == 2
    difference = np.abs(decoded(data, actual_size).astype(int) - expected.astype(int))
    assert difference.max() <= tolerance
    np.testing.assert_array_equal(read_pixels(path, size), decoded(data, actual_size))
    if "image_turn_ignored" not in reasons:
        np.testing.assert_array_equal(read_pixels(path), decoded(data, actual_size))


# Files that are no image.


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"a\.jpg: there is no such file$"):
        read_image(tmp_path / "a.jpg", SIZE)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"b/a\.jpg: there is no such file$"):
        read_image(tmp_path / "b/a.jpg", SIZE)


OTHER_THAN_A_FILE = {
    "folder": (lambda path: path.mkdir(), "expected a file; it is a folder"),
    "link to a folder": (lambda path: path.symlink_to("/"), "expected a file; it is a folder"),
    "pipe": (os.mkfifo, "expected a file; it is a pipe"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "expected a file; it is a device"),
    "link to nothing": (lambda path: path.symlink_to("nowhere"), "there is no such file but a link that leads nowhere"),
    "link to itself": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "sparse file": (lambda path: sparse(path, 40 * 2**30), "the file has 40.0 GiB; expected at most 2 GiB"),
}


def sparse(path, size):
    with path.open("wb") as file:
        file.truncate(size)


@pytest.mark.parametrize("read", [read_image, check_header])
@pytest.mark.parametrize("kind", OTHER_THAN_A_FILE)
def test_what_is_no_regular_file_of_a_sane_size_is_named_and_never_read(tmp_path, kind, read):
    make, said = OTHER_THAN_A_FILE[kind]
    make(tmp_path / "a.jpg")
    with pytest.raises(UnreadableImageError, match=rf"a\.jpg: {said}$"):
        read(tmp_path / "a.jpg", SIZE)


@pytest.mark.parametrize("name", ["b.jpg/a.jpg", f"{'a' * 300}.jpg"])
def test_impossible_name_is_named(tmp_path, name):
    (tmp_path / "b.jpg").touch()
    with pytest.raises(UnreadableImageError, match=r"a\.jpg: (Not a directory|File name too long)"):
        read_image(tmp_path / name, SIZE)


def test_an_error_of_the_moment_says_nothing_of_the_file(tmp_path, monkeypatch):
    def fail(self):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self))

    store(tmp_path / "a.png", Image.fromarray(photo()), "PNG")
    monkeypatch.setattr(type(tmp_path), "read_bytes", fail)
    with pytest.raises(OSError, match="Stale file handle"):
        read_image(tmp_path / "a.png", SIZE)
    monkeypatch.undo()
    monkeypatch.setattr(Image.Image, "getexif", lambda self: bytearray(2**60))
    with pytest.raises(MemoryError, match=r"a\.png: the image cannot be"):
        read_image(tmp_path / "a.png", SIZE)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_what_training_cannot_decode_is_named(tmp_path, mode):
    # OpenCV takes images of 2^20 columns at most; Pillow takes this one, as it is (RGB) and to convert (RGBA).
    size = (1, 2**20 + 1)
    store(tmp_path / "wide.png", Image.new(mode, size[::-1]), "PNG")
    with pytest.raises(UnreadableImageError, match=r"wide\.png: Pillow can decode it, but OpenCV cannot"):
        read_image(tmp_path / "wide.png", size)


@pytest.mark.parametrize("folder", [".", "b/c"])
def test_missing_files_are_found_by_one_listing_of_each_folder(tmp_path, folder, monkeypatch):
    (tmp_path / folder).mkdir(exist_ok=True, parents=True)
    for name in ("1.jpg", "2.JPG", "3.JPG"):
        (tmp_path / folder / name).write_text("content")
    (tmp_path / folder / "4.jpg").mkdir()
    (tmp_path / folder / "5.JPG").mkdir()
    (tmp_path / folder / "6.jpg").symlink_to("1.jpg")
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    names = [os.path.join(folder, f"{number}.jpg") for number in (*range(1, 7), *range(10, 500))]
    missing = missing_files(tmp_path, [*names, "nowhere/1.jpg"])
    monkeypatch.undo()
    assert len(listed) == 2
    assert set(missing) == {*names[1:5], *names[6:], "nowhere/1.jpg"}
    said = {name: message.removeprefix(f"{tmp_path / name}: ") for name, message in missing.items()}
    assert said[names[1]] == "there is no such file, but '2.JPG': upper and lower case matter"
    assert said[names[3]] == "expected a file; it is a folder"
    # Of a folder whose name differs in case it is not said that case matters.
    assert said[names[4]] == said[names[6]] == said["nowhere/1.jpg"] == "there is no such file"


def test_empty_file_is_named(tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(UnreadableImageError, match=r"a\.jpg: the file is empty \(0 bytes\)"):
        read_image(tmp_path / "a.jpg", SIZE)


@pytest.mark.parametrize("content", [b"no image but text\n", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", bytes(1000)])
def test_other_content_under_the_name_of_an_image_is_named(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"a\.jpg: cannot be (read as an image|decoded): "):
        read_image(tmp_path / "a.jpg", SIZE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
def test_truncated_file_is_named(tmp_path, kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    whole = store(tmp_path / "whole", Image.fromarray(noise), kind).read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UnreadableImageError, match=r"a\.jpg: cannot be (read as an image|decoded): "):
        read_image(tmp_path / "a.jpg", SIZE)


def test_corrupt_pixels_are_named(tmp_path):
    data = bytearray(store(tmp_path / "a.png", Image.fromarray(photo()), "PNG").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UnreadableImageError, match=r"a\.png: cannot be"):
        read_image(tmp_path / "a.png", SIZE)


def with_header_of(path, height, width):
    """Write a PNG whose header says another size."""
    data = store(path, Image.fromarray(photo()), "PNG").read_bytes()
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])


@pytest.mark.parametrize("read", [read_image, check_header])
def test_header_that_asks_for_all_memory_is_refused_for_what_it_is(tmp_path, read):
    with_header_of(tmp_path / "a.png", 30_000, 20_000)
    said = r"a\.png: the image has height 30000 and width 20000, 600 megapixels; expected at most 537$"
    with pytest.raises(UnreadableImageError, match=said):
        read(tmp_path / "a.png", (30_000, 20_000))


def test_an_image_beyond_pillows_limit_is_no_attack(tmp_path, monkeypatch):
    # 400 megapixels: its header passes, and only its pixels are missing.
    with_header_of(tmp_path / "a.png", 20_000, 20_000)
    check_header(tmp_path / "a.png", (20_000, 20_000))
    # As small an image is read in full where the limit is as small.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = store(tmp_path / "b.png", Image.fromarray(photo()), "PNG")
    assert read_image(path, SIZE) == (path.read_bytes(), SIZE, [])
    assert Image.MAX_IMAGE_PIXELS == 100


def test_the_header_alone_is_checked_first(tmp_path):
    path = oriented(tmp_path / "a.jpg", 6, photo(), "JPEG")
    for size in (None, SIZE, SIZE[::-1]):
        check_header(path, size)
    with pytest.raises(ImageSizeError, match=r"a\.jpg: the image has height 24 and width 36; the JSON says height 25"):
        check_header(path, (25, 36))
    path.write_text("text")
    with pytest.raises(UnreadableImageError, match=r"a\.jpg: cannot be read as an image"):
        check_header(path, None)


# Plain files.


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [SIZE, (1, 1), (1, 3000)])
def test_plain_file_is_stored_as_it_is(tmp_path, kind, mode, size):
    image = Image.fromarray(photo(size)).convert(mode)
    # The name does not matter, not even that of another format.
    path = store(tmp_path / "ein Bild ü 像.jpg", image, kind)
    data, actual_size, reasons = read_image(path, size)
    assert data == path.read_bytes() and actual_size == size and reasons == []
    # Every decoder reads it alike, but for rounding.
    with Image.open(path) as again:
        expected = np.asarray(again.convert("RGB")).astype(int)
    assert np.abs(decoded(data, size) - expected).max() <= (2 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_size_is_that_of_the_file_where_the_json_has_none(tmp_path, kind):
    path = store(tmp_path / "a", Image.fromarray(photo()), kind)
    assert read_image(path, None)[1] == SIZE


@pytest.mark.parametrize("size", [(HEIGHT + 1, WIDTH), (HEIGHT, 2 * WIDTH), (WIDTH, HEIGHT)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_other_size_than_the_json_says_is_an_error(tmp_path, size, kind):
    path = store(tmp_path / "a.jpg", Image.fromarray(photo()), kind)
    with pytest.raises(
        ImageSizeError,
        match=rf"a\.jpg: the image has height {HEIGHT} and width {WIDTH}; "
        f"the JSON says height {size[0]} and width {size[1]}",
    ):
        read_image(path, size)


# EXIF orientation.


def oriented(path, orientation, pixels, kind="PNG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return store(path, Image.fromarray(pixels), kind, exif=exif)


# What a viewer shows of pixels stored with each orientation, by the EXIF standard.
SHOWN = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p, 1),
}


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("known", [True, False])
def test_turn_is_applied_where_the_json_has_the_turned_size(tmp_path, orientation, kind, known):
    path = oriented(tmp_path / "a", orientation, photo(), kind)
    stored = np.asarray(Image.open(io.BytesIO(path.read_bytes())))
    data, size, reasons = read_image(path, (WIDTH, HEIGHT) if known else None)
    assert size == (WIDTH, HEIGHT) and reasons == ["image_turned"]
    pixels = decoded(data, size)
    np.testing.assert_array_equal(pixels, SHOWN[orientation](stored))
    # Once and for all: a reader that heeds EXIF finds none.
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), pixels)
    assert not Image.open(io.BytesIO(data)).getexif()


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_turn_is_ignored_where_the_json_has_the_stored_size(tmp_path, orientation, kind):
    path = oriented(tmp_path / "a", orientation, photo(), kind)
    data, size, reasons = read_image(path, SIZE)
    assert size == SIZE and reasons == ["image_turn_ignored"]
    stored = np.asarray(Image.open(io.BytesIO(path.read_bytes())))
    np.testing.assert_array_equal(decoded(data, size), stored)
    assert not Image.open(io.BytesIO(data)).getexif()


@pytest.mark.parametrize("orientation", [2, 3, 4])
@pytest.mark.parametrize("size", [SIZE, None])
def test_turn_that_leaves_the_size_is_applied_and_counted_as_ambiguous(tmp_path, orientation, size):
    path = oriented(tmp_path / "a", orientation, photo())
    data, actual_size, reasons = read_image(path, size)
    assert reasons == ["image_turn_ambiguous"] and actual_size == SIZE
    np.testing.assert_array_equal(decoded(data, SIZE), SHOWN[orientation](photo()))


def test_turn_of_a_square_is_ambiguous(tmp_path):
    path = oriented(tmp_path / "a", 6, photo((24, 24)))
    data, _, reasons = read_image(path, (24, 24))
    assert reasons == ["image_turn_ambiguous"]
    np.testing.assert_array_equal(decoded(data, (24, 24)), SHOWN[6](photo((24, 24))))


@pytest.mark.parametrize("orientation", [0, 1, 9, 77])
def test_orientation_without_a_turn_changes_nothing(tmp_path, orientation):
    path = oriented(tmp_path / "a", orientation, photo())
    assert read_image(path, SIZE) == (path.read_bytes(), SIZE, [])


def test_size_that_fits_neither_way_is_an_error_that_names_both(tmp_path):
    path = oriented(tmp_path / "a.jpg", 6, photo(), "JPEG")
    message = r"has height 24 and width 36 \(36 and 24 by its EXIF orientation\); the JSON says height 20 and width 36"
    with pytest.raises(ValueError, match=message):
        read_image(path, (20, 36))


def test_pillow_turns_the_same_way(tmp_path):
    for orientation, shown in SHOWN.items():
        image = Image.open(oriented(tmp_path / "a.png", orientation, photo()))
        np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(image)), shown(photo()))
        image.close()


# Other pixels.


def test_transparency_is_left_out(tmp_path):
    pixels = np.dstack([photo(), np.arange(HEIGHT * WIDTH).reshape(SIZE) % 256]).astype(np.uint8)
    assert_converted(store(tmp_path / "a", Image.fromarray(pixels), "PNG"), photo())
    assert_converted(store(tmp_path / "b", Image.fromarray(pixels), "TIFF"), photo())


def test_transparent_gray_is_converted(tmp_path):
    gray = photo()[..., 0]
    image = Image.fromarray(np.dstack([gray, gray // 2]))
    assert image.mode == "LA"
    assert_converted(store(tmp_path / "a", image, "PNG"), np.dstack([gray] * 3))


def test_transparent_colour_is_converted(tmp_path):
    path = store(tmp_path / "a", Image.fromarray(photo()), "PNG", transparency=(0, 0, 255))
    assert_converted(path, photo())


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
@pytest.mark.parametrize("transparency", [None, 3])
def test_palette_is_applied(tmp_path, kind, transparency):
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    indices = (np.arange(HEIGHT * WIDTH).reshape(SIZE) % 256).astype(np.uint8)
    image = Image.fromarray(indices, "L")
    image.putpalette(palette.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    assert_converted(store(tmp_path / "a", image, kind, **options), palette[indices])


def test_cmyk_jpeg_is_converted(tmp_path):
    image = Image.fromarray(photo()).convert("CMYK")
    path = store(tmp_path / "a", image, "JPEG", quality=100)
    assert_converted(path, np.asarray(image.convert("RGB")), tolerance=12)
    assert_converted(path, photo(), tolerance=12)


def test_sixteen_bit_gray_keeps_the_high_byte(tmp_path):
    values = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(SIZE).astype(np.uint16)
    expected = np.dstack([(values >> 8).astype(np.uint8)] * 3)
    for name in ("a.png", "a.tiff"):
        cv2.imwrite(str(tmp_path / name), values)
        assert_converted(tmp_path / name, expected)


def test_sixteen_bit_colour_keeps_the_high_byte(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (*SIZE, 3), np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), values)
    assert_converted(tmp_path / "a.png", (values[..., ::-1] >> 8).astype(np.uint8))


def test_one_bit_becomes_black_and_white(tmp_path):
    bits = np.random.default_rng(0).random(SIZE) < 0.5
    path = store(tmp_path / "a", Image.fromarray(bits), "PNG")
    assert_converted(path, np.dstack([bits * 255] * 3).astype(np.uint8))


@pytest.mark.parametrize("kind", ["BMP", "WEBP", "TIFF", "PPM"])
def test_other_formats_become_png(tmp_path, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert_converted(store(tmp_path / "a", Image.fromarray(photo()), kind, **options), photo())


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_first_of_several_frames_is_taken(tmp_path, kind):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    path = store(tmp_path / "a", frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert_converted(path, np.broadcast_to(np.array([255, 0, 0], np.uint8), (*SIZE, 3)))


def test_multi_picture_jpeg_is_converted(tmp_path):
    image = Image.fromarray(photo())
    path = store(tmp_path / "a", image, "MPO", save_all=True, append_images=[image], quality=95)
    assert_converted(path, photo(), tolerance=16)


def test_turned_palette_is_turned_and_converted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(photo()).quantize(16)
    path = store(tmp_path / "a", image, "PNG", exif=exif)
    expected = SHOWN[6](np.asarray(image.convert("RGB")))
    assert_converted(path, expected, ("image_turned", "image_converted"))


def test_turned_sixteen_bit_gray_is_turned_and_converted(tmp_path):
    values = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(SIZE).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 8
    path = store(tmp_path / "a", Image.fromarray(values), "PNG", exif=exif)
    expected = SHOWN[8](np.dstack([(values >> 8).astype(np.uint8)] * 3))
    assert_converted(path, expected, ("image_turned", "image_converted"))


def test_colour_profile_and_gamma_are_not_carried_along(tmp_path):
    image = Image.fromarray(photo()).quantize(16)
    path = store(tmp_path / "a", image, "PNG", icc_profile=b"no profile that anyone could use")
    data, _, _ = read_image(path, SIZE)
    assert not Image.open(io.BytesIO(data)).info


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_unknown_range_are_refused(tmp_path, mode):
    values = np.full(SIZE, 100_000, np.float32 if mode == "F" else np.int32)
    path = store(tmp_path / "a.tiff", Image.fromarray(values), "TIFF")
    with pytest.raises(UnreadableImageError, match=r"a\.tiff: cannot be decoded: .*; expected 8 or 16 bits"):
        read_image(path, SIZE)
