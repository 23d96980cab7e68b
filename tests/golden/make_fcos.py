"""What torchvision's FCOS makes of our parameters and images, where torch is installed.

    python -m tests.golden.make_fcos

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
from torchvision.models.detection import FCOS
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from benchmarks.parameters import NUM_CLASSES, fcos_shapes, make_parameters
from maskx_jax import errors
from tests.golden import model_inputs as inputs
from tests.golden.torchvision_side import batch_list, image_list, losses_and_gradients, sample, save, way_back
from tests.models.build import shapes_batch
from tests.models.torchvision_model import imported_fcos


def main() -> None:
    """Write one file an image with the outputs of every stage, one with losses and gradients; check the way back."""
    state = {name: torch.from_numpy(value) for name, value in make_parameters(fcos_shapes()).items()}
    coco_mini = pathlib.Path(os.environ.get("MASKX_COCO_MINI", "../shared/data/coco_mini"))
    print(f"parameters: {sum(parameter.numel() for parameter in _fcos(state).parameters())}")
    for name in inputs.CANVASES:
        canvas, size = inputs.make_canvas(name, coco_mini)
        arrays = _stages(_fcos(state).eval(), canvas, size)
        arrays["canvas_crc32"] = np.array(zlib.crc32(canvas.tobytes()))
        save(f"fcos_{name}", arrays)
        scores = arrays["detections/scores"]
        gap = np.diff(-scores).min()
        print(f"{name}: {len(scores)} detections, scores {scores[0]:.4f} to {scores[-1]:.4f}, at least {gap:.1e} apart")
    save("fcos_losses", _losses(state))
    way_back(imported_fcos(), lambda state, *image: _stages(_fcos(state).eval(), *image))


def _fcos(state: Mapping[str, torch.Tensor], **options: Any) -> FCOS:
    """Return `fcos_resnet50_fpn` as it is with pretrained weights: frozen BatchNorm, stem and layer1."""
    body = torchvision.models.resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    backbone = _resnet_fpn_extractor(body, 3, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
    model = FCOS(backbone, NUM_CLASSES + 1, **options)
    model.load_state_dict(state, strict=True)
    return model


@torch.no_grad()
def _stages(model: FCOS, canvas: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    images = image_list(canvas, size)
    pyramid = list(model.backbone(images.tensors).values())
    counts = [features.shape[-2] * features.shape[-1] for features in pyramid]
    outputs = {name: list(values.split(counts, dim=1)) for name, values in model.head(pyramid).items()}
    anchors = [list(boxes.split(counts)) for boxes in model.anchor_generator(images, pyramid)]
    arrays: dict[str, np.ndarray] = {}
    for i, features in enumerate(pyramid):
        arrays |= sample(f"fpn/{i + 3}", features.permute(0, 2, 3, 1))
        # Without the channel for background.
        arrays |= sample(f"logits/{i + 3}", outputs["cls_logits"][i][..., 1:])
        arrays |= sample(f"distances/{i + 3}", outputs["bbox_regression"][i])
        arrays |= sample(f"centerness/{i + 3}", outputs["bbox_ctrness"][i])
    corners = torch.cat(anchors[0])
    arrays["points"] = ((corners[:, :2] + corners[:, 2:]) / 2).numpy()
    found = model.postprocess_detections(outputs, anchors, images.image_sizes)[0]
    return arrays | {f"detections/{key}": found[key].numpy() for key in ("boxes", "scores", "labels")}


def _losses(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the losses of a batch, and some gradients of their sum."""
    model = _fcos(state).train()
    batch = shapes_batch(image_size=inputs.FCOS_LOSS_IMAGE_SIZE)
    gt = jax.tree.map(np.array, batch.ground_truth)
    real = gt.valid & ~gt.is_crowd
    targets = [
        {
            "boxes": torch.from_numpy(gt.boxes[i][real[i]]),
            "labels": torch.from_numpy(gt.labels[i][real[i]].astype(np.int64)),
        }
        for i in range(len(real))
    ]
    images = batch_list(np.array(batch.images))
    pyramid = list(model.backbone(images.tensors).values())
    counts = [features.shape[-2] * features.shape[-1] for features in pyramid]
    losses = model.compute_loss(targets, model.head(pyramid), model.anchor_generator(images, pyramid), counts)
    return losses_and_gradients(losses, model, inputs.FCOS_GRADIENTS)


if __name__ == "__main__":
    errors.run(main)
