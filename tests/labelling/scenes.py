"""Pictures with bright discs, their annotations, and a model that takes what is bright in a box for the object."""

import json
import pathlib
from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from configs import maskx_rcnn
from maskx_jax.coco import boxes, rle
from maskx_jax.coco.categories import Categories

CATEGORIES = [{"id": 7, "name": "moon"}, {"id": 3, "name": "sun"}]
# Centres (x, y) and radii of the discs of each image, and its size.
SCENES = {
    11: ((90, 160), [(40, 30, 22), (110, 55, 17)]),
    12: ((200, 120), [(60, 80, 41.5)]),
    13: ((64, 64), [(20, 20, 12), (45, 44, 15)]),
}


def disc(size: tuple[int, int], x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 < radius**2


def write_scenes(folder: pathlib.Path) -> tuple[dict, dict[int, np.ndarray]]:
    """Write pictures and annotations; return these, and the mask of each object. The first object of each has one."""
    (folder / "images").mkdir(parents=True)
    images, annotations, masks = [], [], {}
    for image_id, (size, discs) in SCENES.items():
        picture = np.full((*size, 3), 20, np.uint8)
        for place, (x, y, radius) in enumerate(discs):
            mask = disc(size, x, y, radius)
            picture[mask] = 235
            x1, y1, x2, y2 = boxes.tight(mask).tolist()
            entry = {"id": 10 * image_id + place, "image_id": image_id, "category_id": 3, "iscrowd": 0}
            entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "note": "mine"}
            annotations.append(entry | {"segmentation": rle.encode(mask) if place == 0 and image_id != 12 else []})
            masks[entry["id"]] = mask
        cv2.imwrite(str(folder / "images" / f"{image_id}.png"), picture)
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": size[0], "width": size[1]})
    crowd = {"id": 1, "image_id": 11, "category_id": 3, "iscrowd": 1, "bbox": [0, 0, 9, 9], "segmentation": []}
    content = {"images": images, "annotations": [*annotations, crowd], "categories": CATEGORIES, "licenses": [], "x": 1}
    (folder / "train.json").write_text(json.dumps(content))
    return content, masks


def make_unknown_and_outside(folder: pathlib.Path) -> None:
    """Move an image out of its folder, and add annotations of a category and of an image that there are not."""
    content = json.loads((folder / "train.json").read_text())
    (folder / "images/12.png").rename(folder / "12.png")
    content["images"][1]["file_name"] = "../12.png"
    first = content["annotations"][0]
    content["annotations"] += [first | {"id": 901, "category_id": 99}, first | {"id": 902, "image_id": 99}]
    (folder / "train.json").write_text(json.dumps(content))


class Bright(nn.Module):
    """How bright the image is at 28 x 28 points of a box; nothing of class "moon"."""

    produces = frozenset({"boxes", "masks"})

    def predict_masks(self, images, image_sizes, boxes, labels, valid):
        def image(pixels, boxes, labels):
            fractions = (jnp.arange(28) + 0.5) / 28

            def one(box, label):
                x, y = (box[axis] + fractions * (box[axis + 2] - box[axis]) for axis in (0, 1))
                grid = jnp.meshgrid(y - 0.5, x - 0.5, indexing="ij")
                gray = jax.scipy.ndimage.map_coordinates(pixels.mean(-1), grid, 1, mode="nearest")
                return jnp.where(label == 1, gray / 255, 0.0)

            return jax.vmap(one)(boxes, labels)

        return jax.vmap(image)(images.astype(jnp.float32), boxes, labels)


def loaded(model: nn.Module | None = None) -> SimpleNamespace:
    """Return what `runs.loading.load` would of a run with this model."""
    config = maskx_rcnn.get_config("size=tiny,data=shapes,mlp=light")
    config.data.transform.update(canvas=(96, 128), short_sides=(96,), max_long_side=128)
    config.evaluation.batch_size = 2
    categories = Categories((1, 2, 5), ("sun", "star", "moon"))
    return SimpleNamespace(model=model or Bright(), variables={}, config=config, categories=categories, step=30)
