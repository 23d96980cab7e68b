"""A detector from its section of the config: the only place that knows which families and backbones there are."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from maskx_jax.limits import Check, number, one_of, within
from maskx_jax.models import pixels
from maskx_jax.models.backbones import efficientnet_lite, resnet, resnet_c4
from maskx_jax.models.dense import detector as dense
from maskx_jax.models.rcnn import detector as rcnn
from maskx_jax.ops.cpu.platform import on_one_cpu
from maskx_jax.structures import PyTree


class Part(NamedTuple):
    """A family of detectors, or a backbone.

    Attributes:
      build: from the fields of its section of the config. A backbone gets dtype and cpu besides. A family gets
        num_classes, pixels (`pixels.Pixels`), backbone (a module), max_detections, dtype and cpu besides, and returns a
        `detector.Detector`.
      limits: what fields of its section may be, by their dotted names in it.
    """

    build: Callable[..., nn.Module]
    limits: Mapping[str, Check] = {}


FAMILIES: dict[str, Part] = {
    "rcnn": Part(rcnn.build, rcnn.LIMITS),
    "dense": Part(dense.build, dense.LIMITS),
}
# A backbone turns normalised images into {level: map}, level k of stride 2^k. Its `levels` says which it has, its
# `multiple` what the sides of a canvas must be multiples of. Where it has `region_features`, its maps are used without
# a pyramid, and that is what heads see of the regions that are pooled from them.
BACKBONES: dict[str, Part] = {
    "resnet": Part(resnet.ResNet, resnet.LIMITS),
    "resnet_c4": Part(resnet_c4.ResNetC4, resnet.LIMITS),
    "efficientnet_lite": Part(efficientnet_lite.EfficientNetLite, efficientnet_lite.LIMITS),
}


def build(model: Any, num_classes: int, cpu: bool | None = None) -> Any:
    """Return the detector that a config describes: a Flax module with what `detector.Detector` asks for.

    Args:
      model: `config.model`, a ConfigDict or a mapping; see configs/base.py and configs/families/.
      num_classes: C, without background.
      cpu: whether to compute as one CPU device does best: convolutions by matrix products, and nothing for regions that
        are not used. The results differ by rounding only. By default the devices of this process decide.

    Raises:
      ValueError: the family or the backbone is unknown, or the family refuses a value; the message names the field.
      TypeError: a section has a field that its module does not know.
    """
    model = _mapping(model)
    family, backbone = _part_of(FAMILIES, model["family"], "family"), model["backbone"]
    kind = _part_of(BACKBONES, backbone.pop("kind"), "backbone.kind")
    how = {"dtype": model["dtype"], "cpu": on_one_cpu() if cpu is None else cpu}
    return family.build(
        num_classes,
        pixels=pixels.Pixels(**model["pixels"]),
        backbone=kind.build(**backbone, **how),
        max_detections=model["max_detections"],
        **how,
        **model[model["family"]],
    )


def limits(model: Any) -> dict[str, Check]:
    """Return what the fields of `config.model` may be, by their dotted names in it.

    Raises: ValueError as `build`.
    """
    name, kind = model["family"], model["backbone"]["kind"]
    sections = {
        "pixels": pixels.LIMITS,
        "backbone": _part_of(BACKBONES, kind, "backbone.kind").limits,
        name: _part_of(FAMILIES, name, "family").limits,
    }
    return {"dtype": one_of("float32", "bfloat16"), "max_detections": number(1), **within(sections)}


def produces(model: Any) -> frozenset[str]:
    """Return what the detections of the model that a config describes have, see `detector.Detector`."""
    return build(model, 1).produces


def num_keypoints(model: Any) -> int | None:
    """Return how many keypoints an object has for the model that a config describes; None where it finds none."""
    count: int | None = getattr(build(model, 1), "num_keypoints", None)
    return count


def initialize(model: Any, key: jax.Array) -> PyTree:
    """Return fresh variables; their shapes do not depend on the size of the images."""
    size = 2 * model.multiple
    images, image_sizes = jnp.zeros((1, size, size, 3), jnp.uint8), jnp.full((1, 2), size, jnp.float32)
    return model.init(key, images, image_sizes, method="detect")


def _mapping(section: Any) -> dict[str, Any]:
    return {name: _mapping(value) if hasattr(value, "items") else value for name, value in section.items()}


def _part_of(parts: Mapping[str, Part], name: str, field: str) -> Part:
    if name not in parts:
        raise ValueError(f"{field} is {name!r}; expected one of {', '.join(parts)}")
    return parts[name]
