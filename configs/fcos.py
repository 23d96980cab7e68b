"""FCOS (Tian et al., ICCV 2019) on COCO: boxes in one stage.

    python train.py --config=configs/fcos.py:schedule=1x --config.data.directory=DIR --workdir=RUN

Points lie in the middle of their cells and strides are exact; weights of torchvision bring torchvision's geometry.

Variants: size (full, tiny), backbone (r50, r101, x101_32x8d, x101_64x4d, r50_gn, lite0), batch (1, 2, 4, ... 128),
data (prepared, shapes), schedule (1x, 2x), jitter (none, short_sides), masks (all, none, voc, nonvoc, annotated),
start (weights, scratch), dtype (float32, bfloat16). size=tiny is a small experiment, from its 128-pixel images to its
schedule.
"""

from ml_collections import ConfigDict

from configs import base, variants
from configs.families import dense


def get_config(argument: str | None = None) -> ConfigDict:
    """Return the config of a variant."""
    config = dense.get_config()
    config.train.best_metric = ("bbox/all/AP",)
    return base.apply_variants(
        config,
        argument,
        {
            "size": dense.SIZE,
            **variants.COMMON,
        },
        variants.EXCLUDED,
    )
