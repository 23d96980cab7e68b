"""A synthetic set that asks the question of partial supervision, rendered on demand.

A category is a hue and a texture ("red solid", "blue dotted"); the outline says nothing about it. Most objects come in
interlocked pairs of different categories whose boxes nearly coincide, so a box does not say which pixels are meant: a
mask head has to know what the category looks like, and for categories without masks it has to learn that from boxes.
With `keypoints` every object bears marks whose places are known; see `marks`.

Image `index` is a pure function of (seed, index) and of the options. No file is read and none is written.
"""

import functools
import json
from typing import Any

import numpy as np

from maskx_jax.coco import boxes, rle
from maskx_jax.coco.categories import Categories
from maskx_jax.coco.keypoints import to_annotation
from maskx_jax.data import records
from maskx_jax.data.shapes.marks import SKELETON, locate
from maskx_jax.data.shapes.painting import HUES, TEXTURES, paint
from maskx_jax.data.shapes.scene import SUPERSAMPLING, Scene, crowd, pair, place, single, visible_masks


class ShapesSource:
    """The synthetic set as a `records.Source`.

    Args:
      num_images: number of images; image `index` does not depend on it.
      seed: of the whole set. Use another seed for the validation images.
      image_size: side of the square images, or (smallest, largest) side of images of every orientation.
      num_hues: how many of `HUES` are used.
      num_textures: how many of `TEXTURES` are used. There are `num_hues * num_textures` categories.
      max_objects: largest number of objects of an image, crowds not counted. A pair counts as two.
      pair_fraction: probability that a pair is placed where there is room for two more objects.
      crowd_fraction: share of the images that hold a crowd, one region of many small objects of one category.
      empty_fraction: share of the images without any object.
      keypoints: whether objects have keypoints, and marks where they are. All else is the same with and without.

    Raises:
      ValueError: an option is out of range.
    """

    def __init__(
        self,
        num_images: int,
        seed: int,
        image_size: int | tuple[int, int] = 128,
        num_hues: int = 10,
        num_textures: int = 6,
        max_objects: int = 4,
        pair_fraction: float = 0.7,
        crowd_fraction: float = 0.04,
        empty_fraction: float = 0.02,
        keypoints: bool = False,
    ) -> None:
        smallest, largest = (image_size, image_size) if isinstance(image_size, int) else image_size
        if not 32 <= smallest <= largest:
            raise ValueError(f"image_size is {image_size}; expected sides of 32 or more, the smallest first")
        for name, value, low, high in (
            ("num_images", num_images, 0, float("inf")),
            ("num_hues", num_hues, 1, len(HUES)),
            ("num_textures", num_textures, 1, len(TEXTURES)),
            ("max_objects", max_objects, 1, 100),
            ("pair_fraction", pair_fraction, 0, 1),
            ("crowd_fraction", crowd_fraction, 0, 1),
            ("empty_fraction", empty_fraction, 0, 1),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; expected a value from {low} to {high}")
        if num_hues * num_textures < 2 and pair_fraction > 0:
            raise ValueError("a pair needs two categories; raise num_hues or num_textures, or set pair_fraction to 0")
        self.seed = seed
        self.max_objects = max_objects
        self.pair_fraction = pair_fraction
        self.crowd_fraction = crowd_fraction
        self.empty_fraction = empty_fraction
        self.skeleton = SKELETON if keypoints else None
        self._looks = [(hue, texture) for hue in list(HUES)[:num_hues] for texture in list(TEXTURES)[:num_textures]]
        self.categories = Categories(
            tuple(range(1, len(self._looks) + 1)), tuple(f"{hue} {texture}" for hue, texture in self._looks)
        )
        self.sizes = np.random.default_rng((seed, 0)).integers(smallest, largest + 1, (num_images, 2))
        self.image_ids = np.arange(1, num_images + 1)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> records.Record:
        """Render image `index`.

        Raises:
          IndexError: there is no such image.
        """
        scene = self._scene(index)
        masks = visible_masks(scene)
        packed = np.zeros((len(masks), *records.PACKED_SHAPE), np.uint8)
        frames = np.zeros((len(masks), 4), np.float32)
        for slot, mask in enumerate(masks):
            packed[slot], frames[slot] = records.crop_bitmap(mask)
        height, width = self.sizes[index].tolist()
        keypoints = locate(scene) if self.skeleton else None
        return records.Record(
            image=paint(scene, self._looks, np.random.default_rng((self.seed, 2, index)), keypoints),
            image_id=int(self.image_ids[index]),
            size=(height, width),
            boxes=frames.copy(),
            labels=np.array(scene.labels, np.int32),
            masks=packed,
            mask_frames=frames,
            has_mask=np.ones(len(masks), bool),
            is_crowd=np.array(scene.is_crowd, bool),
            keypoints=keypoints,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What distinguishes this set from others; the sizes, the seed and the other options stand for its images."""
        options = [self.seed, self.max_objects, self.pair_fraction, self.crowd_fraction, self.empty_fraction]
        marks = [str(self.skeleton)] if self.skeleton else []
        return records.identity_of(self.categories, len(self), self.sizes, json.dumps(options), *marks)

    @functools.cached_property
    def image_labels(self) -> list[np.ndarray]:
        """For each image the labels of its non-crowd objects."""
        scenes = map(self._scene, range(len(self)))
        return [np.array(x.labels, np.int32)[~np.array(x.is_crowd, bool)] for x in scenes]

    @property
    def image_has_mask(self) -> list[np.ndarray]:
        """For each image whether its non-crowd objects have masks: all have."""
        return [np.ones(len(labels), bool) for labels in self.image_labels]

    def coco_ground_truth(self) -> dict:
        """Return the annotations as a COCO instances dictionary; segmentations are compressed RLE."""
        images: list[dict] = []
        annotations: list[dict] = []
        for index, (image_id, (height, width)) in enumerate(
            zip(self.image_ids.tolist(), self.sizes.tolist(), strict=True)
        ):
            images.append({"id": image_id, "height": height, "width": width, "file_name": f"{image_id:012d}.png"})
            scene = self._scene(index)
            keypoints = locate(scene) if self.skeleton else None
            for slot, mask in enumerate(visible_masks(scene)):
                x1, y1, x2, y2 = boxes.tight(mask)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": self.categories.ids[scene.labels[slot] - 1],
                        "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                        "area": int(mask.sum()),
                        "iscrowd": int(scene.is_crowd[slot]),
                        "segmentation": rle.encode(mask),
                    }
                )
                if keypoints is not None:
                    one = keypoints.points[slot], keypoints.labelled[slot], keypoints.visible[slot]
                    annotations[-1] |= to_annotation(*one)
        named = self.skeleton.to_coco() if self.skeleton else {}
        categories = [category | named for category in self.categories.to_coco()]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _scene(self, index: int) -> Scene:
        """Place the objects of an image."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of a set of {len(self)}")
        rng = np.random.default_rng((self.seed, 1, index))
        height, width = self.sizes[index].tolist()
        scene = Scene([], [], np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8))
        kind = rng.random()
        if kind < self.empty_fraction:
            return scene
        if kind < self.empty_fraction + self.crowd_fraction:
            place(scene, rng, lambda: [crowd(rng)], self._draw_labels(rng, 1), (0.4, 0.65), is_crowd=True)
        remaining = int(rng.integers(1, self.max_objects + 1))
        while remaining > 0:
            if remaining >= 2 and rng.random() < self.pair_fraction:
                place(scene, rng, lambda: pair(rng), self._draw_labels(rng, 2), (0.4, 0.7))
                remaining -= 2
            else:
                place(scene, rng, lambda: [single(rng)], self._draw_labels(rng, 1), (0.25, 0.6))
                remaining -= 1
        return scene

    def _draw_labels(self, rng: np.random.Generator, count: int) -> list[int]:
        return (1 + rng.choice(len(self.categories), count, replace=False)).tolist()
