"""The hourglass of a mask head on one region, in NumPy: its levels one after the other, channels first.

The parameters of our modules are taken by their names.
"""

import numpy as np


def convolve(x, kernel, stride):
    """Return a convolution of `c h w` with a kernel `k k c o`, padded by k // 2."""
    size = len(kernel)
    padded = np.pad(x, [(0, 0), *[(size // 2, size // 2)] * 2])
    _, height, width = x.shape
    y = np.zeros((kernel.shape[-1], height // stride, width // stride))
    for row in range(y.shape[1]):
        for column in range(y.shape[2]):
            top, left = stride * row, stride * column
            y[:, row, column] = np.einsum("chw,hwco->o", padded[:, top : top + size, left : left + size], kernel)
    return y


def normalize(x, scale, bias):
    """Return x with groups of channels of mean 0 and variance 1, scaled and shifted: 4 channels or more a group."""
    channels = len(x)
    groups = x.reshape(min(32, channels // 4), -1)
    groups = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-5)
    return groups.reshape(x.shape) * scale[:, None, None] + bias[:, None, None]


def conv_norm(x, params, name, stride=1):
    x = convolve(x, params[name]["kernel"], stride)
    return normalize(x, params[f"{name}_norm"]["scale"], params[f"{name}_norm"]["bias"])


def blocks(x, params, name, stride=1):
    """Apply all residual blocks of a name, the first with the stride."""
    own = sorted((key for key in params if key.startswith(f"{name}_block")), key=lambda key: int(key.split("block")[1]))
    for index, key in enumerate(own):
        first = stride if index == 0 else 1
        y = np.maximum(conv_norm(x, params[key], "conv1", first), 0)
        y = conv_norm(y, params[key], "conv2")
        shortcut = conv_norm(x, params[key], "shortcut", first) if "shortcut" in params[key] else x
        x = np.maximum(shortcut + y, 0)
    return x


def hourglass(region, params, levels):
    """Return the maps `c s s` of a region `s s c`: down all the levels, and up again."""
    x = np.maximum(conv_norm(region.transpose(2, 0, 1).astype(np.float64), params, "stem"), 0)
    x = blocks(x, params, "entry")
    past = []
    for level in range(levels - 1):
        past.append(blocks(x, params, f"past{level}"))
        x = blocks(x, params, f"down{level}", stride=2)
    x = blocks(x, params, f"level{levels - 1}")
    for level in reversed(range(levels - 1)):
        x = blocks(x, params, f"up{level}")
        x = past[level] + np.kron(x, np.ones((1, 2, 2)))
    return np.maximum(conv_norm(x, params, "output"), 0)


def features(region, params, levels):
    """Return what the predictor sees: the hourglass' maps, each pixel a square of four, normalised."""
    x = hourglass(region, params["hourglass"], levels)
    kernel, bias = params["deconvolution"]["kernel"], params["deconvolution"]["bias"]
    y = np.zeros((len(bias), 2 * x.shape[1], 2 * x.shape[2]))
    for row in range(y.shape[1]):
        for column in range(y.shape[2]):
            y[:, row, column] = x[:, row // 2, column // 2] @ kernel[row % 2, column % 2] + bias
    norm = params["deconvolution_norm"]
    return np.maximum(normalize(y, norm["scale"], norm["bias"]), 0)
