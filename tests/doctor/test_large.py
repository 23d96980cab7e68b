"""Annotations as many as COCO's are looked at in a minute and in the memory of a laptop."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.processes import ROOT

NUM_IMAGES, NUM_OBJECTS, NUM_CLASSES = 118_000, 860_000, 80
SIZE = (480, 640)


def body(rng: np.random.Generator) -> str:
    """Return the fields of an annotation that are its own: a star of 12 to 40 points, as long as COCO's polygons."""
    number = rng.integers(12, 41)
    angles = 2 * np.pi * (np.arange(number) + rng.uniform(0, 0.5, number)) / number
    points = rng.uniform(0.6, 1, (number, 1)) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    sides = np.exp(rng.uniform(np.log(8), np.log(400), 2))
    points = (points - points.min(axis=0)) / np.ptp(points, axis=0) * sides
    points = (points + rng.uniform(0, SIZE[::-1] - sides)).round(2)
    x, y = points.T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    low = points.min(axis=0)
    box = [*low.tolist(), *(points.max(axis=0) - low).round(2).tolist()]
    return json.dumps({"segmentation": [points.ravel().tolist()], "area": area, "iscrowd": 0, "bbox": box})[1:-1]


def write(path: pathlib.Path) -> None:
    """Write annotations of COCO's size: half a gigabyte."""
    rng = np.random.default_rng(0)
    bodies = [body(rng) for _ in range(20_000)]
    which, images, classes = (
        rng.integers(0, most, NUM_OBJECTS).tolist() for most in (len(bodies), NUM_IMAGES, NUM_CLASSES)
    )
    with path.open("w") as file:
        file.write('{"images": [')
        url = "http://images.cocodataset.org/train2017"
        common = f'"license": 3, "height": {SIZE[0]}, "width": {SIZE[1]}, "date_captured": "2013-11-14 11:18:45"'
        for i in range(NUM_IMAGES):
            file.write(", " * (i > 0))
            file.write(f'{{"id": {i}, "file_name": "{i:012}.jpg", "coco_url": "{url}/{i:012}.jpg", {common}}}')
        file.write('], "annotations": [')
        for number, (place, image, label) in enumerate(zip(which, images, classes, strict=True)):
            file.write(", " * (number > 0))
            file.write(f'{{{bodies[place]}, "image_id": {image}, "category_id": {label + 1}, "id": {number}}}')
        categories = [{"id": label, "name": f"class {label}"} for label in range(1, NUM_CLASSES + 1)]
        file.write(f'], "categories": {json.dumps(categories)}}}')


@pytest.mark.long
def test_annotations_of_the_size_of_coco_take_a_minute_and_4_gigabytes(tmp_path):
    path = tmp_path / "large.json"
    try:
        write(path)
        assert path.stat().st_size > 450e6
        command = [sys.executable, "-m", "maskx_jax", "doctor", f"--annotations={path}", "--no_pictures"]
        command += ["--config=configs/maskx_rcnn.py", f"--output={tmp_path / 'out'}"]
        with (tmp_path / "printed").open("w") as printed:
            process = subprocess.Popen(command, cwd=ROOT, stdout=printed)
            # As Popen.wait does, with what the process used.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        path.unlink(missing_ok=True)
    print(f"{usage.ru_utime + usage.ru_stime:.1f} s of processor time, {usage.ru_maxrss / 1e6:.2f} GB")
    assert process.returncode in (0, 2)
    found = json.loads((tmp_path / "out/doctor.json").read_text())
    assert found["splits"]["train"]["num_annotations"] == NUM_OBJECTS
    # Of processor time: other tests may run beside this one.
    assert usage.ru_utime + usage.ru_stime < 60
    assert usage.ru_maxrss * 1024 < 4e9
