"""What is timed on both sides, and the inputs, which one file hands to both. NumPy alone: the peer has no JAX."""

import dataclasses

import numpy as np

NUM_CLASSES = 90
NUM_OBJECTS = 8
LEVELS = (2, 3, 4, 5)
# Of a train step: all losses, the losses and all gradients, the update.
TRAIN_STAGES = ("losses", "losses_backward", "optimizer")
STAGES = (
    *("backbone_fpn", "rpn_head", "proposals", "pool_boxes", "box_head", "pool_masks", "mask_head"),
    *TRAIN_STAGES,
)
# Beside the ones that the models use.
ROI_ALIGN_FORMS = ("gather_all", "products", "kernel")
NMS_FORMS = ("greedy", "fixpoint")


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
      kind: "train", "detect" (with masks pasted into the image), "network" (detection without pasting), "stage",
        "roi_align", "nms", "paste", "product" (of square matrices) and "copy" (of an array), which say what the machine
        can do, "input" (batches from JPEG files by one worker), "scores" (of an evaluation), "checks" (an accelerator's
        results beside the CPU's) or "trace" (the shares of a train step).
      model: of `models.fields`; the peer has "mask_rcnn" alone.
      canvas: height and width in pixels.
      batch: images.
      dtype: "float32" or "bfloat16" (the peer's autocast).
      size: of an operation: bins of RoIAlign, boxes of NMS, rows of a matrix, MiB of a copy. One of `STAGES` by its
        position.
      form: of RoIAlign or NMS: ours as the models use it, or one of `ROI_ALIGN_FORMS` or `NMS_FORMS`.
      gradient: whether RoIAlign's backward pass is timed too.
      rois: regions an image of RoIAlign.
      groups: of boxes that NMS keeps apart.
      clustered: whether the boxes of NMS lie around a few objects, as proposals do, or anywhere.
      scored: "bbox" or "segm".
      backend: who scores.
    """

    kind: str
    model: str = ""
    canvas: tuple[int, int] = (512, 512)
    batch: int = 1
    dtype: str = "float32"
    size: int = 0
    form: str = ""
    gradient: bool = False
    rois: int = 512
    groups: int = 1
    clustered: bool = False
    scored: str = ""
    backend: str = ""

    @property
    def name(self) -> str:
        """Return the name in tables."""
        sides = f"{self.canvas[0]} x {self.canvas[1]}"
        dtype = "" if self.dtype == "float32" else f", {self.dtype}"
        form = f", {self.form}" if self.form else ""
        if self.kind == "checks":
            return f"checks of {f'the {self.model} model' if self.model else 'operations'}"
        if self.kind in ("train", "detect", "network", "trace"):
            return f"{self.model} {self.kind}, {sides}, batch {self.batch}{dtype}"
        if self.kind == "stage":
            return f"{STAGES[self.size]}, {sides}, batch {self.batch}"
        if self.kind == "roi_align":
            passes = "forward + backward" if self.gradient else "forward"
            images = f"{self.batch} x " if self.batch > 1 else ""
            return f"RoIAlign {self.size} x {self.size}, {images}{self.rois} regions, {passes}{dtype}{form}"
        if self.kind == "nms":
            return f"NMS, {self.groups} x {self.size} {'clustered ' if self.clustered else ''}boxes{form}"
        if self.kind == "product":
            return f"product of {self.size} x {self.size} matrices, {self.dtype}"
        if self.kind == "copy":
            return f"copy of {self.size} MiB"
        if self.kind == "input":
            return f"{self.batch} images from JPEG, one worker"
        if self.kind == "scores":
            return f"{self.scored} of {self.size} images x 100 detections, {self.backend}"
        return f"paste 100 masks into {sides}"

    @property
    def images(self) -> int:
        """Return how many images a call works through, 0 where it is not about images."""
        return self.batch if self.kind in ("train", "detect", "network", "input") else 0

    @property
    def peer(self) -> str:
        """Return whom it is compared with: "torchvision", "pycocotools", our "mask_rcnn", or nobody."""
        if self.kind == "scores":
            return "pycocotools"
        if self.kind in ("input", "checks", "trace") or self.form or self.model == "tiny":
            return ""
        return "torchvision" if self.model in ("", "mask_rcnn") else "mask_rcnn"


LARGE, _SMALL = (800, 1344), (512, 512)
_OPS = (
    *(Case("roi_align", canvas=LARGE, size=size, gradient=gradient) for size in (7, 14) for gradient in (False, True)),
    *(Case("nms", size=size) for size in (1000, 2000)),
    Case("nms", size=1000, groups=5),
    Case("paste", canvas=(800, 1333)),
)
_MODELS = ("mask_rcnn", "maskx_light", "maskx_paper")
SUITES = {
    "ceilings": (Case("product", size=4096), Case("copy", size=512)),
    "ops": _OPS,
    "detect": tuple(Case("detect", model, canvas) for canvas in (_SMALL, LARGE) for model in _MODELS),
    "train": tuple(
        Case("train", model, canvas, batch) for canvas, batch in ((_SMALL, 2), (LARGE, 1)) for model in _MODELS
    ),
    "stages": tuple(Case("stage", "mask_rcnn", _SMALL, size=stage) for stage in range(len(STAGES))),
    "host": (
        Case("input", batch=8),
        *(
            Case("scores", size=5000, scored=scored, backend=backend)
            for scored in ("bbox", "segm")
            for backend in ("faster_coco_eval", "hotcoco")
        ),
    ),
}


def make_inputs(case: Case) -> dict[str, np.ndarray]:
    """Return images, ground truth, regions and scores for a case, the same on both sides.

    The images are one picture, shifted.
    """
    height, width = case.canvas
    rng = np.random.default_rng(0)
    image = _picture(height, width)
    images = np.stack([np.roll(image, 32 * i, axis=1) for i in range(case.batch)])
    spread = _clustered_boxes if case.clustered else _boxes
    return {
        "images": images,
        "gt_boxes": np.stack([_boxes(rng, NUM_OBJECTS, height, width) for _ in range(case.batch)]),
        "gt_labels": rng.integers(1, NUM_CLASSES + 1, (case.batch, NUM_OBJECTS)),
        "rois": np.stack([_boxes(rng, 1000, height, width) for _ in range(case.batch)]),
        "nms_boxes": np.stack([spread(rng, case.size, height, width) for _ in range(case.groups)]),
        "nms_scores": rng.uniform(size=(case.groups, case.size)).astype(np.float32),
        "masks": rng.uniform(size=(100, 28, 28)).astype(np.float32),
    }


def feature_maps(case: Case, channels: int = 256) -> dict[int, np.ndarray]:
    """Return random maps of P2 to P5, height x width x channels."""
    rng = np.random.default_rng(1)
    return {
        level: rng.standard_normal((*(-(-side // 2**level) for side in case.canvas), channels), np.float32)
        for level in LEVELS
    }


def _boxes(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Return boxes of all sizes (their logarithm is uniform), xyxy."""
    sides = np.exp(rng.uniform(np.log(16), np.log(0.8 * min(height, width)), (count, 2)))
    corner = rng.uniform(size=(count, 2)) * (np.array([width, height]) - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def _clustered_boxes(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Return boxes around forty objects, moved and scaled by up to a fifth."""
    objects = _boxes(rng, 40, height, width)[rng.integers(0, 40, count)]
    sides = np.tile(objects[:, 2:] - objects[:, :2], 2)
    return (objects + sides * rng.uniform(-0.2, 0.2, (count, 4))).astype(np.float32)


def _picture(height: int, width: int) -> np.ndarray:
    """Return coloured rectangles with some noise, RGB: edges and flat parts without a file of data."""
    rng = np.random.default_rng(5)
    image = np.full((height, width, 3), 128.0)
    for x1, y1, x2, y2 in _boxes(rng, 24, height, width).astype(int):
        image[y1:y2, x1:x2] = rng.uniform(0, 255, 3)
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
