"""Backbones with a block a stage, and the image, of which the goldens hold the maps; both sides make them."""

import numpy as np

from benchmarks.parameters import make_parameters, resnet_shapes

STAGE_SIZES = (1, 1, 1, 1)
# Groups of the 3x3 convolutions and channels of each in the first stage.
GROUPS = {"x101_32x8d": (32, 8), "x101_64x4d": (64, 4), "r50_gn": (1, 64)}


def parameters(name: str) -> dict[str, np.ndarray]:
    """Return the parameters of one of `GROUPS` by torchvision's and timm's names."""
    groups, group_width = GROUPS[name]
    shapes = resnet_shapes("", STAGE_SIZES, 64, groups, group_width)
    if name == "r50_gn":
        shapes = {field: shape for field, shape in shapes.items() if "running" not in field}
    return make_parameters(shapes)


def image() -> np.ndarray:
    """Return normalised pixels."""
    return np.random.default_rng(0).standard_normal((1, 64, 96, 3)).astype(np.float32)
