"""Arithmetic clears only objects in which `prepare`, which draws every mask, finds nothing."""

import json

import numpy as np
import pytest

from maskx_jax.coco import rle
from maskx_jax.data.coco.annotations import read_instances
from maskx_jax.data.coco.objects import check_objects
from maskx_jax.data.coco.report import REASONS, Report
from maskx_jax.doctor.examination import examine
from maskx_jax.doctor.outlines import measure

SIZE = (120, 160)
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]


def outline(rng: np.random.Generator) -> list[float]:
    """Return a star, a rectangle, a sliver or random points, in the image or across its border."""
    kind = rng.choice(["star", "rectangle", "sliver", "points"], p=[0.5, 0.2, 0.15, 0.15])
    center, radius = rng.uniform(0, 1, 2) * SIZE[::-1], np.exp(rng.uniform(-1, 4))
    if kind == "star":
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 30)))
        points = rng.uniform(0.5, 1, (len(angles), 1)) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    elif kind == "points":
        points = rng.uniform(-1, 1, (rng.integers(3, 8), 2))
    else:
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [
            1,
            rng.uniform(0.2, 1) if kind == "rectangle" else 0.02,
        ]
        points = points + rng.uniform(0, 0.1, 2) * (rng.random((4, 2)) < 0.3)
    return (center + radius * points).round(2).ravel().tolist()


def annotation(rng: np.random.Generator, number: int) -> dict:
    parts = [outline(rng) for _ in range(rng.choice([1, 1, 1, 2, 4]))]
    points = np.concatenate([np.reshape(part, (-1, 2)) for part in parts])
    low, high = points.min(axis=0), points.max(axis=0)
    if rng.random() < 0.5:
        low, high = np.clip(low, 0, SIZE[::-1]), np.clip(high, 0, SIZE[::-1])
    sides = (high - low) * rng.choice([1, 1, 1, 1.5, 0.6], 2)
    area = float(measure([parts], np.array([SIZE])).areas[0]) * float(rng.choice([1, 1, 1, 0.5, 0.8, 1.25, 2]))
    segmentation = parts
    if rng.random() < 0.25:
        runs = rle.draw(parts, SIZE)
        segmentation = {**runs, "counts": bytes(runs["counts"]).decode()}
    elif rng.random() < 0.1:
        segmentation = [None, [], parts[0], [parts[0][:4]], [[*parts[0][:6], None]], [[True] * 6]][rng.integers(6)]
    box = [*low.tolist(), *sides.tolist()]
    if rng.random() < 0.1:
        box = [None, [*box, 1], [box[0], box[1], 0, 5], [999, 999, 5, 5]][rng.integers(4)]
    return {
        "id": number,
        "image_id": 1 + number % 7,
        "category_id": int(rng.choice([3, 8])),
        "iscrowd": int(rng.random() < 0.05),
        "bbox": box,
        "area": None if rng.random() < 0.05 else area,
        "segmentation": segmentation,
    }


def test_doctor_counts_of_every_object_what_prepare_counts(tmp_path):
    rng = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in range(1, 8)]
    content = {"images": images, "annotations": [annotation(rng, n) for n in range(1500)], "categories": CATEGORIES}
    path = tmp_path / "random.json"
    path.write_text(json.dumps(content))

    report = Report("val")
    instances = read_instances(path, report)
    for image in instances.images:
        check_objects(instances.annotations[image["id"]], SIZE, instances.categories, report)
    assert len(report.counts) > 12

    split = examine({"val": (path, None)}).splits["val"]
    assert {finding.cause: finding.count for finding in split.findings if finding.cause in REASONS} == report.counts


def test_most_objects_of_coco_are_cleared_by_arithmetic(coco_mini, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "maskx_jax.doctor.objects.check_objects",
        lambda found, *arguments: drawn.append(found) or check_objects(found, *arguments),
    )
    split = examine({"val": (coco_mini / "annotations/instances_val2017.json", None)}).splits["val"]
    assert 0 < len(drawn) < 0.03 * len(split.annotations)


@pytest.mark.parametrize("crossed", [False, True])
def test_corners_out_of_order_cross(crossed):
    corners = [0, 0, 10, 10, 10, 0, 0, 10] if crossed else [0, 0, 10, 0, 10, 10, 0, 10]
    found = measure([[corners]], np.array([SIZE]))
    assert found.crossed.tolist() == [crossed]
    assert found.areas.tolist() == [0 if crossed else 100]
    assert found.frames.tolist() == [[0, 0, 10, 10]]
