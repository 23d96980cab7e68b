"""What torchvision's Mask R-CNN makes of our parameters and images, where torch is installed.

    python -m tests.golden.make_model

It also runs the way back: our parameters, exported, in torchvision, against our own detections.
"""

import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
import torchvision
from torchvision.models.detection import MaskRCNN, roi_heads
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.misc import FrozenBatchNorm2d

from benchmarks.parameters import NUM_CLASSES, make_parameters
from maskx_jax import errors
from maskx_jax.ops.mask_targets import sample_mask
from tests.golden import model_inputs as inputs
from tests.golden.torchvision_side import batch_list, image_list, losses_and_gradients, sample, save, way_back
from tests.models.build import shapes_batch
from tests.models.torchvision_model import imported_model


def main() -> None:
    """Write one file an image with the outputs of every stage, one with losses and gradients; check the way back."""
    state = {name: torch.from_numpy(value) for name, value in make_parameters().items()}
    coco_mini = pathlib.Path(os.environ.get("MASKX_COCO_MINI", "../shared/data/coco_mini"))
    for name in inputs.CANVASES:
        canvas, size = inputs.make_canvas(name, coco_mini)
        arrays = _stages(_torchvision_model(state).eval(), canvas, size)
        arrays["canvas_crc32"] = np.array(zlib.crc32(canvas.tobytes()))
        save(f"model_{name}", arrays)
        scores = arrays["detections/scores"]
        print(f"{name}: {len(scores)} detections, scores {scores[0]:.4f} to {scores[-1]:.4f}")
    save("model_losses", _losses(state))
    _way_back()


def _torchvision_model(state: Mapping[str, torch.Tensor], **options: Any) -> MaskRCNN:
    """Return `maskrcnn_resnet50_fpn` as it is with pretrained weights: frozen BatchNorm, stem and layer1."""
    body = torchvision.models.resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    model = MaskRCNN(_resnet_fpn_extractor(body, 3), NUM_CLASSES + 1, **options)
    model.load_state_dict(state, strict=True)
    return model


@torch.no_grad()
def _stages(model: MaskRCNN, canvas: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    images = image_list(canvas, size)
    pyramid = model.backbone(images.tensors)
    logits, deltas = model.rpn.head(list(pyramid.values()))
    arrays: dict[str, np.ndarray] = {}
    for level, (features, logit, delta) in enumerate(zip(pyramid.values(), logits, deltas, strict=True), 2):
        for name, values in (("fpn", features), ("rpn_logits", logit), ("rpn_deltas", delta)):
            arrays |= sample(f"{name}/{level}", values.permute(0, 2, 3, 1))
    proposals, _ = model.rpn(images, pyramid)
    arrays["proposals"] = proposals[0].numpy()

    heads = model.roi_heads
    rois = proposals[0][torch.from_numpy(inputs.BOX_ROIS[len(proposals[0]) > inputs.BOX_ROIS])]
    box_logits, box_deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(pyramid, [rois], [size])))
    arrays |= {"box_rois": rois.numpy(), "box_logits": box_logits.numpy(), "box_deltas": box_deltas.numpy()}
    rois = proposals[0][torch.from_numpy(inputs.MASK_ROIS[len(proposals[0]) > inputs.MASK_ROIS])]
    labels = torch.arange(len(rois)) * 7 % NUM_CLASSES + 1
    mask_logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(pyramid, [rois], [size])))
    arrays |= {"mask_rois": rois.numpy(), "mask_labels": labels.numpy().astype(np.int32)}
    arrays["mask_logits"] = mask_logits[torch.arange(len(rois)), labels].numpy()

    found = heads(pyramid, proposals, images.image_sizes)[0][0]
    arrays |= {f"detections/{key}": found[key].numpy() for key in ("boxes", "scores", "labels")}
    # In 16 bits: the masks are compared where they pass one half.
    arrays["detections/masks"] = np.round(found["masks"][:, 0].numpy() * inputs.MASK_STEPS).astype(np.uint16)
    return arrays


def _losses(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the losses of a batch on which every anchor and region is trained, and some gradients of their sum."""
    model = _torchvision_model(
        state,
        rpn_pre_nms_top_n_train=inputs.LOSS_PROPOSALS[0],
        rpn_post_nms_top_n_train=inputs.LOSS_PROPOSALS[1],
        rpn_batch_size_per_image=inputs.LOSS_SAMPLES["rpn"],
        box_batch_size_per_image=inputs.LOSS_SAMPLES["box"],
        box_positive_fraction=0.5,
    ).train()
    batch = shapes_batch(image_size=inputs.LOSS_IMAGE_SIZE)
    gt = jax.tree.map(np.array, batch.ground_truth)
    targets, stored = [], {}
    for i in range(len(gt.valid)):
        real = gt.valid[i] & ~gt.is_crowd[i]
        masks = torch.from_numpy(gt.masks[i][real])
        stored[masks.data_ptr()] = (gt.masks[i][real], gt.mask_frames[i][real])
        targets.append(
            {
                "boxes": torch.from_numpy(gt.boxes[i][real]),
                "labels": torch.from_numpy(gt.labels[i][real].astype(np.int64)),
                "masks": masks,
            }
        )

    # torchvision averages a bitmap of the image over each cell, half a pixel off; our targets are the bit at the cell's
    # middle. The comparison is of the losses, so it is given our targets.
    def our_targets(masks: torch.Tensor, boxes: torch.Tensor, index: torch.Tensor, size: int) -> torch.Tensor:
        bits, frames = stored[masks.data_ptr()]
        return torch.from_numpy(np.array(sample_mask(bits, frames, index.numpy(), boxes.numpy(), size), np.float32))

    theirs = roi_heads.project_masks_on_boxes
    roi_heads.project_masks_on_boxes = our_targets
    try:
        images = batch_list(np.array(batch.images))
        pyramid = model.backbone(images.tensors)
        proposals, rpn_losses = model.rpn(images, pyramid, targets)
        _, roi_losses = model.roi_heads(pyramid, proposals, images.image_sizes, targets)
    finally:
        roi_heads.project_masks_on_boxes = theirs
    losses = rpn_losses | roi_losses
    proposed = {"proposals": np.stack([boxes.numpy() for boxes in proposals])}
    return proposed | losses_and_gradients(losses, model, inputs.GRADIENTS)


def _way_back() -> None:
    ours, theirs = way_back(imported_model(), lambda state, *image: _stages(_torchvision_model(state).eval(), *image))
    masks = ours.masks > 0.5, theirs["detections/masks"] > inputs.MASK_STEPS / 2
    overlap = (masks[0] & masks[1]).sum((1, 2)) / np.maximum((masks[0] | masks[1]).sum((1, 2)), 1)
    print(f"way back: lowest mask IoU {overlap.min():.5f}")


if __name__ == "__main__":
    errors.run(main)
