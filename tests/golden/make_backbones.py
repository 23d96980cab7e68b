"""What torchvision's ResNeXt, and its ResNet with GroupNorm, make of our parameters, where torch is installed.

python -m tests.golden.make_backbones
"""

import functools

import numpy as np
import torch
from torchvision.models import _utils, resnet
from torchvision.ops.misc import FrozenBatchNorm2d

from maskx_jax import errors
from tests.golden import backbone_inputs as inputs
from tests.golden.torchvision_side import sample, save


@torch.no_grad()
def main() -> None:
    """Write one file with maps of all backbones, and print how many parameters the whole ones have."""
    arrays: dict[str, np.ndarray] = {}
    for name, (groups, group_width) in inputs.GROUPS.items():
        norm = functools.partial(torch.nn.GroupNorm, 32) if name == "r50_gn" else FrozenBatchNorm2d
        options = {"groups": groups, "width_per_group": group_width, "norm_layer": norm}
        model = resnet.ResNet(resnet.Bottleneck, list(inputs.STAGE_SIZES), **options)
        state = {field: torch.from_numpy(value) for field, value in inputs.parameters(name).items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert missing == ["fc.weight", "fc.bias"] and not unexpected, (missing, unexpected)
        body = _utils.IntermediateLayerGetter(model.eval(), {f"layer{i}": str(i + 1) for i in range(1, 5)})
        for level, values in body(torch.from_numpy(inputs.image()).permute(0, 3, 1, 2)).items():
            arrays |= sample(f"{name}/{level}", values.permute(0, 2, 3, 1))
    save("backbones", arrays)
    whole = {"x101_32x8d": resnet.resnext101_32x8d, "x101_64x4d": resnet.resnext101_64x4d}
    for name, build in whole.items():
        print(f"{name}: {sum(parameter.numel() for parameter in build(weights=None).parameters())} parameters")


if __name__ == "__main__":
    errors.run(main)
