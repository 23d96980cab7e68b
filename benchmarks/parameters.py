"""Parameters by torchvision's names, each a function of its name, so that no weights need to be stored.

NumPy only: a peer and the makers of goldens read them without JAX.
"""

import zlib

import numpy as np

NUM_CLASSES = 90
STAGE_SIZES = (3, 4, 6, 3)


Shapes = dict[str, tuple[int, ...]]


def parameter_shapes(
    num_classes: int = NUM_CLASSES,
    stage_sizes: tuple[int, ...] = STAGE_SIZES,
    width: int = 64,
    channels: int = 256,
    hidden: int = 1024,
) -> Shapes:
    """Return the shapes of torchvision's `maskrcnn_resnet50_fpn`, with background in row 0 of the predictors."""
    shapes = _boxes(num_classes, stage_sizes, width, channels, hidden)
    for i in range(4):
        shapes |= _layer(f"roi_heads.mask_head.{i}.0", channels, channels, 3, 3)
    shapes |= _layer("roi_heads.mask_predictor.conv5_mask", channels, channels, 2, 2)
    shapes |= _layer("roi_heads.mask_predictor.mask_fcn_logits", num_classes + 1, channels, 1, 1)
    return shapes


def keypoint_shapes(
    stage_sizes: tuple[int, ...] = STAGE_SIZES,
    width: int = 64,
    channels: int = 256,
    hidden: int = 1024,
    head_channels: int = 512,
    num_convs: int = 8,
) -> Shapes:
    """Return the shapes of torchvision's `keypointrcnn_resnet50_fpn`: one class, and 17 keypoints."""
    shapes = _boxes(1, stage_sizes, width, channels, hidden)
    for i in range(num_convs):
        inputs = channels if i == 0 else head_channels
        shapes |= _layer(f"roi_heads.keypoint_head.{2 * i}", head_channels, inputs, 3, 3)
    predictor = "roi_heads.keypoint_predictor.kps_score_lowres"
    # Of a transposed convolution the inputs come first.
    return shapes | {f"{predictor}.weight": (head_channels, 17, 4, 4), f"{predictor}.bias": (17,)}


def _boxes(num_classes: int, stage_sizes: tuple[int, ...], width: int, channels: int, hidden: int) -> Shapes:
    """Return the shapes of torchvision's `fasterrcnn_resnet50_fpn`."""
    shapes = resnet_shapes("backbone.body.", stage_sizes, width) | _pyramid(
        (4 * width, 8 * width, 16 * width, 32 * width), channels
    )
    shapes |= _layer("rpn.head.conv.0.0", channels, channels, 3, 3)
    shapes |= _layer("rpn.head.cls_logits", 3, channels, 1, 1)
    shapes |= _layer("rpn.head.bbox_pred", 12, channels, 1, 1)
    shapes |= _layer("roi_heads.box_head.fc6", hidden, channels * 7 * 7)
    shapes |= _layer("roi_heads.box_head.fc7", hidden, hidden)
    shapes |= _layer("roi_heads.box_predictor.cls_score", num_classes + 1, hidden)
    return shapes | _layer("roi_heads.box_predictor.bbox_pred", 4 * (num_classes + 1), hidden)


def c4_shapes(num_classes: int = NUM_CLASSES, stage_sizes: tuple[int, ...] = STAGE_SIZES, width: int = 64) -> Shapes:
    """Return the shapes of Mask R-CNN on C4 as `benchmarks.torchvision_c4` puts it together of torchvision's parts."""
    res5, ours = "backbone.body.layer4.", "roi_heads.box_head.layer4."
    shapes = {
        name.replace(res5, ours): shape for name, shape in resnet_shapes("backbone.body.", stage_sizes, width).items()
    }
    shapes |= _layer("rpn.head.conv.0.0", 16 * width, 16 * width, 3, 3)
    shapes |= _layer("rpn.head.cls_logits", 15, 16 * width, 1, 1)
    shapes |= _layer("rpn.head.bbox_pred", 60, 16 * width, 1, 1)
    shapes |= _layer("roi_heads.box_predictor.cls_score", num_classes + 1, 32 * width)
    shapes |= _layer("roi_heads.box_predictor.bbox_pred", 4 * (num_classes + 1), 32 * width)
    # Transposed: inputs first, and a bias for each output.
    shapes["roi_heads.mask_predictor.conv5_mask.weight"] = (32 * width, 4 * width, 2, 2)
    shapes["roi_heads.mask_predictor.conv5_mask.bias"] = (4 * width,)
    return shapes | _layer("roi_heads.mask_predictor.mask_fcn_logits", num_classes + 1, 4 * width, 1, 1)


