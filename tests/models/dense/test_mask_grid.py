"""Whether a grid over the box holds what the embeddings say of the whole image."""

import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from maskx_jax.coco import rle
from maskx_jax.evaluation.paste_masks import paste_mask
from maskx_jax.models.dense.embed_head import Embeddings, EmbedMaskHead

CANVAS = (1344, 1344)
THRESHOLD = 0.53
# The authors look for pixels in the box and two cells of the map around it.
BORDER = 8


def distances(mask: np.ndarray) -> np.ndarray:
    """Return squared distances whose probabilities are the coverage of the cells of stride 4, a little blurred."""
    padded = np.zeros(CANVAS, np.float32)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    covered = padded.reshape(CANVAS[0] // 4, 4, CANVAS[1] // 4, 4).mean(axis=(1, 3))
    return -np.log(np.clip(cv2.GaussianBlur(covered, (3, 3), 0.8), 1e-4, 1 - 1e-4))


def full_image(distances: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the mask as the authors compute it: log-probabilities brought to the image's size, and compared there."""
    logs = -cv2.resize(distances, CANVAS[::-1], interpolation=cv2.INTER_LINEAR)[:height, :width]
    y, x = np.mgrid[:height, :width] + 0.5
    inside = (x > box[0] - BORDER) & (x < box[2] + BORDER) & (y > box[1] - BORDER) & (y < box[3] + BORDER)
    return (logs > np.log(THRESHOLD)) & inside


def test_the_grid_of_the_box_is_the_mask_of_the_full_image(coco_mini):
    content = json.loads((coco_mini / "annotations/instances_val2017.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    # Of smaller ones the map of stride 4 may hold nothing.
    annotations = [a for a in content["annotations"] if not a["iscrowd"] and a["area"] > 100]
    # The longest, for which a grid is coarsest, and as many of every length.
    by_length = sorted(annotations, key=lambda a: -max(a["bbox"][2:]) / min(sizes[a["image_id"]]))
    chosen = {"long": by_length[:12], "all": by_length[:: len(by_length) // 12]}
    origin, one, zero = jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1)), jnp.zeros((1, 1), int)
    head = EmbedMaskHead()
    detect = jax.jit(
        lambda d, box: head.detect(Embeddings(jnp.sqrt(d)[None, ..., None], origin, one), box, zero + 1, zero)
    )
    for name, some in chosen.items():
        overlaps = []
        for annotation in some:
            height, width = sizes[annotation["image_id"]]
            bitmap = rle.draw_bitmap(annotation["segmentation"], (height, width))
            scale = min(800 / min(height, width), 1333 / max(height, width))
            height, width = round(height * scale), round(width * scale)
            mask = cv2.resize(bitmap.astype(np.float32), (width, height)) >= 0.5
            rows, columns = np.nonzero(mask)
            box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
            of_image = distances(mask)
            expected = full_image(of_image, box, height, width)
            grid = np.asarray(detect(of_image, box[None, None]))[0, 0]
            region, (top, left) = paste_mask(grid, box, height, width, THRESHOLD)
            found = np.zeros((height, width), bool)
            found[top : top + region.shape[0], left : left + region.shape[1]] = region
            overlaps.append((found & expected).sum() / (found | expected).sum())
        assert np.mean(overlaps) >= 0.99, (name, overlaps)
