"""Mask^X R-CNN (Hu et al., "Learning to Segment Every Thing", CVPR 2018): all classes have boxes, some have masks.

    python train.py --config=configs/maskx_rcnn.py:masks=voc,schedule=1x --config.data.directory=DIR --workdir=RUN

The defaults are the paper's best system: T takes the class and box weights through two layers with LeakyReLU and a
stopped gradient, the MLP branch is fused, training is end to end. The paper reports 23.7 mask AP on the 60 classes
without masks for R-50-FPN (masks=voc; not verified by a run here).

Variants: mlp (paper, light, none), training (end_to_end, stage_wise), size (full, tiny, tiny_c4, lite),
mask_head (plain, hg20, hg52: hourglasses, see configs/families/rcnn.py; without the MLP branch unless mlp=light),
box_head (mlp, conv: convolutions and a mean, heavier),
backbone (r50, r101, x101_32x8d, x101_64x4d, r50_gn, lite0, r50_c4, r101_c4: the last two on one map, C4),
batch (1, 2, 4, ... 128),
data (prepared, shapes), schedule (1x, 2x), jitter (none, short_sides), masks (voc, nonvoc, all, none, annotated),
start (weights, scratch), dtype (float32, bfloat16), box_losses (no, yes: objects without masks learn them from their
boxes), class_prior (no, yes: masks see where in a region its class is; with box_head=conv or C4). size=tiny is a small
experiment, from its 128-pixel images to its schedule; size=lite is one on a few hundred real pictures, on a pretrained
EfficientNet-Lite0 that is frozen (docs/small_data.md). The fields of T are set as
--config.model.rcnn.weight_transfer.input=cls and so on.
"""

from ml_collections import ConfigDict

from configs import base, variants
from configs.families import rcnn


def get_config(argument: str | None = None) -> ConfigDict:
    """Return the config of a variant."""
    config = rcnn.get_config()
    config.model.rcnn.mask_predictor = "transfer"
    config.model.rcnn.mask_head.mlp = "paper"
    config.data.mask_classes = "voc"
    # What the method is for: masks of classes that had none.
    config.train.best_metric = ("segm/B/AP", "segm/all/AP", "bbox/all/AP")

    def mlp(name: str) -> variants.Change:
        def change(config: ConfigDict) -> None:
            config.model.rcnn.mask_head.mlp = name

        return change

    def stage_wise(config: ConfigDict) -> None:
        # The detector is trained before (as configs/mask_rcnn.py:predictor=none); only the mask branch learns here.
        config.optimizer.untrained = ("(backbone|fpn|rpn|box_head)/.*",)
        config.initialize.new = ("(mask_head|mask_weights)/.*",)

    return base.apply_variants(
        config,
        argument,
        {
            "size": rcnn.SIZE_C4,
            "mask_head": rcnn.MASK_HEAD,
            "box_head": rcnn.BOX_HEAD,
            "mlp": {name: mlp(name) for name in ("paper", "light", "none")},
            **variants.COMMON,
            "backbone": rcnn.BACKBONE_C4,
            # After what says which layers of a backbone are trained: here none is.
            "training": {"end_to_end": lambda config: None, "stage_wise": stage_wise},
            "box_losses": rcnn.BOX_LOSSES,
            "class_prior": rcnn.CLASS_PRIOR,
        },
        rcnn.EXCLUDED_C4,
    )
