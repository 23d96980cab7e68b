"""What may be given for pictures, and what is said where it names none."""

import cv2
import numpy as np
import pytest
from PIL import Image

from maskx_jax.prediction.pictures import is_one, pictures_of

PIXELS = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deeper").mkdir()
    for name in ("b.png", "a.PNG", "deeper/c.png", "[1].png"):
        Image.fromarray(PIXELS).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def video(path, frames=5, size=(48, 64)):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, size[::-1])
    for number in range(frames):
        writer.write(np.full((*size, 3), (0, 0, 50 * number), np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("", ["[1].png", "a.PNG", "b.png", "deeper/c.png"]),
        ("b.png", ["b.png"]),
        ("[1].png", ["[1].png"]),
        ("*.png", ["[1].png", "b.png"]),
        ("**/c.png", ["c.png"]),
    ],
)
def test_a_path_a_folder_and_a_pattern_name_their_pictures_in_order(folder, given, names):
    found = list(pictures_of(str(folder / given)))
    assert [picture.name for picture in found] == names
    for picture in found:
        np.testing.assert_array_equal(picture.read(), PIXELS)
    assert is_one(str(folder / given)) == (given in ("b.png", "[1].png"))


def test_what_is_in_memory_is_a_picture_too(folder):
    opened = Image.open(folder / "b.png")
    turned = Image.fromarray(PIXELS)
    turned.getexif()[0x0112] = 6
    found = list(pictures_of([PIXELS, opened, turned, [folder / "b.png"], Image.fromarray(PIXELS[..., 0])]))
    assert [picture.name for picture in found] == ["array", "b.png", "image", "b.png", "image"]
    expected = [PIXELS, PIXELS, np.rot90(PIXELS, -1), PIXELS, np.repeat(PIXELS[..., :1], 3, axis=-1)]
    for picture, pixels in zip(found, expected, strict=True):
        np.testing.assert_array_equal(picture.read(), pixels)
    assert is_one(PIXELS) and is_one(opened) and not is_one([PIXELS])


def test_a_video_is_its_frames_in_rgb(tmp_path):
    path = video(tmp_path / "clip.mp4")
    frames = list(pictures_of(path))
    assert [frame.name for frame in frames] == [f"clip.mp4#{number:06d}" for number in range(5)]
    assert all(frame.video == path and frame.read().shape == (48, 64, 3) for frame in frames)
    # OpenCV's order is BGR: red grows from frame to frame.
    np.testing.assert_allclose([frame.read().mean(axis=(0, 1)) for frame in frames][4], [200, 0, 0], atol=12)
    assert not is_one(path)


@pytest.mark.parametrize("content", [b"", b"no video", None])
def test_a_video_without_frames_says_so_when_it_is_read(tmp_path, content):
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    (picture,) = pictures_of(path)
    with pytest.raises(
        ValueError, match=r"clip\.mp4: (the file is empty|no frame of this video|there is no such file)"
    ):
        picture.read()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("*.bmp", r"\*\.bmp: no file fits this pattern$"),
        ("deeper/none", r"none: holds no pictures and no videos, but \.txt$"),
        ("deeper/empty", r"empty: holds no pictures and no videos$"),
    ],
)
def test_a_name_without_pictures_is_refused(folder, given, message):
    for name in ("none", "empty"):
        (folder / "deeper" / name).mkdir()
    (folder / "deeper/none/notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match=message):
        list(pictures_of(folder / given))


@pytest.mark.parametrize("array", [PIXELS[..., 0], PIXELS / 255, np.zeros((4, 4, 4), np.uint8), PIXELS[:0]])
def test_an_array_that_is_no_rgb_image_is_refused(array):
    with pytest.raises(ValueError, match=r"^got an array of shape .*; expected \(h, w, 3\) uint8, RGB$"):
        list(pictures_of(array))
