"""Measure what more devices cost and save: memory a device and communication of the compiled train step.

    python -m benchmarks.measure_devices --devices=1,8,64 --canvas=512x512

It writes a Markdown table: the state replicated or split ("fsdp"), the backbone's blocks kept or recomputed. Mask^X
R-CNN with the paper's MLP branch (157 million weights) and the frozen layers of its config, one image a device. The
devices are fake ones of this CPU, and nothing is allocated or run: the figures are those of XLA's CPU compiler, to be
read as ratios. A collective's bytes are those of its result on one device; one in a loop would be counted once.

XLA's CPU compiler merges what is computed twice, so that the table does not show what recomputing saves. The lines
below it do: the bytes that JAX keeps from the forward for the backward pass of one image, before any compiler.
"""

import argparse
import collections
import concurrent.futures
import itertools
import math
import multiprocessing
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import maskx_rcnn
from maskx_jax import errors
from maskx_jax.distributed.mesh import STATE_SHARDINGS, make_mesh, split_batch, state_shardings
from maskx_jax.models.build import build, initialize
from maskx_jax.structures import STORED_MASK_SIDE, Batch, GroundTruth, PyTree, TrainState, merge
from maskx_jax.training.optimizer import make_optimizer, split_params
from maskx_jax.training.steps import make_state, make_train_step

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_COLUMNS = ("devices", "state", "remat", "arguments", "temporaries", "outputs", *COLLECTIVES, "compiled in")


def main() -> None:
    """Measure what the arguments say."""
    parser = errors.ArgumentParser(
        prog="python -m benchmarks.measure_devices", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--devices", default="1,8,64", help="numbers of devices")
    parser.add_argument("--state", default=",".join(STATE_SHARDINGS), help="values of config.train.state_sharding")
    parser.add_argument("--remat", default="no,yes", help="whether to recompute the backbone's blocks")
    add_arguments(parser)
    options = parser.parse_args()
    counts = [int(count) for count in options.devices.split(",")]
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    # The number of fake devices is fixed once JAX has begun: each row has its own process.
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as executor:
        for choice in itertools.product(counts, options.state.split(","), options.remat.split(",")):
            row = executor.submit(measure, *choice, options).result()
            print(f"| {' | '.join(row)} |", flush=True)
    print()
    for remat in options.remat.split(","):
        print(f"remat {remat}: {num_residual_bytes(remat, options):,} bytes kept for the backward pass of an image")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those that say what is trained, and on what."""
    parser.add_argument("--model", default="full", choices=("full", "tiny"))
    parser.add_argument("--mlp", default="paper", choices=("paper", "light", "none"))
    parser.add_argument("--classes", type=int, default=80, help="number of classes, without background")
    parser.add_argument("--canvas", default="512x512", help="height x width")


def measure(num_devices: int, state_sharding: str, remat: str, options: argparse.Namespace) -> tuple[str, ...]:
    """Return the row of the table for one compiled step; to be called before JAX has been used."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", num_devices)
    lowered, _ = lowered_step(make_mesh(), state_sharding, remat, options)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    found = collectives(compiled.as_text() or "")
    return (
        str(num_devices),
        state_sharding,
        remat,
        f"{memory.argument_size_in_bytes:,}",
        f"{memory.temp_size_in_bytes:,}",
        f"{memory.output_size_in_bytes:,}",
        *(f"{number}: {size:,}" if number else "0" for number, size in (found[name] for name in COLLECTIVES)),
        f"{seconds:.0f} s",
    )


def lowered_step(
    mesh: Mesh, state_sharding: str, remat: str, options: argparse.Namespace
) -> tuple[jax.stages.Lowered, TrainState]:
    """Return the train step as it is traced, of one image a device, and the shapes of its state."""
    config, model = _config_and_model(remat, options)
    fields = config.optimizer
    optimizer = make_optimizer(
        lambda step: fields.learning_rate,
        name=fields.name,
        momentum=fields.momentum,
        weight_decay=fields.weight_decay,
        bias_learning_rate_factor=fields.bias_learning_rate_factor,
        clip_norm=fields.clip_norm or None,
    )
    state = jax.eval_shape(
        lambda key: make_state(initialize(model, key), optimizer, fields.untrained, ema=fields.ema_decay is not None),
        jax.random.key(0),
    )
    shardings = state_shardings(mesh, state, state_sharding)
    train: Any = make_train_step(model, optimizer, mesh, seed=0, state_shardings=shardings)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
    batch = abstract_batch(mesh, options.canvas, config.data.transform.num_slots)
    return train.lower(state, batch), state


