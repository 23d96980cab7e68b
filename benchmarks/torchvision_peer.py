"""torchvision's side: `python -m benchmarks.torchvision_peer FOLDER`, in an environment of its own."""

import contextlib
import pathlib
import sys
from typing import Any

import numpy as np
import torch
import torchvision
from torchvision.models.detection import FCOS, MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign, batched_nms
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from benchmarks import cases, torchvision_c4
from benchmarks.worker import Call, serve

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build(folder: pathlib.Path, case: cases.Case) -> tuple[Call, dict[str, Any]]:
    """Return the call that does the work of a case, and what is reported of it."""
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    work = _work(folder, case)
    half = getattr(case, "dtype", "float32") == "bfloat16"

    def call() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16) if half else contextlib.nullcontext():
            work()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    return call, {"version": f"torch {torch.__version__}, torchvision {torchvision.__version__} on {device}"}


def _work(folder: pathlib.Path, case: cases.Case) -> Call:
    arrays = cases.inputs(case)
    match case:
        case cases.Network():
            works = {"train": _train, "detect": _detect, "network": _network}
            return works[case.work](_model(folder, case.model, case.canvas), arrays, case)
        case cases.Stage():
            stage = _train if case.stage in cases.TRAIN_STAGES else _stage
            return stage(_model(folder, case.model, case.canvas), arrays, case)
        case cases.RoIAlign():
            return _roi_align(arrays, case)
        case cases.NMS():
            return _nms(arrays, case)
        case cases.Paste():
            return _paste(arrays, case)
        case cases.Product():
            return _product(case)
        case cases.Copy():
            return _copy(case)
    raise ValueError(f"torchvision has nothing beside {case.name}")


def _model(folder: pathlib.Path, name: str, canvas: cases.Canvas) -> MaskRCNN | FCOS:
    """Return `maskrcnn_resnet50_fpn` or `fcos_resnet50_fpn` as it is with pretrained weights, with our parameters.

    Or Mask R-CNN on C4, of torchvision's parts.
    """
    body = torchvision.models.resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    classes, sizes = cases.NUM_CLASSES + 1, {"min_size": min(canvas), "max_size": max(canvas)}
    if name == "fcos":
        model = FCOS(_resnet_fpn_extractor(body, 3, [2, 3, 4], LastLevelP6P7(256, 256)), classes, **sizes)
    elif name == "mask_rcnn_c4":
        model = torchvision_c4.mask_rcnn(classes, **sizes)
    else:
        # Our number of proposals.
        model = MaskRCNN(_resnet_fpn_extractor(body, 3), classes, rpn_post_nms_top_n_train=1000, **sizes)
    with np.load(folder / f"{name}.npz") as parameters:
        model.load_state_dict({name: torch.from_numpy(parameters[name]) for name in parameters.files}, strict=True)
    channels_last = torch.channels_last if DEVICE.type == "cuda" else torch.preserve_format
    return model.to(DEVICE, memory_format=channels_last)


