"""Mask R-CNN on C4, put together of torchvision's parts, which has no such model; where torch is installed."""

from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.misc import FrozenBatchNorm2d


def mask_rcnn(num_classes: int, **options: Any) -> MaskRCNN:
    """Return the model with ResNet-50: 15 anchors on res4, 14 x 14 regions, res5 as the head of boxes and masks.

    Args:
      num_classes: with background.
      **options: of torchvision's `MaskRCNN`.
    """
    resnet = torchvision.models.resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    pool = MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2)
    proposals = {"rpn_pre_nms_top_n_test": 6000, "rpn_pre_nms_top_n_train": 12000}
    model = MaskRCNN(
        _Res4(resnet),
        rpn_anchor_generator=AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=pool,
        box_head=_Res5(resnet.layer4),
        box_predictor=FastRCNNPredictor(2048, num_classes),
        mask_roi_pool=pool,
        mask_head=nn.Identity(),
        mask_predictor=MaskRCNNPredictor(2048, 256, num_classes),
        **proposals | options,
    )
    # One copy for both, which has a name in the box head only.
    del model.roi_heads.mask_head
    model.roi_heads.mask_head = lambda pooled: resnet.layer4(pooled)
    return model


class _Res4(nn.Module):
    out_channels = 1024

    def __init__(self, resnet: nn.Module) -> None:
        super().__init__()
        for layer in (resnet.conv1, resnet.layer1):
            layer.requires_grad_(False)
        self.body = IntermediateLayerGetter(resnet, {"layer3": "0"})

    def forward(self, images: torch.Tensor) -> Any:
        return self.body(images)


class _Res5(nn.Module):
    def __init__(self, layer4: nn.Module) -> None:
        super().__init__()
        self.layer4 = layer4

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.layer4(pooled).mean((2, 3))
