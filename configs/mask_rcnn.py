"""Mask R-CNN on COCO, its class-agnostic form, and Faster R-CNN.

    python train.py --config=configs/mask_rcnn.py:backbone=r50,schedule=1x --config.data.directory=DIR --workdir=RUN

Variants: predictor (class_specific, class_agnostic, none), size (full, tiny, tiny_c4, lite),
mask_head (plain, hg20, hg52: hourglasses, see configs/families/rcnn.py),
box_head (mlp, conv: convolutions and a mean, heavier),
backbone (r50, r101, x101_32x8d, x101_64x4d, r50_gn, lite0, r50_c4, r101_c4: the last two on one map, C4),
batch (1, 2, 4, ... 128),
data (prepared, shapes), schedule (1x, 2x), jitter (none, short_sides), masks (all, none, voc, nonvoc, annotated),
start (weights, scratch), dtype (float32, bfloat16), box_losses (no, yes: objects without masks learn them from their
boxes), class_prior (no, yes: masks see where in a region its class is; with box_head=conv or C4). size=tiny is a small
experiment, from its 128-pixel images to its schedule; size=lite is one on a few hundred real pictures, on a pretrained
EfficientNet-Lite0 that is frozen (docs/small_data.md).
"""

from ml_collections import ConfigDict

from configs import base, variants
from configs.families import rcnn


def get_config(argument: str | None = None) -> ConfigDict:
    """Return the config of a variant."""

    def predictor(name: str) -> variants.Change:
        def change(config: ConfigDict) -> None:
            config.model.rcnn.mask_predictor = name

        return change

    return base.apply_variants(
        rcnn.get_config(),
        argument,
        {
            "size": rcnn.SIZE_C4,
            "mask_head": rcnn.MASK_HEAD,
            "box_head": rcnn.BOX_HEAD,
            "predictor": {name: predictor(name) for name in ("class_specific", "class_agnostic", "none")},
            **variants.COMMON,
            "backbone": rcnn.BACKBONE_C4,
            "box_losses": rcnn.BOX_LOSSES,
            "class_prior": rcnn.CLASS_PRIOR,
        },
        rcnn.EXCLUDED_C4,
    )
