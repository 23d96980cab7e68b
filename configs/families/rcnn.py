"""Two-stage detectors: Faster, Mask and Mask^X R-CNN on FPN or C4, with the values of Mask R-CNN on COCO."""

from ml_collections import ConfigDict

from configs import base, variants

# What T of the small sizes begins with: classes without masks gain, on the synthetic set and on a few hundred pictures.
# The full size begins as the paper's.
SMALL_INIT = 0.3


def get_config() -> ConfigDict:
    """Return the base config with a model of this family.

    The sections of `model.rcnn` are the fields of the module of that name in `maskx_jax.models.rcnn`, where they are
    explained.
    """
    config = base.get_config()
    config.model.family = "rcnn"
    config.model.rcnn = ConfigDict(
        {
            # "none" (boxes only), "class_specific", "class_agnostic", "transfer" (Mask^X R-CNN) or "multinomial" (a
            # softmax over the classes in every pixel).
            "mask_predictor": "class_specific",
            # "none", or "heatmaps": keypoints beside boxes, and beside masks if there are any.
            "keypoint_predictor": "none",
            # Whether the mask branch sees where in a region its class is (docs/class_prior.md). The box head must take
            # the mean of a map, as "conv" and C4's do.
            "class_prior": False,
            "fpn": {"channels": 256},
            "rpn": {
                "channels": 256,
                "anchor_sizes": (32.0, 64.0, 128.0, 256.0, 512.0),
                "aspect_ratios": (0.5, 1.0, 2.0),
                # Exact: torchvision's anchors are rounded, and 36 pixels off in P6's last row.
                "anchor_convention": "detectron2",
                "boundary_threshold": 0.0,
                "foreground_threshold": 0.7,
                "background_threshold": 0.3,
                "crowd_threshold": 0.7,
                "num_samples": 256,
                "foreground_fraction": 0.5,
                "pre_nms_top_k": (2000, 1000),
                "post_nms_top_k": (1000, 1000),
                "smooth_l1_beta": 1 / 9,
                "nms_threshold": 0.7,
                "min_size": 1e-3,
            },
            # Regions are pooled as the weights expect it: "detectron2" is aligned, half a feature pixel up and left of
            # "torchvision". A detector's file brings its own convention, anchors and number of points.
            "roi_align": {
                "operation": "roi_align",
                "convention": "detectron2",
                # Points along each side of a bin. 0 is adaptive, as in detectron2: it takes about four times as long.
                "sampling_ratio": 2,
            },
            "box_head": {
                "body": "mlp",
                "hidden": 1024,
                "conv_channels": (512, 1024, 1024, 1024),
                "resolution": 7,
                "num_samples": 512,
                "foreground_fraction": 0.25,
                "foreground_threshold": 0.5,
                "crowd_threshold": 0.7,
                "box_weights": (10.0, 10.0, 5.0, 5.0),
                "smooth_l1_beta": 1.0,
                "score_threshold": 0.05,
                "nms_threshold": 0.5,
                "pre_nms_top_k": 2000,
            },
            "mask_head": {
                "channels": 256,
                "num_convs": 4,
                "body": "plain",
                "stage_channels": (128, 128, 192),
                "stage_blocks": (1, 2, 2),
                "remat": base.may_change(False),
                "resolution": 14,
                "mlp": "none",
                "mlp_channels": 8,
                "train_on": "proposals",
                "num_samples": 128,
                # As fractions: masks and above all their borders are better, see docs/results.md.
                "targets": "averaged",
            },
            "weight_transfer": {
                "input": "cls+box",
                "num_layers": 2,
                "activation": "leaky_relu",
                "stop_gradient": True,
                "embedding_size": 300,
                "init_scale": 1.0,
            },
            # Masks of objects without masks are learned from their boxes: the variant box_losses=yes enables it.
            "box_supervision": {
                "enabled": False,
                "num_samples": 32,
                "widening": 1.2,
                "dilation": 1,
                "similarity": 0.3,
                "projection_weight": 1.0,
                "pairwise_weight": 1.0,
                "background_weight": 0.3,
                "warmup_steps": 10_000,
            },
            "keypoint_head": {
                # As many as the data's skeleton has.
                "num_keypoints": 17,
                "channels": 512,
                "num_convs": 8,
                "resolution": 14,
                "num_samples": 128,
                "normalize": "visible",
                "loss_weight": 1.0,
            },
        }
    )
    base.collect_marks(config)
    return config


def tiny(config: ConfigDict) -> None:
    """Change to a small network for 128-pixel images on a CPU: tests, the demo, and first experiments."""
    variants.small(config)
    model = config.model.rcnn
    model.fpn.channels = 64
    model.rpn.update(
        channels=64,
        anchor_sizes=(24.0, 40.0, 64.0, 96.0, 128.0),
        boundary_threshold=-1.0,
        num_samples=128,
        pre_nms_top_k=(200, 200),
        post_nms_top_k=(100, 100),
    )
    model.box_head.update(hidden=256, conv_channels=(32, 128), num_samples=64, pre_nms_top_k=200)
    model.mask_head.update(channels=64, num_convs=2, num_samples=8, mlp_channels=2)
    model.weight_transfer.init_scale = SMALL_INIT
    # As many objects as an image of the synthetic set has.
    model.box_supervision.num_samples = 4
    model.keypoint_head.update(channels=64, num_convs=4, num_samples=16)


