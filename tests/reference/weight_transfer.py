"""Mask^X R-CNN's mask predictor in the released code's own layouts (SPEC.md, sections 2.1 to 2.3), in NumPy.

There the rows of a weight are its outputs, and a region's features are flattened channel, row, column. Ours are
transposed, and flattened row, column, channel: the parameters of our modules are taken as they are and rearranged here.
"""

import numpy as np

ACTIVATIONS = {
    "leaky_relu": lambda x: np.where(x > 0, x, 0.1 * x),
    "relu": lambda x: np.maximum(x, 0),
    "none": lambda x: x,
}


def to_float64(params):
    return {k: to_float64(v) if hasattr(v, "items") else np.asarray(v, np.float64) for k, v in params.items()}


def detection_weights(cls_score_w, bbox_pred_w, source, embedding=None):
    """Return T's input, a row a class: section 2.1's table. The rows of `bbox_pred_w` are 4 * class + coordinate."""
    rows = []
    for label, of_class in enumerate(cls_score_w):
        of_box = np.concatenate([bbox_pred_w[4 * label + coordinate] for coordinate in range(4)])
        rows.append(
            {
                "cls": of_class,
                "box": of_box,
                "cls+box": np.concatenate([of_class, of_box]),
                "embedding": None if embedding is None else embedding[label],
            }[source]
        )
    return np.array(rows, np.float64)


def transfer(w_det, params, num_layers, activation):
    """Return w_seg, a row a class: fully connected layers, with the activation between them and none at the end."""
    params = to_float64(params)
    rows = []
    for x in w_det:
        for layer in range(1, num_layers + 1):
            weight, bias = params[f"fc{layer}"]["kernel"].T, params[f"fc{layer}"]["bias"]
            x = weight @ x + bias
            if layer < num_layers:
                x = ACTIVATIONS[activation](x)
        rows.append(x)
    return np.array(rows)


def mask_features(pooled, params, num_convs):
    """Return the features of one region, channels first, twice the side: 3 x 3 convolutions and one transposed, 2 x 2.

    `pooled` is `side side channels`, as it comes from our RoIAlign.
    """
    params = to_float64(params)
    x = np.asarray(pooled, np.float64).transpose(2, 0, 1)
    for index in range(1, num_convs + 1):
        kernel, bias = params[f"conv{index}"]["kernel"], params[f"conv{index}"]["bias"]
        _, height, width = x.shape
        padded = np.pad(x, [(0, 0), (1, 1), (1, 1)])
        y = np.zeros((len(bias), height, width))
        for row in range(height):
            for column in range(width):
                window = padded[:, row : row + 3, column : column + 3]
                y[:, row, column] = np.einsum("chw,hwco->o", window, kernel) + bias
        x = np.maximum(y, 0)
    kernel, bias = params["deconvolution"]["kernel"], params["deconvolution"]["bias"]
    _, height, width = x.shape
    y = np.zeros((len(bias), 2 * height, 2 * width))
    for row in range(2 * height):
        for column in range(2 * width):
            y[:, row, column] = x[:, row // 2, column // 2] @ kernel[row % 2, column % 2] + bias
    return np.maximum(y, 0)


def mlp_logits(features, params, kind):
    """Return the class-agnostic logits of one region from its features, channels first: section 2.3.

    "light" is ours: first a 1 x 1 convolution with ReLU to few channels.
    """
    params = to_float64(params)
    if kind == "light":
        weight, bias = params["mlp_reduction"]["kernel"].T, params["mlp_reduction"]["bias"]
        features = np.maximum(np.einsum("oc,chw->ohw", weight, features) + bias[:, None, None], 0)
    channels, side, _ = features.shape
    by_position = params["mlp"]["kernel"].reshape(side, side, channels, side * side)
    weight = by_position.transpose(3, 2, 0, 1).reshape(side * side, channels * side * side)
    return (weight @ features.reshape(-1) + params["mlp"]["bias"]).reshape(side, side)


def mask_logits(pooled, labels, w_seg, params, num_convs, kind):
    """Return each region's logits: w_seg as a 1 x 1 convolution without bias, every class, then the MLP added to all.

    The one of the region's own label is picked last, as the released code does.
    """
    logits = []
    for region, label in zip(pooled, labels, strict=True):
        features = mask_features(region, params, num_convs)
        of_classes = np.einsum("kc,chw->khw", w_seg, features)
        if kind != "none":
            of_classes = of_classes + mlp_logits(features, params, kind)
        logits.append(of_classes[label])
    return np.array(logits)
