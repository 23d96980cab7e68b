"""How other code bases name and arrange the parameters of the same networks, and the conventions that go with them."""

import re

import numpy as np

from maskx_jax.ops.anchors import cell_anchors
from maskx_jax.weights.files import WeightFile
from maskx_jax.weights.layouts import detectron, detectron2, fcos_core, torchvision
from maskx_jax.weights.layouts.layout import Layout, field_of

__all__ = ["LAYOUTS", "Layout", "check_evidence", "field_of", "published_size", "recognize"]

LAYOUTS = {
    layout.name: layout
    for layout in (
        torchvision.DETECTOR,
        torchvision.COCO,
        torchvision.CLASSIFIER,
        detectron2.DETECTRON2,
        detectron2.TORCHVISION,
        detectron.DETECTRON,
        fcos_core.FCOS_CORE,
    )
}


def check_evidence(file: WeightFile, layout: Layout) -> None:
    """Check that what a file says of its pixels, anchors and BatchNorm is what its layout takes for granted.

    Raises:
      ValueError: it is something else.
    """
    epsilon = None if file.metadata is None else file.metadata.epsilon
    if epsilon is not None and epsilon != layout.epsilon:
        raise ValueError(
            f"{file.path}: BatchNorm's epsilon is {epsilon:g}; with preset {layout.name} {layout.epsilon:g}"
        )
    for field, convention in (("pixel_mean", "pixels.mean"), ("pixel_std", "pixels.std")):
        if field in file.arrays:
            stored, expected = np.ravel(file.arrays[field]), layout.backbone_conventions[convention]
            if stored.shape != (3,) or not np.allclose(stored, expected, atol=1e-2):
                raise ValueError(f"{file.path}: {field} is {stored.tolist()}; with preset {layout.name} {expected}")
    for i, size in enumerate(layout.rcnn_conventions.get("rcnn.rpn.anchor_sizes", ())):
        name = f"proposal_generator.anchor_generator.cell_anchors.{i}"
        ratios = layout.rcnn_conventions["rcnn.rpn.aspect_ratios"]
        if name in file.arrays:
            expected = cell_anchors(size, ratios, 4 * 2**i, layout.rcnn_conventions["rcnn.rpn.anchor_convention"])
            stored = file.arrays[name]
            if stored.shape != expected.shape or not np.allclose(stored, expected, atol=0.1):
                raise ValueError(
                    f"{file.path}: {name} is {stored.tolist()}; with preset {layout.name} {expected.tolist()}"
                )


def recognize(file: WeightFile) -> Layout:
    """Return the layout of a file.

    Raises:
      ValueError: the names are of no known network.
    """
    for layout in LAYOUTS.values():
        if any(re.fullmatch(layout.signature, name) for name in file.arrays):
            if layout is torchvision.DETECTOR and published_size(file) is not None:
                return LAYOUTS["torchvision_coco"]
            # Only the ResNet made from torchvision's has pixels divided by their deviation.
            deviation = file.arrays.get("pixel_std", np.ones(3))
            if layout is detectron2.DETECTRON2 and (file.author == "torchvision" or not np.allclose(deviation, 1)):
                return LAYOUTS["detectron2_torchvision"]
            return layout
    raise ValueError(
        f"{file.path}: of no known network: holds names such as {sorted(file.arrays)[:4]}; known are the files of "
        "torchvision, timm (ResNet), detectron2, AdelaiDet (FCOS), Detectron, and FCOS' and EmbedMask's authors"
    )


def published_size(file: WeightFile) -> str | None:
    """Return by what size a file of torchvision's names is taken for a detector that torchvision publishes, or None."""
    rows, keypoints = (
        np.size(file.arrays.get(f"roi_heads.{name}.bias", ()))
        for name in ("box_predictor.cls_score", "keypoint_predictor.kps_score_lowres")
    )
    # Only our own export says when it is something else.
    if file.metadata is not None:
        return None
    return "91 rows" if rows == 91 else "17 keypoints of one class" if (rows, keypoints) == (2, 17) else None
