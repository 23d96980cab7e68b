"""Our side: `python -m benchmarks.ours FOLDER`."""

import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import cases, checks, models, nms_forms, roi_align_forms, trace
from benchmarks.worker import Call, serve
from maskx_jax.distributed.mesh import make_mesh
from maskx_jax.inference import make_detect_step
from maskx_jax.models import build as make
from maskx_jax.models.build import initialize
from maskx_jax.structures import STORED_MASK_SIDE, Batch, GroundTruth, PyTree, merge
from maskx_jax.training.optimizer import make_optimizer, split_params
from maskx_jax.training.steps import make_state, make_train_step
from maskx_jax.weights.pretrained import open_weights, take_over

_TRACED_STEPS = 3


def build(folder: pathlib.Path, case: cases.Case) -> tuple[Call, dict[str, Any]]:
    """Return the call that does the work of a case, and what is reported of it."""
    arrays = cases.inputs(case)
    match case:
        case cases.Network() | cases.Stage():
            model, variables = _model(folder, case.model, case.dtype)
            work, facts = _model_work(model, variables, arrays, case)
        case cases.RoIAlign():
            work, facts = _roi_align(arrays, case)
        case cases.NMS():
            work, facts = _nms(arrays, case)
        case cases.Paste():
            work, facts = _paste(arrays, case)
        case cases.Product():
            work, facts = _product(case)
        case cases.Copy():
            work, facts = _copy(case)
        case cases.Input():
            work, facts = _input(case)
        case cases.Scores():
            work, facts = _scores(case)
        case cases.OperationChecks():
            work, facts = _checks(checks.of_operations(arrays, case))
        case cases.ModelChecks():
            work, facts = _checks(checks.of_model(case.model, make_batch(arrays), _sizes(case.canvas, case.batch)))
    device = jax.local_devices()[0]
    facts |= {"version": f"jax {jax.__version__} on {device.device_kind}", "platform": device.platform}
    return lambda: jax.block_until_ready(work()), facts