def num_residual_bytes(remat: str, options: argparse.Namespace, dtype: str = "float32") -> int:
    """Return the bytes of the residuals of one image's losses: all but the parameters and constants themselves."""
    config, model = _config_and_model(remat, options, dtype)
    variables = jax.eval_shape(lambda: initialize(model, jax.random.key(0)))
    trained, rest = split_params(variables["params"], config.optimizer.untrained)
    batch = abstract_batch(make_mesh(jax.devices()[:1]), options.canvas, config.data.transform.num_slots)

    def backward(trained: PyTree, rest: PyTree, frozen: PyTree, batch: Batch) -> Any:
        def loss(trained: PyTree) -> Any:
            variables = {"params": merge(trained, rest), "frozen": frozen}
            return model.apply(variables, batch, jax.random.key(0), method="losses")[0]

        return jax.vjp(jax.jit(loss), trained)[1]

    residuals = jax.eval_shape(backward, trained, rest, variables.get("frozen", {}), batch)
    kept, given = (
        collections.Counter((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree))
        for tree in (residuals, variables)
    )
    return sum(number * math.prod(shape) * dtype.itemsize for (shape, dtype), number in (kept - given).items())


def abstract_batch(mesh: Mesh, canvas: str, num_slots: int) -> Batch:
    """Return the shapes of a batch of one image a device, with their sharding."""
    height, width = (int(side) for side in canvas.split("x"))
    sharding = split_batch(mesh)

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((mesh.size, *shape), dtype, sharding=sharding)

    gt = GroundTruth(
        boxes=array(jnp.float32, num_slots, 4),
        labels=array(jnp.int32, num_slots),
        masks=array(jnp.uint8, num_slots, STORED_MASK_SIDE, STORED_MASK_SIDE // 8),
        mask_frames=array(jnp.float32, num_slots, 4),
        has_mask=array(bool, num_slots),
        is_crowd=array(bool, num_slots),
        valid=array(bool, num_slots),
    )
    return Batch(
        images=array(jnp.uint8, height, width, 3),
        image_sizes=array(jnp.float32, 2),
        image_ids=array(jnp.int32),
        scales=array(jnp.float32),
        valid=array(bool),
        ground_truth=gt,
    )


def _config_and_model(remat: str, options: argparse.Namespace, dtype: str = "float32") -> tuple[ConfigDict, nn.Module]:
    config = maskx_rcnn.get_config(f"size={options.model},mlp={options.mlp}")
    config.model.dtype = dtype
    config.model.backbone.remat = remat == "yes"
    # As on the accelerators that the fake devices stand for, also where there is only one of them.
    return config, build(config.model, options.classes, cpu=False)


def collectives(hlo: str) -> dict[str, tuple[int, int]]:
    """Return for each kind of collective in a compiled module how many there are, and the bytes of their results."""
    found = dict.fromkeys(COLLECTIVES, (0, 0))
    # Of an asynchronous pair the end counts: the result of its start holds the operands too.
    for result, name in re.findall(rf"= (\(.*?\)|\S+) ({'|'.join(COLLECTIVES)})(?:-done)?\(", hlo):
        number, size = found[name]
        found[name] = (number + 1, size + _num_bytes(result))
    return found


def _num_bytes(result: str) -> int:
    """Return the bytes of an HLO type such as "f32[8,16]{1,0}", or of a tuple of them."""
    total = 0
    for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result):
        bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
        total += math.prod(int(side) for side in shape.split(",") if side) * bits // 8
    return total


if __name__ == "__main__":
    errors.run(main)
