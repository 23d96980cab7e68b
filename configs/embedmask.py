"""EmbedMask (Ying et al. 2019; IJCAI 2021): masks in one stage, from embeddings of pixels and of objects, on FCOS.

    python train.py --config=configs/embedmask.py:form=ijcai,schedule=1x --config.data.directory=DIR --workdir=RUN

form=ijcai is the published system: spatial dimensions, a margin for each dimension, the Lovász hinge over the image.
form=arxiv is the first version: the margin is a function of the box, the loss is over the box. Objects without masks
train boxes as all others, and no mask. transfer=on adds what Mask^X R-CNN does: what distinguishes a class is predicted
from the weights that detect it, also for classes without masks.

Variants: form (ijcai, arxiv), transfer (off, on), size (full, tiny),
backbone (r50, r101, x101_32x8d, x101_64x4d, r50_gn, lite0), batch (1, 2, 4, ... 128), data (prepared, shapes),
schedule (1x, 2x), jitter (none, short_sides), masks (all, none, voc, nonvoc, annotated), start (weights, scratch),
dtype (float32, bfloat16). size=tiny is a small experiment, from its 128-pixel images to its schedule.
"""

from ml_collections import ConfigDict

from configs import base, variants
from configs.families import dense


def arxiv(config: ConfigDict) -> None:
    """EmbedMask as first published (arXiv 1912.01954, version 1)."""
    config.model.dense.embed_head.update(form="arxiv", dimensions=32, loss_region="box")
    config.evaluation.mask_threshold = 0.5


def transfer(config: ConfigDict) -> None:
    """Move the embeddings of a class by a function of its detection weights (beyond the papers)."""
    config.model.dense.embed_head.transfer = True


def get_config(argument: str | None = None) -> ConfigDict:
    """Return the config of a variant."""
    config = dense.get_config()
    config.model.dense.masks = "embeddings"
    # The authors' detector, on which their numbers stand.
    config.model.dense.head.update(
        learned_scales=True,
        closed_ranges=True,
        box_weight="centerness",
        box_smoothing=1.0,
        score="product",
        threshold_score=False,
        score_threshold=0.05,
    )
    config.evaluation.mask_threshold = 0.53
    # Scores are products: .25 is half a class and half a centerness.
    config.evaluation.picture_score_threshold = 0.25
    return base.apply_variants(
        config,
        argument,
        {
            "form": {"ijcai": lambda config: None, "arxiv": arxiv},
            "transfer": {"off": lambda config: None, "on": transfer},
            "size": dense.SIZE,
            **variants.COMMON,
        },
        variants.EXCLUDED,
    )
