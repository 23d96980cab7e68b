"""The verb predict: whatever is given is drawn, or refused in one line."""

import io
import json
import re
import struct
import sys
import types
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from maskx_jax.cli import predict
from tests.prediction.finder import CATEGORIES, picture, predictor
from tests.prediction.test_pictures import video

RED = {"red": (16, 16, 48, 48)}
PIXELS = picture((64, 96), **RED)


@pytest.fixture(scope="module")
def loaded():
    return types.SimpleNamespace(categories=CATEGORIES, predictor=predictor())


@pytest.fixture
def run(tmp_path, loaded, capsys):
    """Return what the verb does with inputs: exit code, output, errors, entries by the name of the picture."""

    def program(*arguments):
        output = tmp_path / "out"
        code = predict.main(
            ["--workdir=RUN", f"--output={output}", *map(str, arguments)], load=lambda workdir, step: loaded
        )
        said = capsys.readouterr()
        names = {
            image["id"]: image["file_name"] for image in json.loads((output / "images.json").read_text())["images"]
        }
        found = {name: [] for name in names.values()}
        for entry in json.loads((output / "results.json").read_text()):
            found[names[entry["image_id"]]].append(entry)
        return code, said.out, said.err, found

    return program


def deep_png(pixels):
    """Return a PNG of 16 bits in three channels, which Pillow does not write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels.astype(np.uint16) * 257)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(kind, image=None, **options):
    buffer = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(buffer, kind, **options)
    return buffer.getvalue()


def turned():
    image = Image.fromarray(np.rot90(PIXELS))
    image.getexif()[0x0112] = 6
    return saved("JPEG", image, exif=image.getexif(), quality=95)


# Each of them shows the red rectangle, unless it is too small or gray.
ODD = {
    "one_pixel.png": (saved("PNG", Image.new("RGB", (1, 1))), 0),
    "portrait.png": (saved("PNG", Image.fromarray(picture((96, 64), **RED))), 1),
    "gray.png": (saved("PNG", Image.fromarray(PIXELS[..., 0])), 0),
    "alpha.png": (saved("PNG", Image.fromarray(np.dstack([PIXELS, np.full((64, 96), 99, np.uint8)]))), 1),
    "exif.jpg": (turned(), 1),
    "deep.png": (deep_png(PIXELS), 1),
    "animated.gif": (
        saved("GIF", save_all=True, append_images=[Image.new("RGB", (96, 64), "green")], duration=100, loop=0),
        1,
    ),
    "cmyk.jpg": (saved("JPEG", Image.fromarray(PIXELS).convert("CMYK"), quality=95), 1),
    "palette.png": (saved("PNG", Image.fromarray(PIXELS).quantize(4)), 1),
    "large.png": (saved("PNG", Image.fromarray(np.repeat(np.repeat(PIXELS, 84, 0)[:, :95], 84, 1))), 1),
    "corrupt.jpg": (saved("JPEG", quality=95)[:-200], None),
    "empty.webp": (b"", None),
}


def test_odd_pictures_are_drawn_or_refused_in_one_line(run, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, (content, _) in ODD.items():
        (folder / name).write_bytes(content)
    video(folder / "clip.mp4", frames=3)
    code, out, err, found = run(f"--input={folder}")
    refused = sorted(name for name, (_, objects) in ODD.items() if objects is None)
    lines = [line for line in err.splitlines() if line.startswith("refused: ")]
    assert [re.search(r"in/(\S+?):", line).group(1) for line in lines] == refused
    assert code == 1 and out == f"wrote {tmp_path}/out; 2 refused\n"
    expected = {name: objects for name, (_, objects) in ODD.items() if objects is not None}
    frames = {f"clip.mp4#{number:06d}": len(found[f"clip.mp4#{number:06d}"]) for number in range(3)}
    assert {name: len(entries) for name, entries in found.items()} == expected | frames
    for name in expected:
        with Image.open(tmp_path / "out/pictures" / name.replace(name.rpartition(".")[2], "jpg")) as drawn:
            assert 640 <= max(drawn.size) <= 1600
    reader = cv2.VideoCapture(str(tmp_path / "out/pictures/clip.mp4"))
    assert reader.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and reader.get(cv2.CAP_PROP_FPS) == 10


def test_names_come_from_standard_input_too_and_masks_are_written(run, tmp_path, monkeypatch):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(PIXELS).save(tmp_path / folder / "same.png")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{tmp_path}/a/same.png\n\n{tmp_path}/b/same.png\n"))
    code, _, err, _ = run("--input=-", "--masks", "--nopictures")
    assert code == 0 and "refused" not in err
    written = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*") if path.is_file()
    )
    assert written == ["images.json", "masks/same.png/000.png", "masks/same/000.png", "results.json"]
    mask = np.asarray(Image.open(tmp_path / "out/masks/same/000.png"))
    assert mask.shape == (64, 96) and mask[18:46, 18:46].all() and mask.sum() == pytest.approx(32 * 32, rel=0.1)


def test_a_name_without_pictures_is_said_before_anything_is_loaded(tmp_path):
    def load(workdir, step):
        raise AssertionError

    with pytest.raises(ValueError, match=r"holds no pictures and no videos$"):
        predict.main(["--workdir=RUN", f"--input={tmp_path}"], load=load)