def fcos_shapes(
    num_classes: int = NUM_CLASSES,
    stage_sizes: tuple[int, ...] = STAGE_SIZES,
    width: int = 64,
    channels: int = 256,
    num_convs: int = 4,
) -> Shapes:
    """Return the shapes of torchvision's `fcos_resnet50_fpn`, whose class predictor has a channel 0 for nothing."""
    shapes = resnet_shapes("backbone.body.", stage_sizes, width) | _pyramid(
        (8 * width, 16 * width, 32 * width), channels
    )
    for level in (6, 7):
        shapes |= _layer(f"backbone.fpn.extra_blocks.p{level}", channels, channels, 3, 3)
    for head in ("classification", "regression"):
        for i in range(0, 3 * num_convs, 3):
            shapes |= _layer(f"head.{head}_head.conv.{i}", channels, channels, 3, 3)
            shapes |= _layer(f"head.{head}_head.conv.{i + 1}", channels)
    shapes |= _layer("head.classification_head.cls_logits", num_classes + 1, channels, 3, 3)
    shapes |= _layer("head.regression_head.bbox_reg", 4, channels, 3, 3)
    shapes |= _layer("head.regression_head.bbox_ctrness", 1, channels, 3, 3)
    return shapes


def _layer(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _norm(name: str, channels: int) -> Shapes:
    return {f"{name}.{field}": (channels,) for field in ("weight", "bias", "running_mean", "running_var")}


def resnet_shapes(
    root: str, stage_sizes: tuple[int, ...], width: int = 64, groups: int = 1, group_width: int | None = None
) -> Shapes:
    """Return the shapes of torchvision's ResNet, or ResNeXt, without its classifier.

    Args:
      root: of the names.
      stage_sizes: blocks in each stage.
      width: channels of the stem.
      groups: of the 3x3 convolutions.
      group_width: channels of a group in the first stage; by default `width`.
    """
    shapes = {f"{root}conv1.weight": (width, 3, 7, 7), **_norm(f"{root}bn1", width)}
    inputs, group = width, group_width or width
    for stage, size in enumerate(stage_sizes):
        outputs, inside, seen = 4 * width << stage, groups * group << stage, group << stage
        for block in range(size):
            name = f"{root}layer{stage + 1}.{block}"
            for i, shape in enumerate([(inside, inputs, 1, 1), (inside, seen, 3, 3), (outputs, inside, 1, 1)], 1):
                shapes |= {f"{name}.conv{i}.weight": shape, **_norm(f"{name}.bn{i}", shape[0])}
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                shapes |= _norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    return shapes


def _pyramid(inputs: tuple[int, ...], channels: int) -> Shapes:
    shapes: Shapes = {}
    for i, width in enumerate(inputs):
        shapes |= _layer(f"backbone.fpn.inner_blocks.{i}.0", channels, width, 1, 1)
        shapes |= _layer(f"backbone.fpn.layer_blocks.{i}.0", channels, channels, 3, 3)
    return shapes


# Of weights, times fan_in^-1/2; chosen so that a random network has objects to find: see what the tool prints.
_SCALES = {
    "classification_head.cls_logits": 4.0,
    "bbox_ctrness": 3.0,
    "regression_head.bbox_reg": 2.0,
    "fpn.extra_blocks": 1.0,
    "cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.5,
    "cls_score": 5.0,
    "box_predictor.bbox_pred": 3.0,
    "mask_fcn_logits": 5.0,
    "kps_score_lowres": 5.0,
    "fpn.inner_blocks": 1.0,
    "fpn.layer_blocks": 0.1,
}


# Mean and deviation of biases, where they are not 0 and 0.1: masks of many pixels, as one that differs in rounding must
# not count for much; classes that are found here and there, in boxes of some strides.
_BIASES = {
    "mask_fcn_logits": (5.0, 0.1),
    "classification_head.cls_logits": (-11.0, 1.5),
    "regression_head.bbox_reg": (3.0, 0.3),
}


def make_parameter(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the values of one parameter, a function of its name and shape."""
    values = _values(name, shape).astype(np.float32)
    if "classification_head.cls_logits" in name:
        # The channel that torchvision's FCOS has for background finds nothing, as no training asks for it.
        values[0] = 0 if name.endswith("weight") else -100
    return values


def _values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return rng.uniform(0.6, 1.4, shape)
    if name.endswith(("running_mean", ".bias")):
        return rng.normal(*next((bias for part, bias in _BIASES.items() if part in name), (0.0, 0.1)), shape)
    if len(shape) == 1:
        # Small residual branches, as trained networks have them: the signal neither grows nor drowns.
        low, high = (0.2, 0.5) if ".bn3." in name else (0.8, 1.2)
        return rng.uniform(low, high, shape)
    scale = next((scale for part, scale in _SCALES.items() if part in name), 2**0.5)
    fan_in = shape[0] if "conv5_mask" in name or "kps_score" in name else int(np.prod(shape[1:]))
    return rng.standard_normal(shape) * scale * fan_in**-0.5


def make_parameters(shapes: Shapes | None = None) -> dict[str, np.ndarray]:
    """Return a state dict for torchvision's `maskrcnn_resnet50_fpn`, or of other shapes."""
    return {name: make_parameter(name, shape) for name, shape in (shapes or parameter_shapes()).items()}


def make_c4_parameters(shapes: Shapes | None = None) -> dict[str, np.ndarray]:
    """Return a state dict for Mask R-CNN on C4: predictors see larger values there, which no pyramid made smaller."""
    predictors = ("cls_logits.weight", "bbox_pred.weight", "cls_score.weight", "mask_fcn_logits.weight")
    parameters = make_parameters(shapes or c4_shapes())
    return {name: value * np.float32(0.1 if name.endswith(predictors) else 1) for name, value in parameters.items()}
