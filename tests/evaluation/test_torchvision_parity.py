"""Our pasting against what torchvision returned for the same inputs (`python -m tests.golden.make_ops`)."""

import pathlib

import numpy as np
import pytest
from faster_coco_eval import mask as mask_coder

from maskx_jax.coco import rle
from maskx_jax.evaluation import paste_masks
from tests.golden import op_inputs

GOLDENS = np.load(pathlib.Path(op_inputs.__file__).with_name("ops.npz"))

KINDS = ("smooth", "noisy")
BOXES = op_inputs.paste_boxes()
HEIGHT, WIDTH = op_inputs.PASTE_IMAGE


def pasted(kind):
    """Yield for each mask its region, the region's origin, and the bitmap of the full image."""
    for mask, box in zip(op_inputs.paste_masks()[kind], BOXES.values(), strict=True):
        region, (top, left) = paste_masks.paste_mask(mask, box, HEIGHT, WIDTH, grid="integer")
        bitmap = np.zeros((HEIGHT, WIDTH), bool)
        bitmap[top : top + region.shape[0], left : left + region.shape[1]] = region
        yield region, (top, left), bitmap


@pytest.mark.parametrize("kind", KINDS)
def test_pasted_masks_equal_torchvision(kind):
    expected = np.unpackbits(GOLDENS[f"paste/{kind}"], axis=-1, count=WIDTH).astype(bool)
    actual = np.stack([bitmap for _, _, bitmap in pasted(kind)])
    different = (actual != expected).sum(axis=(1, 2))
    # Not over the images, which are mostly empty: over the pixels that either takes as object.
    allowed = 0.001 * (actual | expected).sum(axis=(1, 2))
    assert different.sum() < allowed.sum()
    assert [name for name, above in zip(BOXES, different > allowed, strict=True) if above] == []


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_gives_back_the_bitmap(kind):
    for region, origin, bitmap in pasted(kind):
        decoded = mask_coder.decode(rle.encode(region, origin, (HEIGHT, WIDTH)))
        np.testing.assert_array_equal(decoded, bitmap)


def test_nearly_all_boxes_hold_pixels_of_their_mask():
    empty = {
        kind: [name for name, (*_, bitmap) in zip(BOXES, pasted(kind), strict=True) if not bitmap.any()]
        for kind in KINDS
    }
    assert empty == {"smooth": ["touching the last column from outside", "tiny in the corner"], "noisy": []}
