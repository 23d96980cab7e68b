"""What Mask R-CNN on C4, put together of torchvision's parts, makes of our parameters and images.

python -m tests.golden.make_c4
"""

import os
import pathlib
import zlib

import numpy as np
import torch
from torchvision.models.detection import MaskRCNN

from benchmarks import torchvision_c4
from benchmarks.parameters import NUM_CLASSES, make_c4_parameters
from maskx_jax import errors
from tests.golden import model_inputs as inputs
from tests.golden.torchvision_side import image_list, sample, save


def main() -> None:
    """Write one file an image with the outputs of every stage."""
    model = torchvision_c4.mask_rcnn(NUM_CLASSES + 1, rpn_post_nms_top_n_test=inputs.C4_PROPOSALS).eval()
    state = {name: torch.from_numpy(value) for name, value in make_c4_parameters().items()}
    model.load_state_dict(state, strict=True)
    coco_mini = pathlib.Path(os.environ.get("MASKX_COCO_MINI", "../shared/data/coco_mini"))
    for name in inputs.C4_CANVASES:
        canvas, size = inputs.make_canvas(name, coco_mini)
        arrays = _stages(model, canvas, size) | {"canvas_crc32": np.array(zlib.crc32(canvas.tobytes()))}
        save(f"c4_{name}", arrays)
        scores = arrays["detections/scores"]
        gap = np.diff(-scores).min()
        print(f"{name}: {len(scores)} detections, scores {scores[0]:.4f} to {scores[-1]:.4f}, at least {gap:.1e} apart")


@torch.no_grad()
def _stages(model: MaskRCNN, canvas: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    images = image_list(canvas, size)
    maps = model.backbone(images.tensors)
    logits, deltas = model.rpn.head(list(maps.values()))
    arrays: dict[str, np.ndarray] = {}
    for name, values in (("res4", maps["0"]), ("rpn_logits", logits[0]), ("rpn_deltas", deltas[0])):
        arrays |= sample(name, values.permute(0, 2, 3, 1))
    proposals, _ = model.rpn(images, maps)
    arrays["proposals"] = proposals[0].numpy()

    heads = model.roi_heads
    rois = proposals[0][:: inputs.C4_ROI_STEP]
    labels = torch.arange(len(rois)) * 7 % NUM_CLASSES + 1
    pooled = heads.box_roi_pool(maps, [rois], [size])
    box_logits, box_deltas = heads.box_predictor(heads.box_head(pooled))
    mask_logits = heads.mask_predictor(heads.mask_head(pooled))[torch.arange(len(rois)), labels]
    arrays |= {"rois": rois.numpy(), "labels": labels.numpy().astype(np.int32)}
    outputs = {"box_logits": box_logits, "box_deltas": box_deltas, "mask_logits": mask_logits}
    arrays |= {name: values.numpy() for name, values in outputs.items()}

    found = heads(maps, proposals, images.image_sizes)[0][0]
    arrays |= {f"detections/{key}": found[key].numpy() for key in ("boxes", "scores", "labels")}
    return arrays | {"detections/masks": np.round(found["masks"][:, 0].numpy() * inputs.MASK_STEPS).astype(np.uint16)}


if __name__ == "__main__":
    errors.run(main)
