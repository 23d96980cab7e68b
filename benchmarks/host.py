"""What runs on the host: examples from JPEG files, and the scores of a whole evaluation.

    python -m benchmarks.host

prints the CPU seconds of the results entries and of the picture of one image of 12 megapixels with 100 masks.

    python -m benchmarks.host --images=2000 --classes=3055 --kind=bbox --backend=faster_coco_eval

prints what scoring these takes: seconds, CPU seconds, and the peak of memory with the results and without.

    python -m benchmarks.host --images=300 --processes=2

prints what making the results entries of images of 640 x 480 with 100 masks each takes, by `evaluation.num_processes`.
"""

import collections
import contextlib
import dataclasses
import resource
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_coder

from maskx_jax import errors
from maskx_jax.data import pipeline
from maskx_jax.data.records import Record
from maskx_jax.data.schedule import Schedule
from maskx_jax.data.shapes.source import ShapesSource
from maskx_jax.data.transforms import Transform, decode
from maskx_jax.evaluation import drawing, entry_processes, matching
from maskx_jax.evaluation import metrics as coco_metrics
from maskx_jax.evaluation import results as coco_results
from maskx_jax.structures import Batch, Detections

# Of a median image of COCO.
_SIZE = (480, 640)
NUM_OBJECTS = 7


class JpegSource(ShapesSource):
    """Synthetic images as JPEG files in memory, with the noise of a camera: without it they would decode too fast."""

    def __init__(self, num_images: int) -> None:
        super().__init__(num_images, seed=0, image_size=(480, 640), max_objects=NUM_OBJECTS)
        self._records = [self._with_file(super(JpegSource, self).__getitem__(i)) for i in range(num_images)]

    def __getitem__(self, index: int) -> Record:
        """Return an image and its objects."""
        return self._records[index]

    @staticmethod
    def _with_file(record: Record) -> Record:
        noise = np.random.default_rng(record.image_id).normal(0, 8, (*record.size, 3))
        pixels = np.clip(decode(record) + noise, 0, 255).astype(np.uint8)
        file = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        return dataclasses.replace(record, image=file.tobytes())


def training_batches(batch_size: int, num_images: int = 32) -> Iterator[Batch]:
    """Return batches made by one worker: decoded, flipped by chance, scaled to 800/1333 and padded."""
    source = JpegSource(num_images)
    return pipeline.train_batches(
        source,
        Schedule(source.sizes, batch_size, 0),
        Transform(),
        np.ones(len(source.categories) + 1, bool),
        loader="threads",
        num_workers=1,
        prefetch=1,
    )


