"""What the golden tests of the whole model start from: parameters by torchvision's names, and images.

Every parameter is a function of its name, so that no weights need to be stored.
"""

import pathlib
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


# An image of COCO's val2017, landscape and with many objects.
COCO_IMAGE = "000000184324.jpg"
# Height and width of each canvas. The image is scaled to its height, so it is padded or cropped on the right:
# torchvision infers the maps' strides from the image's size, and errs where an image fills too little of its canvas.
CANVASES = {"coco_800x1333": (800, 1344), "coco_512": (512, 512), "shapes_512": (512, 512)}


def on_canvas(image: np.ndarray, name: str) -> tuple[np.ndarray, tuple[int, int]]:
    """Lay an RGB image on the canvas of that name; return the canvas and the size that the image has on it."""
    import cv2

    canvas = CANVASES[name]
    scale = canvas[0] / image.shape[0]
    image = image[:, : int(canvas[1] / scale)]
    height, width = (round(side * scale) for side in image.shape[:2])
    padded = np.zeros((*canvas, 3), np.uint8)
    padded[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return padded, (height, width)


def make_canvas(name: str, coco_mini: pathlib.Path | None) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the canvas of that name, and the size of the image on it; the real images need their folder."""
    # The parameters above are used on machines without OpenCV.
    import cv2

    from maskx_jax.data.shapes.source import ShapesSource
    from maskx_jax.data.transforms import decode

    if name.startswith("shapes"):
        return on_canvas(decode(ShapesSource(1, seed=5, image_size=512, max_objects=8)[0]), name)
    assert coco_mini is not None
    pixels = cv2.imread(str(coco_mini / "images/val2017" / COCO_IMAGE))
    assert pixels is not None
    return on_canvas(pixels[..., ::-1], name)


# Regions whose logits are compared, of the 1,000 proposals.
BOX_ROIS = np.arange(0, 1000, 32)
MASK_ROIS = np.arange(0, 1000, 90)
# Mask probabilities are stored as whole numbers up to this.
MASK_STEPS = 65535
# The sampled foreground and background regions of an image whose losses are compared: all there are, so that nothing is
# drawn at random.
LOSS_IMAGE_SIZE = 256
LOSS_PROPOSALS = (500, 60)
LOSS_SAMPLES = {"rpn": 33_000, "box": 160, "mask": 40}
# Of these the gradient of the total loss is compared: (torchvision's name, ours).
GRADIENTS = {
    "backbone.body.layer2.0.conv1.weight": "backbone/res3_block0/conv1/kernel",
    "backbone.fpn.inner_blocks.1.0.weight": "fpn/lateral3/kernel",
    "rpn.head.conv.0.0.weight": "rpn/conv/kernel",
    "roi_heads.box_head.fc6.weight": "box_head/fc6/kernel",
    "roi_heads.mask_head.0.0.weight": "mask_head/conv1/kernel",
}


def sample_positions(name: str, size: int, count: int = 4000) -> np.ndarray:
    """Return some flat positions in an array, a function of its name: large arrays are compared there."""
    return np.random.RandomState(zlib.crc32(name.encode())).choice(size, min(size, count), replace=False)
