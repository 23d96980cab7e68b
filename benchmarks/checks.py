"""What an accelerator computes, beside what a CPU of the same process computes."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from benchmarks import cases, models, nms_forms, roi_align_forms
from maskx_jax.models.build import build, initialize
from maskx_jax.models.rcnn.detector import RCNN
from maskx_jax.structures import Batch, Detections, PyTree

# Sums of float32 in another order differ by some 1e-6 in an operation, and by more after a network of them.
_OPERATION, _MODEL = 1e-5, 1e-3
# For the CPU's results: what takes seconds to compile and a moment to compute.
_QUICKLY: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Variant:
    """What the accelerator computes.

    Attributes:
      what: in words.
      function: of the reference's arguments; it may return only the first of the reference's arrays.
      tolerance: of the largest difference of an array, relative to its largest value on the CPU. None: it is shown, and
        not judged.
      precision: of products.
    """

    what: str
    function: Function
    tolerance: float | None
    precision: str = "highest"


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the CPU computes, in whole float32, and what is compared with it."""

    function: Function
    arguments: tuple[Any, ...]
    variants: list[Variant]


def compare(reference: Reference) -> Iterator[dict[str, Any]]:
    """Yield for each variant what it is, its difference, its tolerance and whether it passes, or the error."""
    for variant in reference.variants:
        row: dict[str, Any] = {"what": variant.what, "tolerance": variant.tolerance}
        try:
            if variant is reference.variants[0]:
                expected = _compute(jax.devices("cpu")[0], reference, reference.function, "highest", _QUICKLY)
            actual = _compute(jax.devices()[0], reference, variant.function, variant.precision, {})
            row["difference"] = _difference(actual, expected)
            row["passes"] = None if variant.tolerance is None else row["difference"] <= variant.tolerance
        except Exception as error:
            row |= {"error": f"{type(error).__name__}: {error}".splitlines()[0], "passes": False}
        yield row


def of_operations(arrays: Mapping[str, np.ndarray], case: cases.OperationChecks) -> list[Reference]:
    """Return RoIAlign, forward and backward, and NMS: every form beside the models' own on the CPU."""
    rng = np.random.default_rng(2)
    maps = {k: rng.standard_normal((case.canvas[0] >> k, case.canvas[1] >> k, 64), np.float32) for k in cases.LEVELS}
    rois = arrays["rois"][0, : case.rois]
    pulled = rng.standard_normal((len(rois), 7, 7, 64), np.float32)
    boxes, scores = arrays["nms_boxes"][0], arrays["nms_scores"][0]
    labels, valid = np.zeros(len(boxes), np.int32), np.ones(len(boxes), bool)

    def pool(form: str, maps: Any, rois: Any) -> Any:
        return roi_align_forms.FORMS[form](maps, rois, 7)

    def pull_back(form: str, maps: Any, rois: Any, pulled: Any) -> Any:
        return jax.vjp(lambda maps: pool(form, maps, rois), maps)[1](pulled)

    def keep(form: str, boxes: Any, scores: Any, labels: Any, valid: Any) -> Any:
        return nms_forms.FORMS[form](boxes, scores, labels, valid, 0.7, len(boxes))

    def all_forms(what: str, function: Function, arguments: Any, forms: Iterable[str], tolerance: float) -> Reference:
        variants = [
            Variant(f"{what}{form and ', ' + form}", functools.partial(function, form), tolerance) for form in forms
        ]
        return Reference(functools.partial(function, ""), arguments, variants)

    return [
        all_forms("RoIAlign, forward", pool, (maps, rois), roi_align_forms.FORMS, _OPERATION),
        all_forms("RoIAlign, backward", pull_back, (maps, rois, pulled), roi_align_forms.FORMS, _OPERATION),
        all_forms("NMS, boxes kept", keep, (boxes, scores, labels, valid), nms_forms.FORMS, 0.0),
    ]


