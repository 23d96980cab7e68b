"""How to build in torchvision the model that an exported file of weights is for."""

from ml_collections import ConfigDict

from maskx_jax.runs.loading import Loaded

_RECIPE = """\
from safetensors.torch import load_file
from torchvision.models.detection import {model}, anchor_utils, backbone_utils, fcos
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

body = ResNet(Bottleneck, {stage_sizes}{groups})  # [3, 4, 6, 3] is resnet50, [3, 4, 23, 3] is resnet101
model = {model}(
    backbone_utils._resnet_fpn_extractor(body, 0{pyramid}),
    num_classes={num_classes},  # label i + 1 is {first!r} for i = 0; all names are in the file's metadata
{options},
    image_mean={mean},
    image_std={std},
    min_size={min_size},
    max_size={max_size},
)
model.load_state_dict(load_file("{output}"))
model.eval()"""


def recipe(run: Loaded, output: str) -> str:
    """Return the lines of Python that build the model in torchvision and load an exported file.

    Args:
      run: that the file is of.
      output: path of the file.
    """
    model: ConfigDict = run.config.model
    transform = run.config.data.transform
    num_classes = len(run.categories) + 1
    name, options = _fcos(model, num_classes) if model.family == "dense" else _rcnn(model)
    return _RECIPE.format(
        model=name,
        pyramid=", [2, 3, 4], LastLevelP6P7(256, 256)" if name == "FCOS" else "",
        stage_sizes=list(model.backbone.stage_sizes),
        groups=_groups(model.backbone),
        num_classes=num_classes,
        first=run.categories.names[0],
        options=",\n".join(f"    {option}={value}" for option, value in options.items()),
        mean=[round(value / 255, 6) for value in model.pixels.mean],
        std=[round(value / 255, 6) for value in model.pixels.std],
        min_size=max(transform.short_sides),
        max_size=transform.max_long_side,
        output=output,
    )


def _groups(backbone: ConfigDict) -> str:
    """Return the arguments that make torchvision's ResNet a ResNeXt."""
    width = backbone.get("group_width") or backbone.width
    # Runs of earlier versions lack both.
    return f", groups={backbone.groups}, width_per_group={width}" if backbone.get("groups", 1) > 1 else ""


def _rcnn(model: ConfigDict) -> tuple[str, dict[str, object]]:
    """Return torchvision's class and its arguments."""
    rcnn = model.rcnn
    # P2 to P6, with as many sizes each.
    per_level = len(rcnn.rpn.anchor_sizes) // 5
    sizes = tuple(tuple(rcnn.rpn.anchor_sizes[i * per_level : (i + 1) * per_level]) for i in range(5))
    ratios = (tuple(rcnn.rpn.aspect_ratios),) * len(sizes)
    keypoints = {}
    name = "FasterRCNN" if rcnn.mask_predictor == "none" else "MaskRCNN"
    if rcnn.get("keypoint_predictor", "none") != "none":
        name, keypoints = "KeypointRCNN", {"num_keypoints": rcnn.keypoint_head.num_keypoints}
    return name, keypoints | {
        "rpn_anchor_generator": f"anchor_utils.AnchorGenerator({sizes}, {ratios})",
        "rpn_pre_nms_top_n_test": rcnn.rpn.pre_nms_top_k[1],
        "rpn_post_nms_top_n_test": rcnn.rpn.post_nms_top_k[1],
        "rpn_nms_thresh": rcnn.rpn.nms_threshold,
        "bbox_reg_weights": rcnn.box_head.box_weights,
        "box_score_thresh": rcnn.box_head.score_threshold,
        "box_nms_thresh": rcnn.box_head.nms_threshold,
        "box_detections_per_img": model.max_detections,
    }


def _fcos(model: ConfigDict, num_classes: int) -> tuple[str, dict[str, object]]:
    """Return torchvision's class and its arguments."""
    head = model.dense.head
    return "FCOS", {
        "head": f"fcos.FCOSHead({head.channels}, 1, {num_classes}, {head.num_convs})",
        "center_sampling_radius": head.radius,
        "score_thresh": head.score_threshold,
        "nms_thresh": head.nms_threshold,
        "detections_per_img": model.max_detections,
        "topk_candidates": head.pre_nms_top_k,
    }
