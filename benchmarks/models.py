"""The models that are timed, as `config.model`: the configs need ml_collections, which a GPU may lack."""

import copy
from typing import Any

# What the weights of both sides, torchvision's by name, were made for.
_TORCHVISION: dict[str, Any] = {
    "family": "rcnn",
    "max_detections": 100,
    "pixels": {"channel_order": "rgb"},
    "backbone": {"kind": "resnet", "stage_sizes": (3, 4, 6, 3), "stride_in_1x1": False},
    "rcnn": {
        "fpn": {"channels": 256},
        # torchvision keeps as many candidates as there are, and takes anchors beyond the border.
        "rpn": {"anchor_convention": "torchvision", "boundary_threshold": -1.0},
        "roi_align": {"convention": "torchvision"},
        "box_head": {"resolution": 7},
        "mask_head": {"channels": 256, "num_convs": 4, "resolution": 14},
        "mask_predictor": "class_specific",
        "weight_transfer": {},
    },
}
_FCOS: dict[str, Any] = {
    **{name: value for name, value in _TORCHVISION.items() if name != "rcnn"},
    "family": "dense",
    "dense": {"masks": "none", "fpn": {"channels": 256}, "head": {"points": "torchvision"}, "embed_head": {}},
}
_TINY: dict[str, Any] = {
    "family": "rcnn",
    "max_detections": 20,
    "pixels": {"channel_order": "rgb"},
    "backbone": {"kind": "resnet", "stage_sizes": (1, 1, 1, 1), "width": 16, "norm": "group"},
    "rcnn": {
        "fpn": {"channels": 64},
        "rpn": {
            "channels": 64,
            "anchor_convention": "torchvision",
            "anchor_sizes": (24.0, 40.0, 64.0, 96.0, 128.0),
            "boundary_threshold": -1.0,
            "num_samples": 128,
            "pre_nms_top_k": (200, 200),
            "post_nms_top_k": (100, 100),
        },
        "roi_align": {"convention": "torchvision"},
        "box_head": {"hidden": 256, "conv_channels": (32, 128), "num_samples": 64, "pre_nms_top_k": 200},
        "mask_head": {"channels": 64, "num_convs": 2, "num_samples": 8, "mlp": "light", "mlp_channels": 2},
        "mask_predictor": "transfer",
        "weight_transfer": {"init_scale": 0.3},
        "box_supervision": {"num_samples": 4},
    },
}
# Regular expressions over the parameters that are not trained, as torchvision does with pretrained weights.
FROZEN = ("backbone/stem(_norm)?/.*", "backbone/res2_.*")


def fields(name: str, dtype: str = "float32") -> dict[str, Any]:
    """Return what `models.build.build` takes.

    Args:
      name: "mask_rcnn", "maskx_light", "maskx_paper", "fcos" (R-50-FPN), "mask_rcnn_c4" (R-50-C4) or "tiny".
      dtype: "float32" or "bfloat16".
    """
    model = copy.deepcopy({"tiny": _TINY, "fcos": _FCOS}.get(name, _TORCHVISION))
    if name == "mask_rcnn_c4":
        model["backbone"]["kind"] = "resnet_c4"
        model["rcnn"]["rpn"] |= {"channels": 1024, "pre_nms_top_k": (12000, 6000), "post_nms_top_k": (2000, 1000)}
        model["rcnn"]["box_head"] = {"body": "mean", "resolution": 14}
        model["rcnn"]["mask_head"] |= {"num_convs": 0}
    if name.startswith("maskx_"):
        model["rcnn"]["mask_predictor"] = "transfer"
        model["rcnn"]["mask_head"]["mlp"] = name.removeprefix("maskx_")
    return model | {"dtype": dtype}
