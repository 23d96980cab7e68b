"""What is timed on both sides, and the inputs, which one file hands to both. NumPy only: the peer has no JAX."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

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


Canvas = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Network:
    """A whole model at work.

    Attributes:
      work: "train", "detect" (what masks there are pasted into the image), "network" (detection without pasting) or
        "trace" (the shares of a train step).
      model: of `models.fields`; torchvision has "mask_rcnn", "mask_rcnn_c4" (of its parts) and "fcos" only.
      canvas: height and width in pixels.
      batch: images.
      dtype: "float32" or "bfloat16" (torchvision's autocast).
    """

    work: str
    model: str
    canvas: Canvas = (512, 512)
    batch: int = 1
    dtype: str = "float32"

    @property
    def name(self) -> str:
        return f"{self.model} {self.work}, {_sides(self.canvas)}, batch {self.batch}{_dtype(self.dtype)}"

    @property
    def images(self) -> int:
        """Return how many images a call works through; 0 where it is not about images."""
        return 0 if self.work == "trace" else self.batch

    @property
    def peer(self) -> str:
        """Return who else does it: "torchvision", our own processes ("ours") on `for_peer`, or nobody ("")."""
        if self.work == "trace" or self.model == "tiny":
            return ""
        return "torchvision" if self.model in ("mask_rcnn", "mask_rcnn_c4", "fcos") else "ours"

    def for_peer(self) -> "Network":
        """Return what our own processes do beside it: our Mask R-CNN."""
        return dataclasses.replace(self, model="mask_rcnn")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One of `STAGES` of Mask R-CNN, on a batch of images of a canvas."""

    stage: str
    canvas: Canvas = (512, 512)
    batch: int = 1

    images: ClassVar = 0
    peer: ClassVar = "torchvision"
    # It is of Mask R-CNN, in float32.
    model: ClassVar = "mask_rcnn"
    dtype: ClassVar = "float32"

    @property
    def name(self) -> str:
        return f"{self.stage}, {_sides(self.canvas)}, batch {self.batch}"


@dataclasses.dataclass(frozen=True)
class RoIAlign:
    """RoIAlign over four levels.

    Attributes:
      bins: along each side of a region.
      gradient: whether the backward pass is timed too.
      canvas: height and width in pixels.
      batch: images.
      dtype: of the features.
      rois: regions an image.
      form: as the models use it, or one of `ROI_ALIGN_FORMS`.
    """

    bins: int
    gradient: bool = False
    canvas: Canvas = (512, 512)
    batch: int = 1
    dtype: str = "float32"
    rois: int = 512
    form: str = ""

    images: ClassVar = 0

    @property
    def name(self) -> str:
        passes = "forward + backward" if self.gradient else "forward"
        images = f"{self.batch} x " if self.batch > 1 else ""
        what = f"RoIAlign {self.bins} x {self.bins}, {images}{self.rois} regions, {passes}"
        return f"{what}{_dtype(self.dtype)}{_form(self.form)}"

    @property
    def peer(self) -> str:
        """Return "torchvision" beside the models' own form."""
        return "" if self.form else "torchvision"


@dataclasses.dataclass(frozen=True)
class NMS:
    """Non-maximum suppression.

    Attributes:
      boxes: in each group.
      groups: of boxes that are kept apart.
      canvas: height and width in pixels.
      clustered: whether the boxes lie around a few objects, as proposals do, or anywhere.
      form: as the models use it, or one of `NMS_FORMS`.
    """

    boxes: int
    groups: int = 1
    canvas: Canvas = (512, 512)
    clustered: bool = False
    form: str = ""

    images: ClassVar = 0
    dtype: ClassVar = "float32"

    @property
    def name(self) -> str:
        return f"NMS, {self.groups} x {self.boxes} {'clustered ' if self.clustered else ''}boxes{_form(self.form)}"

    @property
    def peer(self) -> str:
        """Return "torchvision" beside the models' own form."""
        return "" if self.form else "torchvision"


@dataclasses.dataclass(frozen=True)
class Paste:
    """100 masks pasted into an image of a canvas."""

    canvas: Canvas

    images: ClassVar = 0
    peer: ClassVar = "torchvision"
    dtype: ClassVar = "float32"

    @property
    def name(self) -> str:
        return f"paste 100 masks into {_sides(self.canvas)}"


@dataclasses.dataclass(frozen=True)
class Product:
    """A product of square matrices with `rows` rows: what the machine can compute."""

    rows: int
    dtype: str = "float32"

    images: ClassVar = 0
    peer: ClassVar = "torchvision"

    @property
    def name(self) -> str:
        return f"product of {self.rows} x {self.rows} matrices, {self.dtype}"


@dataclasses.dataclass(frozen=True)
class Copy:
    """A copy of an array: what the machine can move."""

    mebibytes: int

    images: ClassVar = 0
    peer: ClassVar = "torchvision"
    dtype: ClassVar = "float32"

    @property
    def name(self) -> str:
        return f"copy of {self.mebibytes} MiB"


@dataclasses.dataclass(frozen=True)
class Input:
    """A batch from JPEG files by one worker."""

    batch: int

    peer: ClassVar = ""

    @property
    def name(self) -> str:
        return f"{self.batch} images from JPEG, one worker"

    @property
    def images(self) -> int:
        """Return how many images a call works through."""
        return self.batch


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of an evaluation of `num_images` images, "bbox" or "segm", by a backend."""

    num_images: int
    scored: str
    backend: str

    images: ClassVar = 0
    peer: ClassVar = "ours"

    @property
    def name(self) -> str:
        return f"{self.scored} of {self.num_images} images x 100 detections, {self.backend}"

    def for_peer(self) -> "Scores":
        """Return what our own processes do beside it: the same by pycocotools."""
        return dataclasses.replace(self, backend="pycocotools")


@dataclasses.dataclass(frozen=True)
class OperationChecks:
    """An accelerator's operations beside the CPU's: RoIAlign of some regions and NMS of clustered boxes."""

    canvas: Canvas
    rois: int
    boxes: int

    images: ClassVar = 0
    peer: ClassVar = ""

    @property
    def name(self) -> str:
        return "checks of operations"


@dataclasses.dataclass(frozen=True)
class ModelChecks:
    """An accelerator's losses, gradients and detections of a model beside the CPU's."""

    model: str
    canvas: Canvas
    batch: int

    images: ClassVar = 0
    peer: ClassVar = ""

    @property
    def name(self) -> str:
        return f"checks of the {self.model} model"


# Each has a name for tables, the images that a call works through (0 where it is not about images), and its peer.
Case = Network | Stage | RoIAlign | NMS | Paste | Product | Copy | Input | Scores | OperationChecks | ModelChecks
_KINDS: dict[str, type] = {kind.__name__: kind for kind in Case.__args__}


def to_json(case: Case) -> dict[str, Any]:
    """Return the fields of a case and its kind, for a worker."""
    return {"kind": type(case).__name__, **dataclasses.asdict(case)}


def from_json(fields: Mapping[str, Any]) -> Case:
    """Return the case again."""
    # JSON knows no tuples.
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    case: Case = _KINDS[fields["kind"]](**{name: value for name, value in given.items() if name != "kind"})
    return case


LARGE, _SMALL = (800, 1344), (512, 512)
_OPS: tuple[Case, ...] = (
    *(RoIAlign(bins, gradient, LARGE) for bins in (7, 14) for gradient in (False, True)),
    *(NMS(boxes) for boxes in (1000, 2000)),
    NMS(1000, groups=5),
    Paste((800, 1333)),
)
_MODELS = ("mask_rcnn", "maskx_light", "maskx_paper", "fcos")
SUITES: dict[str, tuple[Case, ...]] = {
    "ceilings": (Product(4096), Copy(512)),
    "ops": _OPS,
    "detect": tuple(
        Network("detect", model, canvas) for canvas in (_SMALL, LARGE) for model in (*_MODELS, "mask_rcnn_c4")
    ),
    "train": tuple(
        Network("train", model, canvas, batch) for canvas, batch in ((_SMALL, 2), (LARGE, 1)) for model in _MODELS
    ),
    "stages": tuple(Stage(stage) for stage in STAGES),
    "host": (
        Input(8),
        *(Scores(5000, scored, backend) for scored in ("bbox", "segm") for backend in ("faster_coco_eval", "hotcoco")),
    ),
}


def inputs(case: Case) -> dict[str, np.ndarray]:
    """Return the arrays that a case works on; see `make_inputs`."""
    match case:
        case NMS():
            return make_inputs(case.canvas, 1, case.boxes, case.groups, case.clustered)
        case OperationChecks():
            return make_inputs(case.canvas, 1, case.boxes, clustered=True)
        case Paste():
            return make_inputs(case.canvas, 1)
        case Network() | Stage() | RoIAlign() | ModelChecks():
            return make_inputs(case.canvas, case.batch)
    return {}


def make_inputs(
    canvas: Canvas, batch: int, boxes: int = 0, groups: int = 1, clustered: bool = False
) -> dict[str, np.ndarray]:
    """Return images, ground truth, regions and scores, the same on both sides.

    The images are one picture, shifted.

    Args:
      canvas: height and width in pixels.
      batch: images.
      boxes: of each group of NMS.
      groups: of boxes.
      clustered: whether the boxes lie around a few objects.
    """
    height, width = canvas
    rng = np.random.default_rng(0)
    image = _picture(height, width)
    images = np.stack([np.roll(image, 32 * i, axis=1) for i in range(batch)])
    spread = _clustered_boxes if clustered else _boxes
    return {
        "images": images,
        "gt_boxes": np.stack([_boxes(rng, NUM_OBJECTS, height, width) for _ in range(batch)]),
        "gt_labels": rng.integers(1, NUM_CLASSES + 1, (batch, NUM_OBJECTS)),
        "rois": np.stack([_boxes(rng, 1000, height, width) for _ in range(batch)]),
        "nms_boxes": np.stack([spread(rng, boxes, height, width) for _ in range(groups)]),
        "nms_scores": rng.uniform(size=(groups, boxes)).astype(np.float32),
        "masks": rng.uniform(size=(100, 28, 28)).astype(np.float32),
    }


def feature_maps(canvas: Canvas, channels: int = 256) -> dict[int, np.ndarray]:
    """Return random maps of P2 to P5, height x width x channels."""
    rng = np.random.default_rng(1)
    return {
        level: rng.standard_normal((*(-(-side // 2**level) for side in canvas), channels), np.float32)
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


def _sides(canvas: Canvas) -> str:
    return f"{canvas[0]} x {canvas[1]}"


def _dtype(dtype: str) -> str:
    return "" if dtype == "float32" else f", {dtype}"


def _form(form: str) -> str:
    return f", {form}" if form else ""
