"""A data source: one bright square in each image, drawn when it is asked for."""

import numpy as np

from maskx_jax.coco.categories import Categories
from maskx_jax.data.records import PACKED_SHAPE, Record, identity_of


class Squares:
    categories = Categories((1, 2), ("small square", "large square"))
    skeleton = None

    def __init__(self, num_images, seed, side=64):
        rng = np.random.default_rng(seed)
        self.image_ids = np.arange(1, num_images + 1)
        self.sizes = np.full((num_images, 2), side)
        self.image_labels = rng.integers(1, 3, (num_images, 1))
        self.image_has_mask = np.ones((num_images, 1), bool)
        corners = rng.integers(0, side // 2, (num_images, 2))
        self.boxes = np.concatenate([corners, corners + side // 4 * self.image_labels], axis=1).astype(np.float32)
        self.identity = identity_of(self.categories, num_images, self.sizes, self.image_labels, self.boxes)

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        height, width = self.sizes[index].tolist()
        image = np.full((height, width, 3), 90, np.uint8)
        x1, y1, x2, y2 = self.boxes[index].astype(int)
        image[y1:y2, x1:x2] = 220
        return Record(
            image=image,
            image_id=int(self.image_ids[index]),
            size=(height, width),
            boxes=self.boxes[[index]],
            labels=self.image_labels[index].astype(np.int32),
            # The mask fills its frame.
            masks=np.full((1, *PACKED_SHAPE), 255, np.uint8),
            mask_frames=self.boxes[[index]],
            has_mask=self.image_has_mask[index],
            is_crowd=np.zeros(1, bool),
        )

    def coco_ground_truth(self):
        images = [
            {"id": image_id, "height": height, "width": width, "file_name": f"{image_id}.png"}
            for image_id, (height, width) in zip(self.image_ids.tolist(), self.sizes.tolist(), strict=True)
        ]
        annotations = []
        for image, label, (x1, y1, x2, y2) in zip(images, self.image_labels, self.boxes.tolist(), strict=True):
            entry = {"id": image["id"], "image_id": image["id"], "category_id": int(label[0]), "iscrowd": 0}
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            annotations.append(entry | box | {"segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]})
        return {"images": images, "annotations": annotations, "categories": self.categories.to_coco()}


# An entry of `SOURCES` in maskx_jax/data/sources.py; config.data.squares is its section.
def open_squares(data, training, seed):
    return Squares(data["squares"]["num_images"], seed=2 * seed + training)
