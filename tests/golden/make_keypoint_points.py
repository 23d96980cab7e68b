"""Where torchvision finds the keypoints of `keypoint_inputs.py`: `python -m tests.golden.make_keypoint_points`."""

import pathlib

import numpy as np
import torch
import torchvision
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints

from maskx_jax import errors
from tests.golden import keypoint_inputs as inputs


def main() -> None:
    """Write keypoint_points.npz: points `d k 2` and logits `d k`."""
    maps, boxes = torch.from_numpy(inputs.maps()), torch.from_numpy(inputs.boxes())
    points, logits = heatmaps_to_keypoints(maps, boxes)
    np.savez_compressed(
        pathlib.Path(__file__).with_name("keypoint_points.npz"),
        allow_pickle=False,
        versions=np.array([torch.__version__, torchvision.__version__]),
        points=points[..., :2].numpy(),
        logits=logits.numpy(),
    )


if __name__ == "__main__":
    errors.run(main)
