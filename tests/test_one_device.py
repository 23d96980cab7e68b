"""The path of a plain `python train.py` on a CPU: one device, which computes in a way of its own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.processes import ENVIRONMENT, ROOT

FLAGS = (
    "--config=tests/cluster/small_config.py",
    *("--config.train.num_steps=2", "--config.train.eval_every=2", "--config.data.shapes.num_eval=4"),
    # So that this short training finds something.
    "--config.model.rcnn.box_head.score_threshold=0.0",
)
# The same, computed as on any other device.
OTHER_WAY = """
import functools, sys
from maskx_jax import errors
from maskx_jax.cli import train
from maskx_jax.models.build import build
from maskx_jax.training.loop import Parts

errors.run(lambda: train.main(sys.argv[1:], Parts(build=functools.partial(build, cpu=False))))
"""


def run(workdir, *program: str, flags: tuple[str, ...] = ()) -> tuple[list[dict], str]:
    command = [sys.executable, *program, *FLAGS, *flags, f"--workdir={workdir}"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    done = subprocess.run(command, cwd=ROOT, env=environment | ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()], done.stdout


@pytest.mark.slow
def test_a_plain_train_py_learns_what_it_does_with_the_way_of_a_cpu_off(tmp_path):
    lines, said = run(tmp_path / "plain", "train.py")
    assert "parameters on 1 devices" in said and "box  all" in said
    others, _ = run(tmp_path / "other", "-c", OTHER_WAY, flags=("--config.train.eval_every=0",))
    assert [line["step"] for line in lines] == [1, 2, 2] and [line["step"] for line in others] == [1, 2]
    for one, other in zip(lines[:2], others, strict=True):
        for name in ("total", "rpn_class", "rpn_box", "box_class", "box", "mask", "gradient_norm"):
            found, expected = one[f"train/{name}"], other[f"train/{name}"]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6, err_msg=name)
    assert lines[2]["bbox/all/AP"] is not None and lines[2]["segm/B/AP"] is not None