def _compile(function: Any, *arguments: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Compile for the arguments; return the program, with its compile time and what XLA says of its costs."""
    start = time.perf_counter()
    program = (function if hasattr(function, "lower") else jax.jit(function)).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    costs = program.cost_analysis() or {}
    facts = {"compile": seconds, "flops": costs.get("flops", 0.0)}
    if (memory := program.memory_analysis()) is not None:
        own = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        facts["program_bytes"] = own + memory.temp_size_in_bytes
    return program, facts


def _model_work(
    model: Any, variables: PyTree, arrays: Mapping[str, np.ndarray], case: cases.Network | cases.Stage
) -> tuple[Call, dict[str, Any]]:
    if isinstance(case, cases.Stage):
        part = _train_stage if case.stage in cases.TRAIN_STAGES else _stage
        return part(model, variables, arrays, case)
    works = {"train": _train, "detect": _detect, "network": _network, "trace": _trace}
    return works[case.work](model, variables, arrays, case)


def _model(folder: pathlib.Path, name: str, dtype: str = "float32") -> tuple[Any, PyTree]:
    """Return the model with the parameters that the peer has too; what it has not is small and random."""
    fields = models.fields(name, dtype)
    names = [f"class {i + 1}" for i in range(cases.NUM_CLASSES)]
    model = make.build(fields, len(names))
    shapes = jax.eval_shape(lambda: initialize(model, jax.random.key(0)))
    variables = checks.make_variables(shapes)
    if name == "tiny":
        return model, variables
    is_own = name.startswith("maskx_")
    weights = open_weights(folder / f"{'mask_rcnn' if is_own else name}.npz", "torchvision_detector", names)
    new, unused = (("mask_(head|weights)/.*",), (".*mask_predictor.*",)) if is_own else ((), ())
    return model, take_over(variables, weights, names, new=new, unused=unused, say=_say_nothing)


def _say_nothing(text: str) -> None:
    del text


def _train(
    model: Any, variables: PyTree, arrays: Mapping[str, np.ndarray], case: cases.Network
) -> tuple[Call, dict[str, Any]]:
    once, facts, _ = _train_program(model, variables, arrays)
    return once, facts


def _train_program(model: Any, variables: PyTree, arrays: Mapping[str, np.ndarray]) -> tuple[Call, dict[str, Any], Any]:
    optimizer = _optimizer()
    state = jax.device_put(make_state(jax.tree.map(jnp.asarray, variables), optimizer, models.FROZEN, ema=False))
    del variables
    batch = jax.device_put(make_batch(arrays))
    step = make_train_step(model, optimizer, make_mesh(), seed=0)
    program, facts = _compile(step, state, batch)

    def once() -> Any:
        nonlocal state
        state, losses = program(state, batch)
        return losses

    return once, facts, program


def _trace(
    model: Any, variables: PyTree, arrays: Mapping[str, np.ndarray], case: cases.Network
) -> tuple[Call, dict[str, Any]]:
    """Return a train step, and what takes its time."""
    once, facts, program = _train_program(model, variables, arrays)
    jax.block_until_ready(once())

    def steps() -> None:
        for _ in range(_TRACED_STEPS):
            jax.block_until_ready(once())

    return once, facts | trace.profile(steps, program.as_text(), _TRACED_STEPS)


def _optimizer() -> optax.GradientTransformation:
    return make_optimizer(
        lambda step: 1e-6, name="sgd", momentum=0.9, weight_decay=1e-4, bias_learning_rate_factor=2.0, clip_norm=None
    )


def _detect(
    model: Any, variables: PyTree, arrays: Mapping[str, np.ndarray], case: cases.Network
) -> tuple[Call, dict[str, Any]]:
    paste = _paste_all(case.canvas)
    network, facts = _network(model, variables, arrays, case)

    def once() -> Any:
        found = jax.tree.map(np.asarray, network())
        kept = [np.flatnonzero(valid) for valid in found.valid]
        facts["detections"] = sum(map(len, kept))
        if found.masks is None:
            return found
        return [
            paste(masks[index], boxes[index])
            for masks, boxes, index in zip(found.masks, found.boxes, kept, strict=True)
        ]

    return once, facts


def _network(
    model: Any, variables: PyTree, arrays: Mapping[str, np.ndarray], case: cases.Network
) -> tuple[Call, dict[str, Any]]:
    arguments = jax.device_put((variables, arrays["images"], _sizes(case.canvas, case.batch)))
    program, facts = _compile(make_detect_step(model, make_mesh()), *arguments)
    return lambda: program(*arguments), facts


def _stage(
    model: Any, variables: PyTree, arrays: Mapping[str, np.ndarray], case: cases.Stage
) -> tuple[Call, dict[str, Any]]:
    """Return one part of detection, on what the parts before it make of the images, or of a train step."""
    sizes, images = jnp.asarray(_sizes(case.canvas, case.batch)), arrays["images"]

    def apply(part: Callable[..., Any]) -> Any:
        return lambda variables, *arguments: model.apply(variables, *arguments, method=part)

    def run(part: Callable[..., Any], *arguments: Any) -> Any:
        return jax.jit(apply(part))(variables, *arguments)

    def pyramid_of(model: Any, images: Any) -> Any:
        return model.pyramid(images, sizes)

    def proposals(model: Any, pyramid: Any, logits: Any, deltas: Any) -> Any:
        return model.rpn.proposals(logits, deltas, model.rpn.anchors(pyramid), sizes, training=False)

    variables = jax.device_put(variables)
    pyramid = run(pyramid_of, images)
    rois, of_masks = jnp.asarray(arrays["rois"]), jnp.asarray(arrays["rois"][:, :100])
    labels = jnp.ones(of_masks.shape[:2], jnp.int32)

    def mask_head(model: Any, pooled: Any, weights: Any) -> Any:
        branch, pooled = model.mask_branch, pooled.reshape(-1, *pooled.shape[2:])
        rows, own = branch.weights(weights, labels)
        return branch.head(pooled, own.reshape(-1), rows)

    def pool(size: int) -> Callable[..., Any]:
        return lambda model, pyramid, boxes: model.pool(pyramid, boxes, size)

    parts: dict[str, Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]] = {
        "backbone_fpn": lambda: (pyramid_of, (images,)),
        "rpn_head": lambda: (lambda model, pyramid: model.rpn(pyramid), (pyramid,)),
        "proposals": lambda: (
            proposals,
            (pyramid, *run(lambda model, pyramid: model.rpn(pyramid), pyramid)),
        ),
        "pool_boxes": lambda: (pool(7), (pyramid, rois)),
        "box_head": lambda: (lambda model, pooled: model.box_head(pooled), (run(pool(7), pyramid, rois),)),
        "pool_masks": lambda: (pool(14), (pyramid, of_masks)),
        "mask_head": lambda: (
            mask_head,
            (run(pool(14), pyramid, of_masks), run(_class_weights, run(pool(7), pyramid, rois))),
        ),
    }
    part, arguments = parts[case.stage]()
    program, facts = _compile(apply(part), variables, *arguments)
    return lambda: program(variables, *arguments), facts


def _train_stage(
    model: Any, variables: PyTree, arrays: Mapping[str, np.ndarray], case: cases.Stage
) -> tuple[Call, dict[str, Any]]:
    """Return one part of a train step."""
    trained, rest = split_params(variables["params"], models.FROZEN)
    trained, rest, frozen, batch = jax.device_put((trained, rest, variables["frozen"], make_batch(arrays)))
    optimizer = _optimizer()

    def losses(trained: Any, rest: Any, frozen: Any, batch: Batch) -> Any:
        given = {"params": merge(trained, rest), "frozen": frozen}
        return model.apply(given, batch, jax.random.key(0), method="losses")[0]

    def update(trained: Any, gradients: Any, state: Any) -> Any:
        updates, state = optimizer.update(gradients, state, trained)
        return optax.apply_updates(trained, updates), state

    if case.stage == "optimizer":
        step, facts = _compile(jax.jit(update, donate_argnums=(0, 2)), trained, trained, optimizer.init(trained))
        gradients = jax.tree.map(jnp.ones_like, trained)
        updated = jax.tree.map(jnp.copy, trained), optimizer.init(trained)

        def once() -> Any:
            nonlocal updated
            updated = step(updated[0], gradients, updated[1])
            return updated

        return once, facts
    function = losses if case.stage == "losses" else jax.value_and_grad(losses)
    program, facts = _compile(function, trained, rest, frozen, batch)
    return lambda: program(trained, rest, frozen, batch), facts


def _class_weights(model: Any, pooled: Any) -> Any:
    return model.box_head(pooled).class_weights


def _roi_align(arrays: Mapping[str, np.ndarray], case: cases.RoIAlign) -> tuple[Call, dict[str, Any]]:
    maps, rois = jax.device_put((cases.feature_maps(case.canvas), arrays["rois"][:, : case.rois]))
    maps = {level: features.astype(case.dtype) for level, features in maps.items()}

    def pool(maps: Any, rois: Any) -> Any:
        return roi_align_forms.FORMS[case.form](maps, rois, case.bins)

    if case.batch == 1:
        forward, rois = pool, rois[0]
    else:
        forward = jax.vmap(pool)
        maps = {level: jnp.stack([features] * case.batch) for level, features in maps.items()}
    # With the value: pooling is linear, and its gradient would not need the forward pass.
    function = jax.value_and_grad(lambda maps, rois: forward(maps, rois).sum()) if case.gradient else forward
    program, facts = _compile(function, maps, rois)
    return lambda: program(maps, rois), facts


def _nms(arrays: Mapping[str, np.ndarray], case: cases.NMS) -> tuple[Call, dict[str, Any]]:
    boxes, scores = jax.device_put((arrays["nms_boxes"], arrays["nms_scores"]))
    one_label, valid = jnp.zeros(case.boxes, jnp.int32), jnp.ones(case.boxes, bool)

    def keep(boxes: Any, scores: Any) -> Any:
        return nms_forms.FORMS[case.form](boxes, scores, one_label, valid, 0.7, case.boxes)

    program, facts = _compile(jax.vmap(keep), boxes, scores)
    return lambda: program(boxes, scores), facts


def _checks(references: list[checks.Reference]) -> tuple[Call, dict[str, Any]]:
    return (lambda: None), {"checks": [row for reference in references for row in checks.compare(reference)]}


def _paste(arrays: Mapping[str, np.ndarray], case: cases.Paste) -> tuple[Call, dict[str, Any]]:
    paste = _paste_all(case.canvas)
    return lambda: paste(arrays["masks"], arrays["rois"][0, :100]), {}


def _product(case: cases.Product) -> tuple[Call, dict[str, Any]]:
    matrix = jnp.ones((case.rows, case.rows), case.dtype)
    program, facts = _compile(jnp.matmul, matrix, matrix)
    return lambda: program(matrix, matrix), facts


def _copy(case: cases.Copy) -> tuple[Call, dict[str, Any]]:
    values = jnp.ones(case.mebibytes * 2**18, jnp.float32)
    # XLA leaves a mere copy out.
    program, facts = _compile(lambda values: values + 1, values)
    return lambda: program(values), facts | {"bytes": 2 * values.nbytes}


def _input(case: cases.Input) -> tuple[Call, dict[str, Any]]:
    from benchmarks import host

    batches = host.training_batches(case.batch)
    return lambda: next(batches), {}


def _scores(case: cases.Scores) -> tuple[Call, dict[str, Any]]:
    from benchmarks import host

    ground_truth, results = host.evaluation(case.num_images)
    return lambda: host.scores(ground_truth, results, case.scored, case.backend), {}


def _paste_all(canvas: tuple[int, int]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return what makes a bitmap of the whole image for each mask."""
    # Needs pycocotools, which a machine with a GPU may lack.
    from maskx_jax.evaluation.paste_masks import paste_mask

    def paste(masks: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        bitmaps = np.zeros((len(masks), *canvas), bool)
        for bitmap, mask, box in zip(bitmaps, masks, boxes, strict=True):
            region, (top, left) = paste_mask(mask, box, *canvas)
            bitmap[top : top + region.shape[0], left : left + region.shape[1]] = region
        return bitmaps

    return paste


def _sizes(canvas: cases.Canvas, batch: int) -> np.ndarray:
    return np.tile(np.array(canvas, np.float32), (batch, 1))


def make_batch(arrays: Mapping[str, np.ndarray]) -> Batch:
    """Return the images with masks that fill their boxes."""
    images, boxes = arrays["images"], arrays["gt_boxes"]
    everything = np.ones(boxes.shape[:2], bool)
    masks = np.full((*boxes.shape[:2], STORED_MASK_SIDE, STORED_MASK_SIDE // 8), 255, np.uint8)
    labels = arrays["gt_labels"].astype(np.int32)
    gt = GroundTruth(boxes, labels, masks, boxes, everything, ~everything, everything)
    count = len(images)
    sizes = np.tile(np.array(images.shape[1:3], np.float32), (count, 1))
    ids, scales = np.arange(count, dtype=np.int32), np.ones(count, np.float32)
    return Batch(images, sizes, ids, scales, np.ones(count, bool), gt)


def _peak_bytes() -> int | None:
    statistics = jax.local_devices()[0].memory_stats()
    return None if statistics is None else int(statistics["peak_bytes_in_use"])


if __name__ == "__main__":
    given = pathlib.Path(sys.argv[1])
    serve(lambda fields: build(given, cases.from_json(fields)), _peak_bytes)
