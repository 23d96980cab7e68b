"""What torchvision's Keypoint R-CNN makes of our parameters and images, where torch is installed.

    python -m tests.golden.make_keypoints

It also runs the way back: our parameters, exported, are loaded by torchvision and are what they were.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
import torchvision
from torchvision.models.detection import KeypointRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.misc import FrozenBatchNorm2d

from benchmarks.parameters import keypoint_shapes, make_parameters
from maskx_jax import errors
from maskx_jax.weights.export import to_torchvision
from tests.golden import model_inputs as inputs
from tests.golden.torchvision_side import batch_list, image_list, losses_and_gradients, sample, save
from tests.models.build import shapes_batch
from tests.models.torchvision_model import imported_keypoint_rcnn


def main() -> None:
    """Write a file with the outputs on one image, one with losses and gradients; check the way back."""
    state = {name: torch.from_numpy(value) for name, value in make_parameters(keypoint_shapes()).items()}
    print(f"parameters: {sum(parameter.numel() for parameter in _keypoint_rcnn(state).parameters())}")
    canvas, size = inputs.make_canvas("shapes_512", None)
    arrays = _stages(_keypoint_rcnn(state).eval(), canvas, size)
    arrays["canvas_crc32"] = np.array(zlib.crc32(canvas.tobytes()))
    save("keypoint_shapes_512", arrays)
    scores = arrays["detections/scores"]
    print(f"{len(scores)} detections, scores {scores[0]:.4f} to {scores[-1]:.4f}")
    save("keypoint_losses", _losses(state))
    _way_back(state)


def _keypoint_rcnn(state: Mapping[str, torch.Tensor], **options: Any) -> KeypointRCNN:
    """Return `keypointrcnn_resnet50_fpn` as it is with pretrained weights: frozen BatchNorm, stem and layer1."""
    body = torchvision.models.resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    model = KeypointRCNN(_resnet_fpn_extractor(body, 3), 2, num_keypoints=17, **options)
    model.load_state_dict(state, strict=True)
    return model


@torch.no_grad()
def _stages(model: KeypointRCNN, canvas: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    images = image_list(canvas, size)
    pyramid = model.backbone(images.tensors)
    proposals, _ = model.rpn(images, pyramid)
    heads = model.roi_heads
    rois = proposals[0][torch.from_numpy(inputs.KEYPOINT_ROIS[len(proposals[0]) > inputs.KEYPOINT_ROIS])]
    maps = heads.keypoint_predictor(heads.keypoint_head(heads.keypoint_roi_pool(pyramid, [rois], [size])))
    found = heads(pyramid, proposals, images.image_sizes)[0][0]
    names = ("boxes", "scores", "labels", "keypoints", "keypoints_scores")
    return {
        "keypoint_rois": rois.numpy(),
        **sample("keypoint_maps", maps),
        **{f"detections/{name}": found[name].numpy() for name in names},
    }


def _losses(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the losses of a batch on which every anchor and region is trained, and some gradients of their sum."""
    model = _keypoint_rcnn(
        state,
        rpn_pre_nms_top_n_train=inputs.KEYPOINT_LOSS_PROPOSALS[0],
        rpn_post_nms_top_n_train=inputs.KEYPOINT_LOSS_PROPOSALS[1],
        rpn_batch_size_per_image=inputs.LOSS_SAMPLES["rpn"],
        box_batch_size_per_image=inputs.LOSS_SAMPLES["box"],
        box_positive_fraction=0.5,
    ).train()
    batch = shapes_batch(image_size=inputs.LOSS_IMAGE_SIZE)
    gt = jax.tree.map(np.array, batch.ground_truth)
    points, labelled = inputs.made_up_keypoints(gt.boxes)
    keypoints = np.concatenate([points, labelled[..., None].astype(np.float32)], axis=-1)
    targets = []
    for i, real in enumerate(gt.valid & ~gt.is_crowd):
        fields = {"boxes": gt.boxes[i], "labels": np.ones(len(real), np.int64), "keypoints": keypoints[i]}
        targets.append({name: torch.from_numpy(values[real]) for name, values in fields.items()})
    images = batch_list(np.array(batch.images))
    pyramid = model.backbone(images.tensors)
    proposals, rpn_losses = model.rpn(images, pyramid, targets)
    _, roi_losses = model.roi_heads(pyramid, proposals, images.image_sizes, targets)
    losses = rpn_losses | roi_losses
    proposed = {"proposals": np.stack([boxes.numpy() for boxes in proposals])}
    return proposed | losses_and_gradients(losses, model, inputs.KEYPOINT_GRADIENTS)


def _way_back(state: Mapping[str, torch.Tensor]) -> None:
    """Export our parameters, load them into torchvision's model, and compare them with those that ours came from."""
    imported = imported_keypoint_rcnn()
    exported = to_torchvision(imported.variables, imported.model, imported.fields)
    _keypoint_rcnn({name: torch.from_numpy(value) for name, value in exported.items()})
    convolved = [name for name in state if ".bn" not in name and ".downsample.1." not in name]
    same = all(np.array_equal(exported[name], state[name].numpy()) for name in convolved)
    print(f"way back: {len(exported)} arrays load, {len(convolved)} beside the BatchNorms' are the same: {same}")


if __name__ == "__main__":
    errors.run(main)
