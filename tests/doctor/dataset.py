"""A small sound dataset, of real images where there are any: what defects are planted in."""

import copy
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from maskx_jax.doctor.examination import Examination, examine

NUM_IMAGES = 8


@dataclasses.dataclass
class Dataset:
    """COCO files `train` and `val` with their pictures in a folder each, and what they hold."""

    root: pathlib.Path
    contents: dict[str, dict]
    with_pictures: bool = True

    @property
    def train(self) -> dict:
        return self.contents["train"]

    @property
    def val(self) -> dict:
        return self.contents["val"]

    def path(self, split: str = "train") -> pathlib.Path:
        return self.root / f"{split}.json"

    def picture(self, index: int = 0, split: str = "train") -> pathlib.Path:
        return self.root / split / self.contents[split]["images"][index]["file_name"]

    def objects(self, split: str = "train", kind: type = list) -> list[dict]:
        """Return the annotations that are no crowd and have polygons, the largest first."""
        found = [
            a for a in self.contents[split]["annotations"] if not a["iscrowd"] and isinstance(a["segmentation"], kind)
        ]
        return sorted(found, key=lambda a: -a["bbox"][2] * a["bbox"][3])

    def copy(self, root: pathlib.Path) -> "Dataset":
        """Return a copy whose pictures are links to these, until one is written anew."""
        for split in self.contents:
            (root / split).mkdir(parents=True)
            for path in (self.root / split).iterdir():
                (root / split / path.name).symlink_to(path.resolve())
        return Dataset(root, copy.deepcopy(self.contents), self.with_pictures)

    def write(self, path: pathlib.Path, content: bytes) -> None:
        """Write a picture in the place of the link."""
        path.unlink(missing_ok=True)
        path.write_bytes(content)

    def save(self) -> None:
        for split, content in self.contents.items():
            self.path(split).write_text(json.dumps(content))

    def examine(self, **options: Any) -> Examination:
        self.save()
        return examine(self.splits(), **options)

    def splits(self) -> dict[str, tuple[pathlib.Path, pathlib.Path | None]]:
        return {split: (self.path(split), self.root / split if self.with_pictures else None) for split in self.contents}


def real(root: pathlib.Path, coco_mini: pathlib.Path) -> Dataset:
    """Return a few images of COCO."""
    contents = {}
    for split in ("train", "val"):
        whole = json.loads((coco_mini / f"annotations/instances_{split}2017.json").read_text())
        images = whole["images"][:NUM_IMAGES]
        ids = {image["id"] for image in images}
        annotations = [annotation for annotation in whole["annotations"] if annotation["image_id"] in ids]
        contents[split] = {**whole, "images": images, "annotations": annotations}
        (root / split).mkdir(parents=True)
        for image in images:
            name = image["file_name"]
            (root / split / name).symlink_to(coco_mini / f"images/{split}2017" / name)
    return Dataset(root, contents)


def synthetic(root: pathlib.Path) -> Dataset:
    """Return images of a hexagon each on noise."""
    contents = {}
    for number, split in enumerate(("train", "val")):
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for index in range(NUM_IMAGES):
            image_id = 100 * number + index + 1
            noise = np.random.default_rng(image_id).integers(0, 255, (4, 5, 3), np.uint8)
            Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC).save(root / split / f"{image_id}.png")
            images.append({"id": image_id, "file_name": f"{image_id}.png", "height": 240, "width": 320})
            for place in range(3):
                annotations.append(
                    _hexagon(10 * image_id + place, image_id, 1 + place % 2, 20 + 95 * place, 30 + 5 * index)
                )
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        contents[split] = {"images": images, "annotations": annotations, "categories": categories}
    return Dataset(root, contents)


def _hexagon(annotation_id: int, image_id: int, category_id: int, x: int, y: int) -> dict:
    points = [x + 20, y, x + 60, y, x + 80, y + 30, x + 60, y + 60, x + 20, y + 60, x, y + 30]
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": 0,
        "bbox": [x, y, 80, 60],
        "area": 3600.0,
        "segmentation": [points],
    }
