"""A family of detectors, a backbone and a region head that the package does not have: all that each takes."""

from maskx_jax.models.build import BACKBONES, FAMILIES, Part
from maskx_jax.models.rcnn import detector as rcnn
from tests.toy.backbone import Patches
from tests.toy.family import Cells
from tests.toy.region_head import CenterHead


def rcnn_with_centers(num_classes, **fields):
    model = rcnn.build(num_classes, **fields)
    return model.clone(heads=(*model.heads, CenterHead(name="center_head")))


# As lines of `FAMILIES` and `BACKBONES` in maskx_jax/models/build.py.
TOY_FAMILIES = {"cells": Part(Cells), "rcnn_with_centers": Part(rcnn_with_centers, rcnn.LIMITS)}
TOY_BACKBONES = {"patches": Part(Patches)}


def register() -> None:
    FAMILIES.update(TOY_FAMILIES)
    BACKBONES.update(TOY_BACKBONES)
