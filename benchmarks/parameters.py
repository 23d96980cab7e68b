"""Parameters by torchvision's names, each a function of its name, so that no weights need to be stored.

NumPy only: a peer and the makers of goldens read them without JAX.
"""

import zlib

import numpy as np

NUM_CLASSES = 90
STAGE_SIZES = (3, 4, 6, 3)


def parameter_shapes(
    num_classes: int = NUM_CLASSES,
    stage_sizes: tuple[int, ...] = STAGE_SIZES,
    width: int = 64,
    channels: int = 256,
    hidden: int = 1024,
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of torchvision's `maskrcnn_resnet50_fpn`, with background in row 0 of the predictors."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        for field in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{field}"] = (channels,)

    def layer(name: str, *shape: int, bias: int | None = None) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = (shape[0] if bias is None else bias,)

    body = "backbone.body"
    shapes[f"{body}.conv1.weight"] = (width, 3, 7, 7)
    norm(f"{body}.bn1", width)
    inputs = width
    for stage, size in enumerate(stage_sizes, 1):
        width = inputs if stage == 1 else 2 * width
        for block in range(size):
            name = f"{body}.layer{stage}.{block}"
            for i, shape in enumerate([(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)], 1):
                shapes[f"{name}.conv{i}.weight"] = shape
                norm(f"{name}.bn{i}", shape[0])
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
                norm(f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    for i in range(4):
        layer(f"backbone.fpn.inner_blocks.{i}.0", channels, inputs // 8 * 2**i, 1, 1)
        layer(f"backbone.fpn.layer_blocks.{i}.0", channels, channels, 3, 3)
    layer("rpn.head.conv.0.0", channels, channels, 3, 3)
    layer("rpn.head.cls_logits", 3, channels, 1, 1)
    layer("rpn.head.bbox_pred", 12, channels, 1, 1)
    layer("roi_heads.box_head.fc6", hidden, channels * 7 * 7)
    layer("roi_heads.box_head.fc7", hidden, hidden)
    layer("roi_heads.box_predictor.cls_score", num_classes + 1, hidden)
    layer("roi_heads.box_predictor.bbox_pred", 4 * (num_classes + 1), hidden)
    for i in range(4):
        layer(f"roi_heads.mask_head.{i}.0", channels, channels, 3, 3)
    layer("roi_heads.mask_predictor.conv5_mask", channels, channels, 2, 2)
    layer("roi_heads.mask_predictor.mask_fcn_logits", num_classes + 1, channels, 1, 1)
    return shapes


# Of weights, times fan_in^-1/2; chosen so that a random network has objects to find: see what the tool prints.
_SCALES = {
    "cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.5,
    "cls_score": 5.0,
    "box_predictor.bbox_pred": 3.0,
    "mask_fcn_logits": 5.0,
    "fpn.inner_blocks": 1.0,
    "fpn.layer_blocks": 0.1,
}


def make_parameter(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the values of one parameter, a function of its name and shape."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("mask_fcn_logits.bias"):
        # Masks of many pixels: one that differs in rounding must not count for much.
        return rng.normal(5, 0.1, shape).astype(np.float32)
    if name.endswith("running_var"):
        return rng.uniform(0.6, 1.4, shape).astype(np.float32)
    if name.endswith(("running_mean", ".bias")):
        return rng.normal(0, 0.1, shape).astype(np.float32)
    if len(shape) == 1:
        # Small residual branches, as trained networks have them: the signal neither grows nor drowns.
        low, high = (0.2, 0.5) if ".bn3." in name else (0.8, 1.2)
        return rng.uniform(low, high, shape).astype(np.float32)
    scale = next((scale for part, scale in _SCALES.items() if part in name), 2**0.5)
    fan_in = shape[0] if "conv5_mask" in name else int(np.prod(shape[1:]))
    return (rng.standard_normal(shape) * scale * fan_in**-0.5).astype(np.float32)


def make_parameters(num_classes: int = NUM_CLASSES) -> dict[str, np.ndarray]:
    """Return a state dict for torchvision's `maskrcnn_resnet50_fpn`."""
    return {name: make_parameter(name, shape) for name, shape in parameter_shapes(num_classes).items()}