def evaluation(
    num_images: int, num_detections: int = 100, num_classes: int = 80
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a COCO ground truth, and results that find some of it."""
    rng = np.random.default_rng(0)
    height, width = _SIZE
    # Some hundred ellipses serve for all masks.
    boxes, codes = [], []
    for _ in range(500):
        axes = np.exp(rng.uniform(np.log(6), np.log(200), 2)).astype(int)
        centre = rng.integers((0, 0), (width, height))
        bitmap = np.zeros((height, width), np.uint8)
        cv2.ellipse(bitmap, centre.tolist(), axes.tolist(), float(rng.uniform(0, 180)), 0, 360, 1, -1)
        code = mask_coder.encode(np.asfortranarray(bitmap))
        boxes.append(mask_coder.toBbox(code).tolist())
        codes.append({"size": code["size"], "counts": code["counts"].decode("ascii")})
    images = [{"id": i + 1, "height": height, "width": width, "file_name": ""} for i in range(num_images)]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in images:
        shapes = rng.integers(0, len(codes), NUM_OBJECTS)
        labels = rng.integers(1, num_classes + 1, NUM_OBJECTS)
        for shape, label in zip(shapes.tolist(), labels.tolist(), strict=True):
            entry = {"image_id": image["id"], "category_id": label, "bbox": boxes[shape], "segmentation": codes[shape]}
            area = boxes[shape][2] * boxes[shape][3]
            annotations.append(entry | {"id": len(annotations) + 1, "area": area, "iscrowd": 0})
            results.append(entry | {"score": float(rng.uniform(0.3, 1))})
        count = num_detections - NUM_OBJECTS
        shapes, labels = rng.integers(0, len(codes), count), rng.integers(1, num_classes + 1, count)
        for shape, label in zip(shapes.tolist(), labels.tolist(), strict=True):
            entry = {"image_id": image["id"], "category_id": label, "bbox": boxes[shape], "segmentation": codes[shape]}
            results.append(entry | {"score": float(rng.uniform(0, 0.7))})
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, num_classes + 1)]
    return {"images": images, "categories": categories, "annotations": annotations}, results


def scores(ground_truth: dict[str, Any], results: list[dict[str, Any]], kind: str, backend: Any) -> dict[str, Any]:
    """Return the scores."""
    return coco_metrics.score(ground_truth, results, [kind], backend=backend)


def _detections(rng: np.random.Generator, num_masks: int, size: tuple[int, int]) -> Detections:
    """Return boxes anywhere in an image, with smooth masks."""
    height, width = size
    corners = rng.random((num_masks, 2, 2)) * (width, height)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    masks = [cv2.GaussianBlur(rng.random((28, 28)).astype(np.float32), (3, 3), 0.8) for _ in range(num_masks)]
    ones = np.ones(num_masks, int)
    return Detections(boxes, np.linspace(0.6, 0.9, num_masks), ones, np.stack(masks), ones > 0)


def time_large_image(num_masks: int = 100, size: tuple[int, int] = (3000, 4000), seed: int = 0) -> dict[str, float]:
    """Return the CPU seconds that the entries and the picture of one image take."""
    rng = np.random.default_rng(seed)
    height, width = size
    found = _detections(rng, num_masks, size)
    begin = time.process_time()
    entries = coco_results.entries(
        found,
        image_id=1,
        image_size=size,
        scale=1.0,
        id_of_label=np.array([0, 1]),
    )
    middle = time.process_time()
    image = cv2.resize(rng.integers(0, 255, (30, 40, 3)).astype(np.uint8), (width, height))
    drawn = time.process_time()
    drawing.draw_comparison(image, entries[: num_masks // 2], {"found": entries}, {1: "person"})
    return {"entries": middle - begin, "picture": time.process_time() - drawn}


def measure_scoring(num_images: int, num_classes: int, kind: str, backend: str) -> dict[str, float]:
    """Return the seconds and CPU seconds of scoring, and the process' peak in GB before and after it."""
    ground_truth, results = evaluation(num_images, num_classes=num_classes)
    before = _peak_gigabytes()
    begin, cpu_begin = time.perf_counter(), time.process_time()
    scored = scores(ground_truth, results, kind, backend)
    return {
        "AP": scored[kind]["all"]["AP"],
        "seconds": time.perf_counter() - begin,
        "CPU seconds": time.process_time() - cpu_begin,
        "GB with the results": before,
        "GB at the peak": _peak_gigabytes(),
    }


def measure_entries(num_images: int, num_processes: int, num_masks: int = 100) -> dict[str, float]:
    """Return the seconds that the entries of images take, and the CPU seconds of this process and of the others.

    With one process there are no others; starting them counts.
    """
    rng = np.random.default_rng(0)
    found = [_detections(rng, num_masks, _SIZE) for _ in range(16)]
    begin, cpu_begin, others_begin = time.perf_counter(), time.process_time(), _children_seconds()
    with contextlib.closing(entry_processes.open_maker(num_processes, id_of_label=np.array([0, 1]))) as maker:
        waiting: collections.deque[Any] = collections.deque()
        for number in range(num_images):
            waiting.append(maker.submit(found[number % len(found)], image_id=number, image_size=_SIZE, scale=1.0))
            if len(waiting) > maker.most_waiting:
                waiting.popleft()()
        while waiting:
            waiting.popleft()()
    return {
        "seconds": time.perf_counter() - begin,
        "CPU seconds here": time.process_time() - cpu_begin,
        "CPU seconds of the others": _children_seconds() - others_begin,
    }


def _children_seconds() -> float:
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def _peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """Measure what the arguments say."""
    parser = errors.ArgumentParser(prog="python -m benchmarks.host", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, help="number of images")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--kind", default="bbox")
    parser.add_argument("--backend", default=matching.BACKENDS[0], choices=matching.BACKENDS)
    parser.add_argument("--processes", type=int, help="make results entries of them in place of scoring them")
    options = parser.parse_args()
    if options.images is None:
        measured = time_large_image()
    elif options.processes is not None:
        measured = measure_entries(options.images, options.processes)
    else:
        measured = measure_scoring(options.images, options.classes, options.kind, options.backend)
    print({name: round(value, 4) for name, value in measured.items()})


if __name__ == "__main__":
    errors.run(main)
