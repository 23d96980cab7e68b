"""Measure what more classes cost: compiled memory and time of the train and the detect step.

    python -m benchmarks.measure_classes --classes=80,3001 --size=512 --batch=1

It writes a Markdown table, with the bytes that the predictor's rows explain. Mask^X R-CNN (T of two layers, light
MLP branch) on a random image; nothing is loaded or learned.
"""

import time
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from configs import maskx_rcnn
from maskx_jax import errors
from maskx_jax.distributed.mesh import make_mesh
from maskx_jax.inference import make_detect_step
from maskx_jax.models.build import build, initialize
from maskx_jax.structures import STORED_MASK_SIDE, Batch, GroundTruth, PyTree
from maskx_jax.training.optimizer import make_optimizer
from maskx_jax.training.steps import make_state, make_train_step

# The parameters themselves and their momentum are arguments of the train step.
_COPIES_IN_TRAINING = 2


def main() -> None:
    """Measure what the arguments say."""
    parser = errors.ArgumentParser(
        prog="python -m benchmarks.measure_classes", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--classes", default="80,3001", help="numbers of classes, without background")
    parser.add_argument("--model", default="full", choices=("full", "tiny"))
    parser.add_argument("--size", type=int, default=512, help="side of the square canvas")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3, help="timed steps; their median is shown")
    options = parser.parse_args()
    print(
        "| classes | step | parameters | arguments, bytes | temporaries, bytes | seconds |\n|---|---|---|---|---|---|"
    )
    sizes: dict[tuple[str, int], tuple[int, int]] = {}
    counts = [int(count) for count in options.classes.split(",")]
    for count in counts:
        for step, (parameters, arguments, temporaries, seconds) in measure(count, min(counts), options).items():
            sizes[step, count] = (arguments, temporaries)
            print(
                f"| {count} | {step} | {parameters:,} | {arguments:,} | {temporaries:,} | {seconds:.2f} |", flush=True
            )
    hidden = 1024 if options.model == "full" else 256
    for count in counts[1:]:
        # Class and box predictor: a row of `hidden` weights and a bias for the class, four for its box; float32.
        rows = (count - counts[0]) * 5 * (hidden + 1) * 4
        for step, copies in (("train", _COPIES_IN_TRAINING), ("detect", 1)):
            grown = sizes[step, count][0] - sizes[step, counts[0]][0]
            print(
                f"{step}: {count - counts[0]} more classes add {grown:,} bytes of arguments; predictor rows explain "
                f"{copies} x {rows:,} = {copies * rows:,}, difference {grown - copies * rows:,}"
            )


def measure(num_classes: int, num_labels: int, options: Any) -> dict[str, tuple[int, int, int, float]]:
    """Return (parameters, bytes of arguments, bytes of temporaries, median seconds) of each step.

    Args:
      num_classes: of the model.
      num_labels: of them that objects have.
      options: of the command.
    """
    config = maskx_rcnn.get_config(f"size={options.model},mlp=light")
    model = build(config.model, num_classes)
    shapes = jax.eval_shape(lambda: initialize(model, jax.random.key(0)))
    flat = traverse_util.flatten_dict(shapes, sep="/")
    variables = traverse_util.unflatten_dict(
        {path: _random_parameter(path, shape.shape) for path, shape in flat.items()}, sep="/"
    )
    parameters = sum(shape.size for path, shape in flat.items() if path.startswith("params/"))
    batch = random_batch(options.batch, options.size, num_labels)
    mesh = make_mesh()
    optimizer = make_optimizer(
        lambda step: 1e-6, name="sgd", momentum=0.9, weight_decay=1e-4, bias_learning_rate_factor=2.0, clip_norm=None
    )
    state = make_state(variables, optimizer, (), ema=False)
    train: Any = make_train_step(model, optimizer, mesh, seed=0)
    detect: Any = make_detect_step(model, mesh)
    compiled_train, compiled_detect = (
        step.lower(*arguments).compile()
        for step, arguments in ((train, (state, batch)), (detect, (variables, batch.images, batch.image_sizes)))
    )
    memory = {"train": compiled_train.memory_analysis(), "detect": compiled_detect.memory_analysis()}

    def train_once() -> Any:
        nonlocal state
        state, losses = train(state, batch)
        return losses

    seconds = {
        "detect": median_seconds(lambda: detect(variables, batch.images, batch.image_sizes), options.repeat),
        "train": median_seconds(train_once, options.repeat),
    }
    return {
        name: (parameters, memory[name].argument_size_in_bytes, memory[name].temp_size_in_bytes, seconds[name])
        for name in ("train", "detect")
    }


def _random_parameter(path: str, shape: tuple[int, ...]) -> np.ndarray:
    # A seed of its own: what does not depend on the number of classes is the same for all, and so are the proposals,
    # the regions drawn, and how many of them the mask branch works on. So small that nothing is found: with those of
    # `checks.make_variables` 80 classes find objects, and 3,001, none of which gets as high a score, do not.
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    return rng.normal(0, 0.01, shape).astype(np.float32)


def random_batch(batch: int, size: int, num_labels: int) -> Batch:
    """Return images of noise with five objects each."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, size / 2, (batch, 5, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(size / 8, size / 2, (batch, 5, 2))], axis=-1)
    everything = jnp.ones((batch, 5), bool)
    gt = GroundTruth(
        boxes=jnp.asarray(boxes, jnp.float32),
        labels=jnp.asarray(rng.integers(1, num_labels + 1, (batch, 5)), jnp.int32),
        masks=jnp.full((batch, 5, STORED_MASK_SIDE, STORED_MASK_SIDE // 8), 255, jnp.uint8),
        mask_frames=jnp.asarray(boxes, jnp.float32),
        has_mask=everything,
        is_crowd=~everything,
        valid=everything,
    )
    return Batch(
        images=jnp.asarray(rng.integers(0, 256, (batch, size, size, 3)), jnp.uint8),
        image_sizes=jnp.full((batch, 2), size, jnp.float32),
        image_ids=jnp.arange(batch, dtype=jnp.int32),
        scales=jnp.ones(batch),
        valid=jnp.ones(batch, bool),
        ground_truth=gt,
    )


def median_seconds(function: Callable[[], PyTree], repeat: int) -> float:
    """Return the median time of some calls, after one that is not counted."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


if __name__ == "__main__":
    errors.run(main)
