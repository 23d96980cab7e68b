"""What bounds training on pods, on paper: memory, arithmetic and links of a train step, beside those of their chips.

    python -m benchmarks.pods --canvas=800x1344 --mlp=none

Nothing is run: FLOPs are XLA's count of the step as it is traced, the bytes kept for the backward pass are those of its
residuals in bfloat16, and what the chips can do is what their makers publish. It writes a Markdown table for a state
that every chip holds whole and for one that is split ("fsdp").
"""

import argparse
import dataclasses
from typing import Any

import jax

from benchmarks.measure_devices import add_arguments, lowered_step, num_residual_bytes
from maskx_jax import errors
from maskx_jax.distributed.mesh import STATE_SHARDINGS, make_mesh

# Of a chip's peak: the train step of Mask R-CNN was measured on one H100 at 163 images/s (docs/performance.md).
_REACHED = 0.25
_COLUMNS = (
    "pod",
    "state",
    "images a chip",
    "state, GB",
    "kept for the backward pass, GB",
    "of the memory",
    "arithmetic, ms",
    "links, ms",
    "images/s at most",
    f"images/s at {_REACHED:.0%} of the peak",
)


@dataclasses.dataclass(frozen=True)
class Pod:
    """Chips of one kind, by what their makers publish.

    Attributes:
      name: of the pod.
      num_chips: in it.
      flops: of a chip a second, dense, bfloat16.
      memory: bytes of a chip.
      link: bytes a second that a chip can send to the others, over all of its links.
    """

    name: str
    num_chips: int
    flops: float
    memory: float
    link: float


PODS = (
    Pod("8 x H100 (NVLink)", 8, 989e12, 80e9, 450e9),
    Pod("v4-32 (16 chips)", 16, 275e12, 32e9, 300e9),
    Pod("v5e-256", 256, 197e12, 16e9, 200e9),
)


def main() -> None:
    """Print the table that the arguments ask for."""
    parser = errors.ArgumentParser(prog="python -m benchmarks.pods", description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.set_defaults(canvas="800x1344", mlp="none")
    parser.add_argument("--images", default="1,4,8", help="images of each chip")
    options = parser.parse_args()
    # What a GPU's libraries compute is not among XLA's FLOPs.
    jax.config.update("jax_platforms", "cpu")
    flops, trained, state = step_costs(options)
    kept = num_residual_bytes("no", options, dtype="bfloat16")
    print(f"an image: {flops / 1e12:.2f} TFLOP, {kept / 1e9:.2f} GB kept for the backward pass")
    print(f"gradients that are summed: {trained / 1e6:.0f} MB; parameters and momentum: {state / 1e9:.2f} GB")
    print(f"\n| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    for pod in PODS:
        for sharding in STATE_SHARDINGS:
            for images in map(int, options.images.split(",")):
                print(f"| {' | '.join(row(pod, sharding, images, flops, trained, state, kept))} |")


def step_costs(options: argparse.Namespace) -> tuple[float, int, int]:
    """Return of a step on one image: its FLOPs, the bytes of its gradients, and of parameters and momentum."""
    lowered, state = lowered_step(make_mesh(jax.devices()[:1]), "replicated", "no", options)
    trained, all_of_it = (sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(t)) for t in (state.trained, state))
    cost: Any = lowered.cost_analysis()
    return cost["flops"], trained, all_of_it


def row(pod: Pod, sharding: str, images: int, flops: float, trained: int, state: int, kept: int) -> tuple[str, ...]:
    """Return what a step of `images` images a chip needs of a pod, and what bounds it.

    Each chip sends as much as the gradients twice, but for its own share: a ring sums each part of them, and passes on
    the sums or, where the state is split, the parameters that came of them. Arithmetic and links may overlap, and the
    longer of them bounds. A split state is gathered whole for a step.
    """
    arithmetic = images * flops / pod.flops
    links = 2 * trained * (pod.num_chips - 1) / pod.num_chips / pod.link
    # The gradients lie beside the state until they are applied.
    resident: float = state + trained
    if sharding == "fsdp":
        resident = resident / pod.num_chips + trained
    memory = resident + images * kept
    fits = f"{memory / pod.memory:.0%}" + (" (too much)" if memory > pod.memory else "")
    rate, usual = (pod.num_chips * images / max(arithmetic / fraction, links) for fraction in (1, _REACHED))
    return (
        pod.name,
        sharding,
        str(images),
        f"{resident / 1e9:.2f}",
        f"{images * kept / 1e9:.1f}",
        fits,
        f"{1e3 * arithmetic:.1f}",
        f"{1e3 * links:.1f}",
        f"{rate:,.0f}" + ("" if arithmetic >= links else " (links)"),
        f"{usual:,.0f}" + ("" if arithmetic / _REACHED >= links else " (links)"),
    )


if __name__ == "__main__":
    errors.run(main)