def of_model(name: str, batch: Batch, sizes: np.ndarray) -> list[Reference]:
    """Return losses with their gradients, and detections; and how far off faster products and bfloat16 are.

    Faster products are the accelerator's own choice, on a GPU TensorFloat-32 with 10 bits; bfloat16 has 7.
    """

    def make(dtype: str) -> RCNN:
        fields = models.fields(name, dtype)
        # Untrained, it is sure of nothing.
        fields["rcnn"]["box_head"]["score_threshold"] = 0.0
        return build(fields, cases.NUM_CLASSES)

    model = make("float32")
    variables = make_variables(jax.eval_shape(lambda: initialize(model, jax.random.key(0))))

    def losses(model: RCNN, variables: Any, batch: Any) -> Any:
        return model.apply(variables, batch, jax.random.key(0), method="losses")

    def gradients(variables: Any, batch: Any) -> Any:
        def total(params: Any) -> Any:
            return losses(model, variables | {"params": params}, batch)

        parts, gradients = jax.value_and_grad(total, has_aux=True)(variables["params"])
        return parts, jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradients)])

    def detect(variables: Any, images: Any, sizes: Any) -> Any:
        found: Any = model.apply(variables, images, sizes, method="detect")
        valid = found.valid

        def without_empty_slots(x: Any) -> Any:
            return jnp.where(valid.reshape(*valid.shape, *[1] * (x.ndim - 2)), x, 0)

        return jax.tree.map(without_empty_slots, found)

    faster, bfloat16 = functools.partial(losses, model), functools.partial(losses, make("bfloat16"))
    return [
        Reference(
            gradients,
            (variables, batch),
            [
                Variant(f"{name} model, losses and gradients", gradients, _MODEL),
                Variant(f"{name} model, losses, faster products", faster, None, "default"),
                Variant(f"{name} model, losses, bfloat16", bfloat16, None, "default"),
            ],
        ),
        Reference(detect, (variables, batch.images, sizes), [Variant(f"{name} model, detections", detect, _MODEL)]),
    ]


def make_variables(shapes: PyTree) -> PyTree:
    """Return small random variables, each a function of its path."""

    def make(path: str, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(path.encode()))
        if path.endswith("scale"):
            return np.full(shape, 0.5 if path.startswith("frozen") else 1.0, np.float32)
        if path.endswith("bias"):
            return rng.uniform(-0.05, 0.05, shape).astype(np.float32)
        fan_in = max(int(np.prod(shape[:-1])), 1)
        return rng.standard_normal(shape, np.float32) * np.float32(fan_in**-0.5)

    flat = traverse_util.flatten_dict(shapes, sep="/")
    return traverse_util.unflatten_dict({path: make(path, x.shape) for path, x in flat.items()}, sep="/")


def _compute(
    device: jax.Device, reference: Reference, function: Function, precision: str, options: dict[str, Any]
) -> PyTree:
    arguments = jax.device_put(reference.arguments, device)
    with jax.default_matmul_precision(precision):
        program = jax.jit(function).lower(*arguments).compile(options)
    return jax.tree.map(np.asarray, program(*arguments))


def _difference(actual: PyTree, expected: PyTree) -> float:
    """Return the largest difference of any array, relative to its largest value; infinite where it is not finite."""

    def relative(one: np.ndarray, other: np.ndarray) -> float:
        one, other = one.astype(np.float64), other.astype(np.float64)
        largest = np.abs(other).max(initial=0.0)
        distance = np.abs(one - other).max(initial=0.0) / (largest or 1.0)
        return float(distance) if np.isfinite(distance) else float("inf")

    if isinstance(expected, Detections):
        actual = _in_order_of(expected, actual)
    # As many as both have.
    return max(map(relative, jax.tree.leaves(actual), jax.tree.leaves(expected)), default=0.0)


def _in_order_of(expected: Detections, actual: Detections) -> Detections:
    """Return detections in the order of others: rounding changes places where scores are nearly equal."""
    distance = np.abs(actual.boxes[:, None] - expected.boxes[:, :, None]).max(axis=-1)
    nearest = np.where(actual.labels[:, None] == expected.labels[:, :, None], distance, np.inf).argmin(axis=-1)
    return jax.tree.map(lambda x: np.stack([one[index] for one, index in zip(x, nearest, strict=True)]), actual)