def lite(config: ConfigDict) -> None:
    """Change to small heads on pretrained EfficientNet-Lite0: a few hundred real pictures on a CPU."""
    variants.lite(config)
    model = config.model.rcnn
    model.fpn.channels = 64
    model.rpn.update(
        channels=64,
        anchor_sizes=(16.0, 32.0, 64.0, 128.0, 256.0),
        pre_nms_top_k=(500, 500),
        post_nms_top_k=(250, 250),
    )
    model.box_head.update(hidden=256, conv_channels=(64, 256), num_samples=128)
    model.mask_head.update(channels=64, num_samples=16)
    model.weight_transfer.init_scale = SMALL_INIT
    model.box_supervision.num_samples = 16


def is_small(config: ConfigDict) -> bool:
    """Return whether the size is one for a CPU: the pyramid has a quarter of the channels."""
    narrow: bool = config.model.rcnn.fpn.channels == 64
    return narrow


def hourglass(layers: int) -> variants.Change:
    """Return the change to masks by an hourglass of 20 or 52 layers, trained on ground-truth boxes (DeepMAC).

    Regions of 32 x 32 cells, masks of 64 x 64 and a quarter of the plain head's channels are what Birodkar et al. 2021
    took for Mask R-CNN. The small sizes have 16 x 16 cells and masks of 32 x 32; there 52 layers have a stage less,
    whose blocks are the last one's.
    """

    def change(config: ConfigDict) -> None:
        head, small = config.model.rcnn.mask_head, is_small(config)
        factors, blocks = {
            (20, False): ((2, 2, 3), (1, 2, 2)),
            (20, True): ((2, 2, 3), (1, 2, 2)),
            (52, False): ((2, 2, 3, 3, 3, 4), (2, 2, 2, 2, 2, 4)),
            (52, True): ((2, 2, 3, 3, 4), (2, 2, 2, 2, 8)),
        }[layers, small]
        channels = head.channels // 4
        head.update(body="hourglass", channels=channels, resolution=16 if small else 32)
        head.update(stage_channels=tuple(factor * channels for factor in factors), stage_blocks=blocks)
        # An MLP on as many features would be a thousand million weights.
        head.update(train_on="gt_boxes", mlp="none")

    return change


def c4(config: ConfigDict) -> None:
    """Change from FPN to C4: one map at stride 16, and res5 on the regions in place of hidden layers of the heads."""
    config.model.backbone.kind = "resnet_c4"
    model = config.model.rcnn
    # As many as res4 has.
    model.rpn.channels = 16 * config.model.backbone.width
    model.box_head.update(body="mean", resolution=14)
    model.mask_head.num_convs = 0


def full_c4(backbone: variants.Change) -> variants.Change:
    """Return the change to a backbone in the form of C4, with as many proposals as Detectron has for it."""

    def change(config: ConfigDict) -> None:
        backbone(config)
        c4(config)
        config.model.rcnn.rpn.update(pre_nms_top_k=(12000, 6000), post_nms_top_k=(2000, 1000))

    return change


def tiny_c4(config: ConfigDict) -> None:
    """Change to the small network in the form of C4."""
    tiny(config)
    c4(config)


def conv_box_head(config: ConfigDict) -> None:
    """Change the box head's hidden layers to convolutions and the mean over what they return (OPMask)."""
    config.model.rcnn.box_head.body = "conv"


def class_prior(config: ConfigDict) -> None:
    """Show the mask branch where in a region its class is; the box head must be `conv`, or C4's."""
    config.model.rcnn.class_prior = True


def box_losses(config: ConfigDict) -> None:
    """Learn masks of objects without masks from their boxes; the warm-up is a ninth of the steps, as BoxInst's."""
    supervision = config.model.rcnn.box_supervision
    supervision.update(enabled=True, warmup_steps=config.train.num_steps // 9)
    if config.data.mask_classes == "none":
        # No mask shows what background is: the borders are wider. Nor does any show what is object: with more weight on
        # the background, masks of pictures became thin streaks.
        supervision.update(widening=1.6, background_weight=0.1)


# The variant `box_losses`: after the schedule and the masks, at which it looks.
BOX_LOSSES = {"no": lambda config: None, "yes": box_losses}
# The variant `box_head`; C4 has its own.
BOX_HEAD = {"mlp": lambda config: None, "conv": conv_box_head}
# The variant `class_prior`.
CLASS_PRIOR = {"no": lambda config: None, "yes": class_prior}
# The variant `size`.
SIZE = {"full": lambda config: None, "tiny": tiny, "lite": lite}
# The variant `mask_head`, which comes after the size and before `mlp`.
MASK_HEAD = {"plain": lambda config: None, "hg20": hourglass(20), "hg52": hourglass(52)}
# The variants `size` and `backbone` with the form C4 too, and what excludes each other.
SIZE_C4 = {**SIZE, "tiny_c4": tiny_c4}
BACKBONE_C4 = {
    **variants.BACKBONE,
    "r50_c4": full_c4(variants.resnet50),
    "r101_c4": full_c4(variants.resnet101),
}
EXCLUDED_C4 = {
    **variants.EXCLUDED,
    "size=tiny_c4": (*variants.EXCLUDED["size=tiny"], "box_head"),
    **{f"backbone={name}": ("box_head",) for name in ("r50_c4", "r101_c4")},
    "mask_head=hg20": ("mlp=paper",),
    "mask_head=hg52": ("mlp=paper",),
}
