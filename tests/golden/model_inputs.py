"""The images that the golden tests of the whole model start from; `benchmarks.parameters` has the parameters."""

import pathlib
import zlib

import cv2
import numpy as np

# An image of COCO's val2017, landscape and with many objects.
COCO_IMAGE = "000000184324.jpg"
# Height and width of each canvas. The image is scaled to its height, so it is padded or cropped on the right:
# torchvision infers the maps' strides from the image's size, and errs where an image fills too little of its canvas.
CANVASES = {"coco_800x1333": (800, 1344), "coco_512": (512, 512), "shapes_512": (512, 512)}


def on_canvas(image: np.ndarray, name: str) -> tuple[np.ndarray, tuple[int, int]]:
    """Lay an RGB image on the canvas of that name; return the canvas and the size that the image has on it."""
    canvas = CANVASES[name]
    scale = canvas[0] / image.shape[0]
    image = image[:, : int(canvas[1] / scale)]
    height, width = (round(side * scale) for side in image.shape[:2])
    padded = np.zeros((*canvas, 3), np.uint8)
    padded[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return padded, (height, width)


def make_canvas(name: str, coco_mini: pathlib.Path | None) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the canvas of that name, and the size of the image on it; the real images need their folder."""
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
# Of Keypoint R-CNN, whose head has four times as much to compute for a region as the mask head.
KEYPOINT_ROIS = np.arange(0, 1000, 90)
KEYPOINT_LOSS_PROPOSALS = (500, 16)
KEYPOINT_GRADIENTS = {
    "backbone.body.layer2.0.conv1.weight": "backbone/res3_block0/conv1/kernel",
    "backbone.fpn.inner_blocks.1.0.weight": "fpn/lateral3/kernel",
    "roi_heads.box_head.fc6.weight": "box_head/fc6/kernel",
    "roi_heads.keypoint_head.0.weight": "keypoint_head/conv1/kernel",
    "roi_heads.keypoint_head.14.weight": "keypoint_head/conv8/kernel",
    "roi_heads.keypoint_predictor.kps_score_lowres.weight": "keypoint_head/deconvolution/kernel",
}


def made_up_keypoints(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return points `... 17 2` in and around boxes `... 4`, float32, and whether each is labelled."""
    rng = np.random.RandomState(0)
    places = rng.uniform(-0.05, 1.05, (*boxes.shape[:-1], 17, 2))
    sides = boxes[..., None, 2:] - boxes[..., None, :2]
    points = (boxes[..., None, :2] + places * sides).astype(np.float32)
    return points, rng.uniform(size=points.shape[:-1]) < 0.7


# Of FCOS, whose P6 and P7 do not divide an image of this size.
FCOS_LOSS_IMAGE_SIZE = 288
FCOS_GRADIENTS = {
    "backbone.body.layer2.0.conv1.weight": "backbone/res3_block0/conv1/kernel",
    "backbone.fpn.inner_blocks.1.0.weight": "fpn/lateral4/kernel",
    "backbone.fpn.extra_blocks.p6.weight": "fpn/output6/kernel",
    "head.classification_head.conv.0.weight": "head/class_tower/conv1/kernel",
    "head.regression_head.conv.9.weight": "head/box_tower/conv4/kernel",
    "head.regression_head.bbox_reg.weight": "head/boxes/kernel",
    "head.regression_head.bbox_ctrness.weight": "head/centerness/kernel",
}
# On C4: few proposals, so that a test takes seconds, and the step between those whose logits are compared.
C4_CANVASES = ("coco_512", "shapes_512")
C4_PROPOSALS = 100
C4_ROI_STEP = 8


def sample_positions(name: str, size: int, count: int = 4000) -> np.ndarray:
    """Return some flat positions in an array, a function of its name: large arrays are compared there."""
    return np.random.RandomState(zlib.crc32(name.encode())).choice(size, min(size, count), replace=False)
