"""What torchvision's RoIPool returns for the inputs of `op_inputs.py`: `python -m tests.golden.make_roi_pool`."""

import pathlib

import numpy as np
import torch
import torchvision
from torchvision.ops import roi_pool
from torchvision.ops.poolers import LevelMapper

from maskx_jax import errors
from tests.golden import op_inputs


def main() -> None:
    """Pool each box from its level, and write what came out and its gradient to `roi_pool.npz`."""
    goldens = {"versions": np.array([torch.__version__, torchvision.__version__])}
    boxes = torch.from_numpy(op_inputs.all_roi_boxes())
    maps = op_inputs.coarse_pyramid()
    levels = LevelMapper(min(maps), max(maps), 224, 4)([boxes]) + min(maps)
    for size in op_inputs.ROI_SIZES:
        pooled = np.zeros((len(boxes), size, size, op_inputs.ROI_CHANNELS), np.float32)
        cotangent = torch.from_numpy(op_inputs.roi_cotangent(len(boxes), size))
        for level, features in maps.items():
            chosen = levels == level
            given = torch.from_numpy(features).permute(2, 0, 1)[None].contiguous().requires_grad_()
            own = roi_pool(given, [boxes[chosen]], size, 2.0**-level).permute(0, 2, 3, 1)
            own.backward(cotangent[chosen])
            assert given.grad is not None
            pooled[chosen.numpy()] = own.detach().numpy()
            goldens[f"gradient/{size}/{level}"] = given.grad[0].permute(1, 2, 0).numpy()
        goldens[f"pooled/{size}"] = pooled
    np.savez_compressed(pathlib.Path(__file__).with_name("roi_pool.npz"), allow_pickle=False, **goldens)


if __name__ == "__main__":
    errors.run(main)
