"""Parameters of ours as a state dict of torchvision's R-CNNs or FCOS: what is trained here runs there."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from maskx_jax.coco.categories import Categories
from maskx_jax.models.dense.parameters import CLASSIFICATION
from maskx_jax.models.rcnn.box_head import ClassWeights
from maskx_jax.models.rcnn.detector import RCNN
from maskx_jax.structures import PyTree
from maskx_jax.weights.arrays import to_theirs
from maskx_jax.weights.files import Metadata
from maskx_jax.weights.layouts import LAYOUTS, field_of
from maskx_jax.weights.pretrained import conventions_of

_LAYOUT = LAYOUTS["torchvision_detector"]
_PEERS = {"rcnn": "Mask R-CNN", "dense": "FCOS"}
# What torchvision's implementation has no argument for.
_REQUIRED_OF_BACKBONE = {
    "backbone.kind": "resnet",
    **{
        name: value for name, value in _LAYOUT.backbone_conventions.items() if name not in ("pixels.mean", "pixels.std")
    },
}
_REQUIRED: dict[str, dict[str, Any]] = {
    "rcnn": {
        "rcnn.rpn.anchor_convention": "torchvision",
        "rcnn.roi_align.operation": "roi_align",
        "rcnn.roi_align.convention": "torchvision",
        "rcnn.roi_align.sampling_ratio": 2,
        "rcnn.class_prior": False,
        "rcnn.box_head.body": "mlp",
        "rcnn.box_head.resolution": 7,
        "rcnn.keypoint_head.resolution": 14,
        "rcnn.mask_head.resolution": 14,
        "rcnn.mask_head.body": "plain",
        "rcnn.mask_head.mlp": "none",
    },
    "dense": {
        "dense.masks": "none",
        # Its groups are always 32.
        "dense.fpn.channels": 256,
        "dense.head.channels": 256,
        **{
            f"dense.head.{name}": _LAYOUT.dense_conventions[f"dense.head.{name}"]
            for name in ("points", "learned_scales", "score", "threshold_score")
        },
    },
}
# Logit of torchvision's channel for background, which must find nothing.
_NEVER = -100.0


def to_torchvision(variables: PyTree, model: Any, fields: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the state dict of a `torchvision.models.detection` R-CNN (Mask, Keypoint or Faster) or FCOS.

    What is no parameter (anchors, thresholds, box weights, pixel statistics) is given to its constructor; the recipe of
    the verb export-weights does so.

    The mask predictor is written out class by class, also where it is shared by all classes or predicted from the
    detection weights: Mask^X R-CNN without its MLP branch becomes an ordinary Mask R-CNN.

    Args:
      variables: params and frozen constants.
      model: built from the fields.
      fields: of `config.model`.

    Raises:
      ValueError: the model has parts or conventions that torchvision's implementation lacks.
    """
    _check_expressible(fields)
    params = traverse_util.flatten_dict(variables["params"], sep="/")
    params = {path: value for path, value in params.items() if not path.startswith("mask_weights/")}
    if fields["family"] == "dense":
        for leaf, value in (("kernel", 0.0), ("bias", _NEVER)):
            rows = np.asarray(params[f"{CLASSIFICATION}/{leaf}"])
            background = np.full_like(rows[..., :1], value)
            params[f"{CLASSIFICATION}/{leaf}"] = np.concatenate([background, rows], axis=-1)
    elif model.mask_branch is not None:
        weights: Any = model.apply(variables, method=_mask_weights)
        params |= {"mask_weights/kernel": weights.weights.T, "mask_weights/bias": weights.bias}

    shapes = {path: value.shape for path, value in params.items()}
    constants = traverse_util.flatten_dict(variables["frozen"]["backbone"], sep="/")
    paths = [*params, *(f"backbone/{path}" for path in constants)]
    modules = _LAYOUT.modules({path.rpartition("/")[0] for path in paths}, ())
    state: dict[str, np.ndarray] = {}
    for path, value in params.items():
        module, _, leaf = path.rpartition("/")
        array = to_theirs(path, np.asarray(value, np.float32), shapes)
        state[modules[module] + _LAYOUT.suffixes[leaf == "bias"]] = np.ascontiguousarray(array)
    for path, value in constants.items():
        module, _, leaf = path.rpartition("/")
        name = modules[f"backbone/{module}"]
        constant = np.asarray(value, np.float32)
        state[name + {"scale": ".weight", "bias": ".bias"}[leaf]] = constant
        state[f"{name}.running_mean"] = np.zeros_like(constant)
        # With the epsilon of torchvision's BatchNorm this is a variance of 1.
        state[f"{name}.running_var"] = np.full_like(constant, 1 - _LAYOUT.epsilon)
    return state


def _check_expressible(fields: Mapping[str, Any]) -> None:
    family = fields["family"]
    if family not in _REQUIRED:
        raise ValueError(f"torchvision has nothing for model.family = {family!r} (expected {' or '.join(_REQUIRED)})")
    parts = [part for part in ("mask", "keypoint") if fields[family].get(f"{part}_predictor", "none") != "none"]
    if len(parts) == 2:
        raise ValueError("torchvision's R-CNNs have masks or keypoints; got a model with both")
    lacking = []
    for field, required in (_REQUIRED_OF_BACKBONE | _REQUIRED[family]).items():
        if family == "rcnn" and any(f"{part}_head." in field for part in ("mask", "keypoint") if part not in parts):
            continue
        try:
            value = field_of(fields, field)
        except KeyError:
            # Of another backbone, which is named.
            continue
        if value != required:
            lacking.append(f"{field} = {value!r} (expected {required!r})")
    if family == "rcnn" and fields["rcnn"]["mask_predictor"] == "multinomial":
        lacking.append("rcnn.mask_predictor = 'multinomial' (expected one whose masks are sigmoids)")
    if lacking:
        peer = "Keypoint R-CNN" if "keypoint" in parts else _PEERS[family]
        raise ValueError(f"torchvision's {peer} cannot express model.{', model.'.join(lacking)}")


def describe(config: Any, categories: Categories) -> Metadata:
    """Return what is written beside an export, so that it can be read back as what it was.

    Args:
      config: of the run.
      categories: that its model knows.
    """
    return Metadata(categories.to_coco(), _LAYOUT.epsilon, conventions_of(config))


def _mask_weights(model: RCNN) -> Any:
    """Return the mask predictor's weights of every class."""
    params = model.variables["params"]["box_head"]
    classification, boxes = (jnp.asarray(params[name]["kernel"]).T for name in ("classification", "boxes"))
    assert model.mask_branch is not None
    class_weights = ClassWeights(classification, boxes.reshape(len(classification), -1))
    weights, _ = model.mask_branch.weights(class_weights, jnp.arange(len(classification))[None])
    return weights
