"""What torchvision's detection ops return for the inputs of `op_inputs.py`: `python -m tests.golden.make_ops`."""

import pathlib

import numpy as np
import torch
import torchvision
from torchvision.models.detection import _utils as detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import MultiScaleRoIAlign, batched_nms, box_iou, nms

from maskx_jax import errors
from tests.golden import op_inputs


def main() -> None:
    """Compute all goldens of the ops and write them to `ops.npz`."""
    goldens = {
        "versions": np.array([torch.__version__, torchvision.__version__]),
        **_roi_align(),
        **_nms(),
        **_coder(),
        **_anchors(),
        **_matching(),
        **_paste(),
    }
    np.savez_compressed(pathlib.Path(__file__).with_name("ops.npz"), allow_pickle=False, **goldens)


def _pool(boxes: np.ndarray, size: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Return the pooled features, channels last, and the gradient of each level along the fixed cotangent."""
    maps = {
        str(level): torch.from_numpy(features).permute(2, 0, 1)[None].contiguous().requires_grad_()
        for level, features in op_inputs.pyramid().items()
    }
    pooler = MultiScaleRoIAlign(list(maps), size, sampling_ratio=2, canonical_scale=224, canonical_level=4)
    pooled = pooler(maps, [torch.from_numpy(boxes)], [op_inputs.CANVAS]).permute(0, 2, 3, 1)
    pooled.backward(torch.from_numpy(op_inputs.roi_cotangent(len(boxes), size)))
    gradients = {}
    for level, features in maps.items():
        assert features.grad is not None
        gradients[int(level)] = features.grad[0].permute(1, 2, 0).numpy()
    return pooled.detach().numpy(), gradients


def _roi_align() -> dict[str, np.ndarray]:
    goldens = {}
    for size in op_inputs.ROI_SIZES:
        for name, boxes in op_inputs.roi_boxes().items():
            goldens[f"roi_align/{name}/{size}"], gradients = _pool(boxes, size)
            if name == "none on level 4":
                for level, gradient in gradients.items():
                    goldens[f"roi_align_gradient/{name}/{size}/{level}"] = gradient
        _, gradients = _pool(op_inputs.all_roi_boxes(), size)
        for level, gradient in gradients.items():
            goldens[f"roi_align_gradient/all/{size}/{level}"] = gradient
    return goldens


def _nms() -> dict[str, np.ndarray]:
    boxes, scores, labels = map(torch.from_numpy, op_inputs.nms_boxes())
    goldens = {}
    for threshold in op_inputs.NMS_THRESHOLDS:
        goldens[f"nms/{threshold}"] = nms(boxes, scores, threshold).numpy().astype(np.int32)
        kept = batched_nms(boxes, scores, labels, threshold)
        goldens[f"batched_nms/{threshold}"] = kept.numpy().astype(np.int32)
        kept = nms(*map(torch.from_numpy, op_inputs.nms_boxes_at_a_threshold(threshold)), threshold)
        goldens[f"nms_at_the_threshold/{threshold}"] = kept.numpy().astype(np.int32)
    return goldens


def _coder() -> dict[str, np.ndarray]:
    boxes, anchors = map(torch.from_numpy, op_inputs.coder_boxes())
    deltas = torch.from_numpy(op_inputs.coder_deltas())
    goldens = {}
    for name, weights in op_inputs.CODER_WEIGHTS.items():
        coder = detection.BoxCoder(weights)
        goldens[f"encode/{name}"] = coder.encode_single(boxes, anchors).numpy()
        # Deltas come scaled by the weights, so that the clip is reached with both.
        goldens[f"decode/{name}"] = coder.decode_single(deltas * torch.tensor(weights), anchors).numpy()
    return goldens


def _anchors() -> dict[str, np.ndarray]:
    generator = AnchorGenerator(
        tuple((size,) for size in op_inputs.ANCHOR_SIZES), (op_inputs.ASPECT_RATIOS,) * len(op_inputs.ANCHOR_SIZES)
    )
    goldens = {}
    for name, (height, width) in op_inputs.ANCHOR_CANVASES.items():
        images = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
        maps = [torch.zeros(1, 1, *op_inputs.map_size((height, width), level)) for level in op_inputs.ANCHOR_LEVELS]
        goldens[f"anchors/{name}"] = generator(images, maps)[0].numpy()
    return goldens


def _matching() -> dict[str, np.ndarray]:
    scenes = {
        **op_inputs.matching_scenes(),
        "an object that nothing touches": op_inputs.scene_with_an_object_that_nothing_touches(),
    }
    goldens = {}
    for name, (candidates, objects) in scenes.items():
        overlaps = box_iou(torch.from_numpy(objects), torch.from_numpy(candidates))
        for matcher, settings in op_inputs.MATCHERS.items():
            goldens[f"match/{name}/{matcher}"] = detection.Matcher(*settings)(overlaps).numpy().astype(np.int32)
    return goldens


def _paste() -> dict[str, np.ndarray]:
    boxes = torch.from_numpy(np.stack(list(op_inputs.paste_boxes().values())))
    goldens = {}
    for name, masks in op_inputs.paste_masks().items():
        pasted = paste_masks_in_image(torch.from_numpy(masks)[:, None], boxes, op_inputs.PASTE_IMAGE)[:, 0]
        goldens[f"paste/{name}"] = np.packbits(pasted.numpy() > 0.5, axis=-1)
    return goldens


if __name__ == "__main__":
    errors.run(main)
