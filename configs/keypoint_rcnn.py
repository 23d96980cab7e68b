"""Keypoint R-CNN: Mask R-CNN's human pose estimation (He et al., ICCV 2017, section 5), with masks or without.

    python train.py --config=configs/keypoint_rcnn.py:schedule=1x --config.data.directory=DIR --workdir=RUN

The values are detectron2's where they differ from Mask R-CNN's: more proposals, a smoother loss of boxes, short sides
drawn from 640 to 800. The classes are those of the data (person), and its skeleton has as many keypoints as
`model.rcnn.keypoint_head.num_keypoints` says; objects without keypoints train boxes and masks only.

Variants: masks (no, yes: masks beside keypoints), size (full, tiny, lite),
backbone (r50, r101, x101_32x8d, x101_64x4d, r50_gn, lite0), batch (1, 2, 4, ... 128), data (prepared, shapes),
schedule (1x, 2x), jitter (short_sides, none), start (weights, scratch), dtype (float32, bfloat16). size=tiny is a
small experiment, from its 128-pixel images to its schedule; size=lite is one on a few hundred real pictures, on a
pretrained EfficientNet-Lite0 that is frozen (docs/small_data.md).
"""

from ml_collections import ConfigDict

from configs import base, variants
from configs.families import rcnn


def get_config(argument: str | None = None) -> ConfigDict:
    """Return the config of a variant."""
    config = rcnn.get_config()
    config.model.rcnn.update(keypoint_predictor="heatmaps", mask_predictor="none")
    # A thousand proposals an image cost box AP: Detectron has two thousand a batch of two.
    config.model.rcnn.rpn.post_nms_top_k = (1500, 1000)
    # Keypoints get worse with plain L1 (detectron2).
    config.model.rcnn.box_head.smooth_l1_beta = 0.5
    variants.short_sides(config)
    config.train.best_metric = ("keypoints/all/AP", "segm/all/AP", "bbox/all/AP")

    def one_short_side(config: ConfigDict) -> None:
        config.data.transform.short_sides = (800,)

    def shapes(config: ConfigDict) -> None:
        variants.shapes(config)
        # Four classes that are easily told apart: what is asked is where their keypoints lie.
        config.data.shapes.update(keypoints=True, num_hues=4, num_textures=1, pair_fraction=0.0)
        config.model.rcnn.keypoint_head.num_keypoints = 5

    def masks(config: ConfigDict) -> None:
        config.model.rcnn.mask_predictor = "class_specific"

    return base.apply_variants(
        config,
        argument,
        {
            "size": rcnn.SIZE,
            **variants.COMMON,
            "jitter": {"short_sides": variants.short_sides, "none": one_short_side},
            "data": {"prepared": lambda config: None, "shapes": shapes},
            "masks": {"no": lambda config: None, "yes": masks},
        },
        variants.EXCLUDED,
    )
