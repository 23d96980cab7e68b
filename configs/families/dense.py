"""One-stage detectors: FCOS and EmbedMask, with the values that FCOS has on COCO."""

from ml_collections import ConfigDict

from configs import base, variants


def get_config() -> ConfigDict:
    """Return the base config with a model of this family.

    The sections of `model.dense` are the fields of the module of that name in `maskx_jax.models.dense`, where they are
    explained.
    """
    config = base.get_config()
    config.model.family = "dense"
    config.model.dense = ConfigDict(
        {
            # "none" (boxes only, FCOS) or "embeddings" (EmbedMask).
            "masks": "none",
            "fpn": {"channels": 256},
            "head": {
                "channels": 256,
                "num_convs": 4,
                "learned_scales": False,
                # In the middle of the cells. "torchvision": at their top left; its files bring that.
                "points": "centre",
                "level_sizes": (64.0, 128.0, 256.0, 512.0),
                "closed_ranges": False,
                "radius": 1.5,
                "ignore_crowds": True,
                "box_weight": "none",
                "box_smoothing": 0.0,
                # Of all devices. torchvision: as many images as a device has.
                "images_per_denominator": 0,
                "quality": "centerness",
                "score": "root",
                "threshold_score": True,
                "score_threshold": 0.2,
                "pre_nms_top_k": 1000,
                "nms_threshold": 0.6,
            },
            "embed_head": {
                "form": "ijcai",
                "dimensions": 16,
                "channels": 256,
                "num_convs": 4,
                "prior_margin": 2.0,
                "mask_loss": "lovasz",
                "loss_region": "image",
                "coverage": 0.5,
                "sample_in_mask": False,
                "loss_weight": 0.5,
                "smooth_weight": 0.1,
                # Whether classes shift embeddings and margins by a function of their detection weights, as in Mask^X.
                "transfer": False,
                "resolution": 80,
                # Pixels, an eighth of the short side of the images.
                "unit": 100.0,
            },
        }
    )
    config.optimizer.learning_rate = 0.01
    return config


def tiny(config: ConfigDict) -> None:
    """Change to a small network for 128-pixel images on a CPU: tests and first experiments."""
    variants.small(config)
    model = config.model.dense
    model.fpn.channels = 64
    # All objects of an image of 128 pixels belong to P3. A second convolution with GroupNorm in the towers costs more
    # than half of what a short training learns of the classes.
    model.head.update(channels=64, num_convs=1, pre_nms_top_k=100)
    # A score of .2 passes little of what a short training makes.
    model.head.score_threshold = 0.05
    config.evaluation.picture_score_threshold = 0.2
    # Both sides are of 128 pixels, not 800.
    model.embed_head.update(channels=64, num_convs=1, unit=16.0, resolution=56)


# The variant `size`.
SIZE = {"full": lambda config: None, "tiny": tiny}