def _images(arrays: dict[str, np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(image).permute(2, 0, 1).to(DEVICE).float() / 255 for image in arrays["images"]]


def _train(model: MaskRCNN | FCOS, arrays: dict[str, np.ndarray], case: cases.Network | cases.Stage) -> Call:
    """Return a train step, or one part of it."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9, weight_decay=1e-4)
    images, targets = _images(arrays), []
    for boxes, labels in zip(arrays["gt_boxes"], arrays["gt_labels"], strict=True):
        masks = torch.zeros((len(boxes), *case.canvas), dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
            mask[y1:y2, x1:x2] = 1
        target = {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels), "masks": masks}
        targets.append({name: value.to(DEVICE) for name, value in target.items()})

    def losses() -> torch.Tensor:
        return torch.stack(list(model(images, targets).values())).sum()

    def backward() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses().backward()

    def step() -> None:
        backward()
        optimizer.step()

    stage = case.stage if isinstance(case, cases.Stage) else ""
    if stage == "optimizer":
        backward()
    parts: dict[str, Call] = {
        "losses": torch.no_grad()(losses),
        "losses_backward": backward,
        "optimizer": optimizer.step,
    }
    return parts.get(stage, step)


def _detect(model: MaskRCNN | FCOS, arrays: dict[str, np.ndarray], case: cases.Network) -> Call:
    del case
    model.eval()
    images = _images(arrays)

    @torch.no_grad()
    def detect() -> Any:
        return [(found["masks"] > 0.5 if "masks" in found else found["boxes"]).cpu() for found in model(images)]

    return detect


def _network(model: MaskRCNN | FCOS, arrays: dict[str, np.ndarray], case: cases.Network) -> Call:
    # Masks stay as the network makes them, and on the device.
    model.transform.postprocess = lambda result, shapes, sizes: result
    model.eval()
    images = _images(arrays)
    return torch.no_grad()(lambda: model(images))


@torch.no_grad()
def _stage(model: MaskRCNN | FCOS, arrays: dict[str, np.ndarray], case: cases.Stage) -> Call:
    model.eval()
    sizes = [case.canvas] * case.batch
    images = ImageList(torch.stack(_images(arrays)), sizes)
    heads = model.roi_heads
    pyramid = model.backbone(images.tensors)
    maps = list(pyramid.values())
    rois = [torch.from_numpy(boxes).to(DEVICE) for boxes in arrays["rois"]]
    of_masks = [boxes[:100] for boxes in rois]
    for_boxes, for_masks = heads.box_roi_pool(pyramid, rois, sizes), heads.mask_roi_pool(pyramid, of_masks, sizes)
    rpn = model.rpn
    logits, deltas = rpn.head(maps)

    def proposals() -> Any:
        anchors = rpn.anchor_generator(images, maps)
        counts = [logit[0].numel() for logit in logits]
        scores, offsets = concat_box_prediction_layers(list(logits), list(deltas))
        boxes = rpn.box_coder.decode(offsets, anchors).view(case.batch, -1, 4)
        return rpn.filter_proposals(boxes, scores, sizes, counts)

    stages: dict[str, Call] = {
        "backbone_fpn": lambda: model.backbone(images.tensors),
        "rpn_head": lambda: rpn.head(maps),
        "proposals": proposals,
        "pool_boxes": lambda: heads.box_roi_pool(pyramid, rois, sizes),
        "box_head": lambda: heads.box_predictor(heads.box_head(for_boxes)),
        "pool_masks": lambda: heads.mask_roi_pool(pyramid, of_masks, sizes),
        "mask_head": lambda: heads.mask_predictor(heads.mask_head(for_masks)),
    }
    return torch.no_grad()(stages[case.stage])


def _roi_align(arrays: dict[str, np.ndarray], case: cases.RoIAlign) -> Call:
    maps = {
        str(level): torch.from_numpy(features)
        .permute(2, 0, 1)
        .expand(case.batch, -1, -1, -1)
        .to(DEVICE, getattr(torch, case.dtype), memory_format=torch.contiguous_format)
        for level, features in cases.feature_maps(case.canvas).items()
    }
    rois = [torch.from_numpy(boxes[: case.rois]).to(DEVICE) for boxes in arrays["rois"]]
    sizes = [case.canvas] * case.batch
    pool = MultiScaleRoIAlign(list(maps), case.bins, 2)
    if not case.gradient:
        return torch.no_grad()(lambda: pool(maps, rois, sizes))
    for features in maps.values():
        features.requires_grad_()

    def both() -> None:
        for features in maps.values():
            features.grad = None
        pool(maps, rois, sizes).sum().backward()

    return both


def _nms(arrays: dict[str, np.ndarray], case: cases.NMS) -> Call:
    boxes = torch.from_numpy(arrays["nms_boxes"]).flatten(0, 1).to(DEVICE)
    scores = torch.from_numpy(arrays["nms_scores"]).flatten().to(DEVICE)
    groups = torch.arange(case.groups, device=DEVICE).repeat_interleave(case.boxes)
    return lambda: batched_nms(boxes, scores, groups, 0.7)


def _paste(arrays: dict[str, np.ndarray], case: cases.Paste) -> Call:
    masks = torch.from_numpy(arrays["masks"])[:, None]
    boxes = torch.from_numpy(arrays["rois"][0, :100])
    return lambda: paste_masks_in_image(masks, boxes, case.canvas) > 0.5


def _product(case: cases.Product) -> Call:
    matrix = torch.ones((case.rows, case.rows), dtype=getattr(torch, case.dtype), device=DEVICE)
    return lambda: matrix @ matrix


def _copy(case: cases.Copy) -> Call:
    values = torch.ones(case.mebibytes * 2**18, device=DEVICE)
    return lambda: values + 1


def _peak_bytes() -> int | None:
    return torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else None


if __name__ == "__main__":
    given = pathlib.Path(sys.argv[1])
    serve(lambda fields: build(given, cases.from_json(fields)), _peak_bytes)
