"""Pictures for EfficientNet-Lite0, and its classifier, which is no part of a backbone."""

import pathlib

import numpy as np

from benchmarks.cases import make_inputs

GOLDEN = pathlib.Path(__file__).with_name("efficientnet_lite0.npz")
_MEAN, _STD = (np.array(values, np.float32) for values in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
# Of each block: its input channels, the side of its kernel and its output channels.
_BLOCKS = (
    *((32, 3, 16), (16, 3, 24), (24, 3, 24), (24, 5, 40), (40, 5, 40), (40, 3, 80), (80, 3, 80), (80, 3, 80)),
    *((80, 5, 112), (112, 5, 112), (112, 5, 112), (112, 5, 192), *[(192, 5, 192)] * 3, (192, 3, 320)),
)
# How many blocks timm's stages have.
_STAGES = (1, 2, 2, 3, 3, 4, 1)


def pictures(count: int = 10) -> np.ndarray:
    """Return normalised pixels, count x 224 x 224 x 3."""
    colours = np.random.default_rng(1).uniform(0.2, 1, (count, 1, 1, 3))
    images = make_inputs((224, 224), count)["images"] * colours
    return ((images - _MEAN) / _STD).astype(np.float32)


def logits(map5: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Return what the classifier makes of the last map, count x 1000."""
    x = map5 @ arrays["_conv_head.weight"][:, :, 0, 0].T
    x = (x - arrays["_bn1.running_mean"]) / np.sqrt(arrays["_bn1.running_var"] + 1e-3)
    x = np.clip(x * arrays["_bn1.weight"] + arrays["_bn1.bias"], 0, 6).mean(axis=(1, 2))
    return x @ arrays["_fc.weight"].T + arrays["_fc.bias"]


def golden() -> np.ndarray:
    """Return the logits of the torch module."""
    return np.load(GOLDEN)["logits"]


def random_arrays() -> dict[str, np.ndarray]:
    """Return random parameters of the backbone by the package's names."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}

    def layer(conv: str, norm: str, *shape: int) -> None:
        arrays[f"{conv}.weight"] = rng.standard_normal(shape).astype(np.float32)
        for field in ("weight", "bias", "running_mean", "running_var"):
            arrays[f"{norm}.{field}"] = rng.uniform(0.5, 1.5, shape[:1]).astype(np.float32)

    layer("_conv_stem", "_bn0", 32, 3, 3, 3)
    for number, (inputs, side, outputs) in enumerate(_BLOCKS):
        name, inner = f"_blocks.{number}", inputs * (6 if number else 1)
        if number:
            layer(f"{name}._expand_conv", f"{name}._bn0", inner, inputs, 1, 1)
        layer(f"{name}._depthwise_conv", f"{name}._bn1", inner, 1, side, side)
        layer(f"{name}._project_conv", f"{name}._bn2", outputs, inner, 1, 1)
    return arrays


def by_names_of_timm(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the same arrays by the names of timm's tf_efficientnet_lite0."""
    places = [(stage, block) for stage, count in enumerate(_STAGES) for block in range(count)]
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
    later |= {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}

    def renamed(name: str) -> str:
        parts = name.split(".")
        if parts[0] != "_blocks":
            return {"_conv_stem": "conv_stem", "_bn0": "bn1"}[parts[0]] + f".{parts[1]}"
        number = int(parts[1])
        stage, block = places[number]
        return f"blocks.{stage}.{block}.{(later if number else first)[parts[2]]}.{parts[3]}"

    return {renamed(name): array for name, array in arrays.items()}
