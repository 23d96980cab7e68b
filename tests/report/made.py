"""Made-up evaluations: a ground truth of made-up images, and results with every kind of error."""

import numpy as np

from maskx_jax.coco import rle
from maskx_jax.report.matches import Matches


def results(ground_truth, seed=0, found=0.8):
    """Return COCO results: most objects found, some of them twice, displaced, of another class; some found nowhere."""
    rng = np.random.default_rng(seed)
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    ids = [category["id"] for category in ground_truth["categories"]]
    entries = []
    for annotation in ground_truth["annotations"]:
        size = sizes[annotation["image_id"]]
        mask = rle.decode(rle.of_segmentation(annotation["segmentation"], size))
        for copy in range(1 + (rng.random() < 0.15)):
            if rng.random() > found:
                continue
            score = rng.beta(4, 2) * (1 - 0.4 * copy)
            category = annotation["category_id"] if rng.random() < 0.85 else int(rng.choice(ids))
            shift = int(rng.integers(0, 6)) if rng.random() < 0.7 else int(0.4 * annotation["bbox"][2])
            moved = np.roll(mask, shift, axis=1)
            moved[:, :shift] = False
            if moved.any():
                entries.append(entry(annotation["image_id"], category, moved, score))
    for image_id, (height, width) in sizes.items():
        if rng.random() < 0.3:
            mask = np.zeros((height, width), bool)
            mask[: height // 5, : width // 4] = True
            entries.append(entry(image_id, int(rng.choice(ids)), mask, rng.beta(2, 4)))
    return entries


def entry(image_id, category_id, mask, score):
    encoded = rle.encode(mask)
    box = rle.tight_box(encoded).tolist()
    fields = {"image_id": image_id, "category_id": category_id, "bbox": box}
    return {**fields, "score": float(np.float32(score)), "segmentation": encoded}


def truth(objects, size=100, categories=2):
    """Return a ground truth of boxes: `(image, category, [x, y, w, h], iscrowd)`."""
    images = sorted({image for image, *_ in objects})
    return {
        "images": [{"id": image, "height": size, "width": size, "file_name": f"{image}.png"} for image in images],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, categories + 1)],
        "annotations": [
            {"id": number, "image_id": image, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
            for number, (image, c, box, crowd) in enumerate(objects, start=1)
        ],
    }


def boxes(found):
    """Return results of boxes: `(image, category, [x, y, w, h], score)`."""
    return [{"image_id": i, "category_id": c, "bbox": box, "score": score} for i, c, box, score in found]


def sample(rng, num_images, num_classes):
    """Return the matches of a made-up model on made-up images: at one threshold, of objects and wrong detections."""
    found, objects = [], []
    for image in range(num_images):
        ease = rng.beta(2, 4)
        for label in rng.integers(0, num_classes, rng.integers(1, 4)):
            hit = rng.random() < ease
            objects.append((image, label, not hit))
            if hit:
                found.append((image, label, rng.beta(3, 3), True))
        wrong = rng.integers(0, num_classes, rng.poisson(6 * (1 - ease)))
        found += [(image, label, rng.beta(2, 3), False) for label in wrong]
    image, label, score, right = (np.array(column) for column in zip(*found, strict=True))
    object_image, object_label, missed = (np.array(column) for column in zip(*objects, strict=True))
    return Matches(
        detection=np.arange(len(found)),
        image=image,
        label=label,
        score=score,
        matched=right[None],
        ignored=np.zeros((1, len(found)), bool),
        object_image=object_image,
        object_label=object_label,
        object_number=np.arange(len(objects)),
        missed=missed,
        num_images=num_images,
        num_classes=num_classes,
    )
