"""Our Mask R-CNN and FCOS with the golden parameters, taken over from a file of torchvision's by the importer."""

import functools
import pathlib
import tempfile
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from benchmarks.parameters import NUM_CLASSES, fcos_shapes, keypoint_shapes, make_c4_parameters, make_parameters
from configs import fcos, keypoint_rcnn, mask_rcnn
from maskx_jax.models.build import build, initialize
from maskx_jax.models.rcnn.rpn import RPN
from maskx_jax.structures import Batch, Proposals, PyTree
from maskx_jax.weights.pretrained import apply_conventions, open_weights, take_over
from tests.compilation import optimized
from tests.golden.comparing import golden
from tests.golden.model_inputs import C4_PROPOSALS
from tests.models.build import set_fields


class Imported(NamedTuple):
    model: Any
    variables: PyTree
    fields: dict[str, Any]


@functools.cache
def imported_model(**changes: Any) -> Imported:
    """Return Mask R-CNN, its variables and the fields of its config.

    Args:
      **changes: of fields of the model, as section__field.
    """
    config = mask_rcnn.get_config("backbone=r50")
    # torchvision's training differs from Detectron's here; random weights make more candidates than trained ones.
    config.model.rcnn.rpn.boundary_threshold = -1.0
    config.model.rcnn.box_head.update(smooth_l1_beta=1 / 9, pre_nms_top_k=4000)
    config.model.rcnn.mask_head.targets = "sampled"
    set_fields(config, **changes)
    return _imported(config, make_parameters())


@functools.cache
def imported_keypoint_rcnn(**changes: Any) -> Imported:
    """Return Keypoint R-CNN of one class, its variables and the fields of its config, see `imported_model`."""
    config = keypoint_rcnn.get_config("backbone=r50")
    config.model.rcnn.rpn.boundary_threshold = -1.0
    config.model.rcnn.box_head.update(smooth_l1_beta=1 / 9, pre_nms_top_k=4000)
    set_fields(config, **changes)
    return _imported(config, make_parameters(keypoint_shapes()), num_classes=1)


@functools.cache
def imported_fcos(cpu: bool | None = None, **changes: Any) -> Imported:
    """Return FCOS, its variables and the fields of its config, see `imported_model` and `models.build.build`."""
    config = fcos.get_config("backbone=r50")
    set_fields(config, **changes)
    return _imported(config, make_parameters(fcos_shapes()), cpu)


@functools.cache
def imported_c4(**changes: Any) -> Imported:
    """Return Mask R-CNN on C4, its variables and the fields of its config, see `imported_model`."""
    config = mask_rcnn.get_config("backbone=r50_c4")
    config.model.rcnn.rpn.post_nms_top_k = (2000, C4_PROPOSALS)
    config.model.rcnn.box_head.pre_nms_top_k = 4000
    set_fields(config, **changes)
    return _imported(config, make_c4_parameters())


def _imported(
    config: ConfigDict, parameters: dict[str, np.ndarray], cpu: bool | None = None, num_classes: int = NUM_CLASSES
) -> Imported:
    names = [f"class {i + 1}" for i in range(num_classes)]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.safetensors"
        save_file(parameters, path)
        weights = open_weights(path, "torchvision_detector", names)
        apply_conventions(config, weights.conventions)
        model = build(config.model, len(names), cpu)
        shapes = jax.eval_shape(lambda: initialize(model, jax.random.key(0)))
        variables = take_over(shapes, weights, names)
    return Imported(model, variables, config.model.to_dict())


class GivenProposals(RPN):
    """Proposes what torchvision proposed: boxes that differ in the sixth digit flip pixels of mask targets.

    Attributes:
      golden_name: of the file with its proposals.
    """

    golden_name: str = ""

    def proposals(self, logits: Any, deltas: Any, anchors: Any, image_sizes: Any, training: bool) -> Proposals:
        boxes = jnp.asarray(golden(self.golden_name)["proposals"])
        return Proposals(boxes, jnp.zeros(boxes.shape[:2]), jnp.ones(boxes.shape[:2], bool))


def with_proposals_of(name: str, imported: Imported) -> Any:
    """Return a two-stage detector that proposes what torchvision did, by the name of the golden that has it."""
    return imported.model.clone(rpn=GivenProposals(golden_name=name, **imported.fields["rcnn"]["rpn"]))


def losses_and_gradients(model: Any, variables: PyTree, batch: Batch, paths: Iterable[str]) -> tuple[Any, Any]:
    """Return the losses of a batch, and the gradients of their sum with respect to the parameters at some paths."""
    params = traverse_util.flatten_dict(variables["params"], sep="/")
    wanted = {path: params.pop(path) for path in paths}

    def loss(wanted: PyTree, params: PyTree, frozen: PyTree) -> Any:
        merged = {"params": traverse_util.unflatten_dict(params | wanted, sep="/"), "frozen": frozen}
        return model.apply(merged, batch, jax.random.key(0), method="losses")

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    with optimized():
        (_, parts), gradients = step(wanted, params, variables["frozen"])
    return jax.tree.map(np.asarray, (parts, gradients))
