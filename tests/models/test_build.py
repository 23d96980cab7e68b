"""Every section of the config of a model is the dataclass of its module, and a family stands in one place."""

import dataclasses

import pytest

from configs.families import dense, rcnn
from maskx_jax.models.backbones.fpn import FPN
from maskx_jax.models.backbones.resnet import ResNet
from maskx_jax.models.build import build, limits
from maskx_jax.models.dense.embed_head import EmbedMaskHead
from maskx_jax.models.dense.fcos_head import FCOSHead
from maskx_jax.models.pixels import Pixels
from maskx_jax.models.rcnn.box_head import BoxHead
from maskx_jax.models.rcnn.box_supervision import BoxSupervision
from maskx_jax.models.rcnn.keypoint_head import KeypointHead
from maskx_jax.models.rcnn.mask_head import MaskHead
from maskx_jax.models.rcnn.pooling import RoIAlign
from maskx_jax.models.rcnn.rpn import RPN
from maskx_jax.models.rcnn.weight_transfer import WeightTransfer
from maskx_jax.weights.layouts import field_of

SECTIONS = {
    "pixels": Pixels,
    "backbone": ResNet,
    "rcnn.fpn": FPN,
    "rcnn.rpn": RPN,
    "rcnn.roi_align": RoIAlign,
    "rcnn.box_head": BoxHead,
    "rcnn.mask_head": MaskHead,
    "rcnn.weight_transfer": WeightTransfer,
    "rcnn.keypoint_head": KeypointHead,
    "rcnn.box_supervision": BoxSupervision,
    "dense.fpn": FPN,
    "dense.head": FCOSHead,
    "dense.embed_head": EmbedMaskHead,
}
# What `build` gives to modules: of the data, of the whole model, or of another module.
GIVEN = {"num_classes", "dtype", "cpu", "max_detections", "parent", "name"}
OF_THE_FAMILY = {WeightTransfer: {"channels"}, FPN: {"levels", "top"}, RPN: {"sizes_per_level"}}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_has_the_fields_and_the_defaults_of_its_module(section):
    module = SECTIONS[section]
    given = GIVEN | OF_THE_FAMILY.get(module, set())
    defaults = {field.name: field.default for field in dataclasses.fields(module) if field.name not in given}
    family = dense if section.startswith("dense.") else rcnn
    fields = field_of(family.get_config().model, section).to_dict()
    fields.pop("kind", None)
    assert fields == defaults


def test_detections_are_as_many_as_the_heads_have_by_default():
    assert rcnn.get_config().model.max_detections == BoxHead(1).max_detections == FCOSHead(1).max_detections


@pytest.mark.parametrize("family", [rcnn, dense])
def test_every_limit_is_of_a_field(family):
    model = family.get_config().model
    for name, check in limits(model).items():
        assert not check(field_of(model, name)), name


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("family", "yolo", "^family is 'yolo'; expected one of rcnn, dense$"),
        ("backbone.kind", "vit", "^backbone.kind is 'vit'; expected one of resnet, resnet_c4, efficientnet_lite$"),
        ("rcnn.mask_predictor", "any", "^rcnn.mask_predictor is 'any'; expected one of none, class_specific"),
        ("rcnn.keypoint_predictor", "any", "^rcnn.keypoint_predictor is 'any'; expected one of none, heatmaps$"),
    ],
)
def test_what_is_unknown_is_named(field, value, message):
    model = rcnn.get_config().model
    section, _, name = field.rpartition(".")
    (field_of(model, section) if section else model)[name] = value
    with pytest.raises(ValueError, match=message):
        build(model, 1)
