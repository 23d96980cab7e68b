"""Files of fcos_core, the code of FCOS' authors, and of EmbedMask, which stands on it; both on maskrcnn-benchmark."""

import dataclasses
from collections.abc import Collection

from maskx_jax.weights.layouts.layout import (
    BGR,
    STRIDE_IN_1X1,
    STRIDE_IN_3X3,
    TORCH,
    Layout,
    level_scales,
    pyramid_levels,
    rules_of_points,
    torch_resnet,
    towers,
)

_PIXELS = {"pixels.mean": (102.9801, 115.9465, 122.7717)}


def _modules(ours: Collection[str], names: Collection[str]) -> dict[str, str]:
    modules = torch_resnet(ours, "backbone.body.")
    modules |= {"backbone/stem": "backbone.body.stem.conv1", "backbone/stem_norm": "backbone.body.stem.bn1"}
    below, above = pyramid_levels(ours)
    for level in below:
        # They count from the first stage.
        modules[f"fpn/lateral{level}"] = f"backbone.fpn.fpn_inner{level - 1}"
        modules[f"fpn/output{level}"] = f"backbone.fpn.fpn_layer{level - 1}"
    modules |= {f"fpn/output{level}": f"backbone.fpn.top_blocks.p{level}" for level in above}
    sequences = {
        "head/class_tower": "cls_tower",
        "head/box_tower": "bbox_tower",
        "embed_head/pixel_tower": "mask_tower",
    }
    modules |= towers(ours, {tower: f"rpn.head.{sequence}" for tower, sequence in sequences.items()})
    modules |= level_scales(
        ours, {"head/scale": "rpn.head.scales", "embed_head/margin_scale": "rpn.head.margin_scales"}
    )
    # The first version of EmbedMask has no dimensions of place, and so no others.
    other = "other_" if "embed_head/pixel_position" in ours else ""
    return modules | {
        "head/classification": "rpn.head.cls_logits",
        "head/boxes": "rpn.head.bbox_pred",
        "head/centerness": "rpn.head.centerness",
        "embed_head/pixel_position": "rpn.head.pixel_spatial_embed_pred",
        "embed_head/pixel_embedding": f"rpn.head.pixel_{other}embed_pred",
        "embed_head/object_position": "rpn.head.proposal_spatial_embed_pred",
        "embed_head/object_embedding": f"rpn.head.proposal_{other}embed_pred",
        "embed_head/margin": "rpn.head.proposal_margin_pred",
        "embed_head/position_scale": "rpn.head.position_scale.scale",
    }


FCOS_CORE = Layout(
    name="fcos_core",
    signature=r"rpn\.head\.cls_tower\.0\.weight",
    modules=_modules,
    backbone_conventions=BGR | STRIDE_IN_1X1 | _PIXELS,
    dense_conventions=rules_of_points("fcos_core"),
    # Its frozen BatchNorm divides by the variance as it is.
    epsilon=0.0,
    **TORCH,
)
# ResNeXt, trained with Caffe2.
RESNEXT = dataclasses.replace(
    FCOS_CORE,
    name="fcos_core_resnext",
    backbone_conventions={**FCOS_CORE.backbone_conventions, **STRIDE_IN_3X3},
)
