"""How preparing, opening and scoring a dataset grow with its number of images.

    python -m benchmarks.growth --images=1000,4000,16000,64000

Images are links to eight JPEG files of 640 x 480, with seven annotated objects each of 80 classes. For each number a
row: seconds of processor time and the process' peak of memory, of preparing by one process; of opening what was
prepared, with the table of its classes, the weights of repeat-factor sampling and the order of an epoch; and of scoring
100 boxes an image.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2

from benchmarks import host
from maskx_jax import errors
from maskx_jax.data.transforms import decode

_NUM_FILES = 8
_OPEN = """
import sys
import numpy as np
from maskx_jax.data.coco.source import CocoSource
from maskx_jax.data.roles import class_table
from maskx_jax.data.schedule import Schedule, repeat_factors
source = CocoSource(sys.argv[1], "train")
class_table(source, np.ones(len(source.categories) + 1, bool))
factors = repeat_factors(source.image_labels, len(source.categories))
Schedule(source.sizes, 8, 0, factors).step(len(source) // 8 - 1)
"""


def write_set(folder: Path, num_images: int) -> tuple[Path, Path]:
    """Write annotations and images; return their paths."""
    images = folder / "images"
    images.mkdir()
    files = host.JpegSource(_NUM_FILES)
    for number in range(_NUM_FILES):
        pixels = cv2.resize(decode(files[number])[..., ::-1], (640, 480))
        cv2.imwrite(str(folder / f"{number}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])
    ground_truth, _ = host.evaluation(num_images, num_detections=host.NUM_OBJECTS)
    for number, image in enumerate(ground_truth["images"]):
        image["file_name"] = f"{number}.jpg"
        os.link(folder / f"{number % _NUM_FILES}.jpg", images / image["file_name"])
    annotations = folder / "train.json"
    annotations.write_text(json.dumps(ground_truth))
    return annotations, images


def measure(*command: str) -> tuple[float, float]:
    """Run Python with arguments; return the CPU seconds of it and its children, and its peak in GB."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise ChildProcessError(f"{' '.join(command[:3])} ended with status {status}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    """Measure what the arguments say."""
    parser = errors.ArgumentParser(prog="python -m benchmarks.growth", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", default="1000,4000,16000", help="numbers of images")
    options = parser.parse_args()
    print("| images | prepare, CPU s | peak, GB | output, GB | open, CPU s | peak, GB | score, CPU s | peak, GB |")
    print("|---|---|---|---|---|---|---|---|")
    for number in map(int, options.images.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            annotations, images = write_set(folder, number)
            output = folder / "data"
            split = f"--split=train={annotations},{images}"
            cells = [
                *measure("-m", "maskx_jax", "prepare", f"--output={output}", split, "--num_workers=1"),
                sum(path.stat().st_size for path in output.iterdir()) / 1e9,
                *measure("-c", _OPEN, str(output)),
                *measure("-m", "benchmarks.host", f"--images={number}"),
            ]
        print(f"| {number:,} | {' | '.join(f'{cell:.2f}' for cell in cells)} |", flush=True)


if __name__ == "__main__":
    errors.run(main)
