"""The StableHLO export: runs without this package, on batches of any size, and as each platform computes best."""

import collections
import dataclasses
import re

import jax
import numpy as np
import pytest
from jax import export

from maskx_jax.cli.export import main
from maskx_jax.export.stablehlo import lower
from tests.export.conftest import assert_same


@pytest.fixture(scope="module")
def folder(workdir, tmp_path_factory):
    """Return what the verb wrote."""
    folder = tmp_path_factory.mktemp("out") / "stablehlo"
    assert main([f"--workdir={workdir}", "--format=stablehlo", f"--output={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def program(folder):
    return export.deserialize(bytearray((folder / "square.stablehlo").read_bytes()))


def test_a_process_without_this_package_finds_the_same(folder, picture, expected, run_elsewhere):
    assert_same(run_elsewhere("run_stablehlo.py", folder, picture), expected)


def compile_as(program: export.Exported, platform: str, images: int):
    """Compile here what a platform would run; return how often each operation is in it, and what it finds."""
    # The position of a platform in this list decides which form runs: "cpu" changes places with the other.
    names = [{"cpu": platform, platform: "cpu"}.get(name, name) for name in program.platforms]
    renamed = dataclasses.replace(program, platforms=tuple(names))
    pixels = np.random.default_rng(0).integers(0, 255, (images, 96, 96, 3), np.uint8)
    inputs = pixels, np.array([[96, 64], [90, 50]], np.float32)[:images]
    compiled = jax.jit(renamed.call).lower(*inputs).compile()
    return collections.Counter(re.findall(r" ([\w-]+)\(", compiled.as_text())), compiled(*inputs)


@pytest.mark.parametrize("platform", ["cuda", pytest.param("tpu", marks=pytest.mark.long)])
def test_each_platform_runs_its_own_form_on_a_batch_of_any_size(program, platform):
    on_cpu, found_on_cpu = compile_as(program, "cpu", images=2)
    elsewhere, found = compile_as(program, platform, images=2)
    # On a CPU matrix products in place of convolutions, and loops over images, tiles and slots that are used.
    assert on_cpu["convolution"] == 0 and elsewhere["convolution"] > 20
    assert on_cpu["while"] > elsewhere["while"]
    # Nothing is left to be decided when it runs.
    assert on_cpu["conditional"] == elsewhere["conditional"] == 0
    valid = found_on_cpu["valid"]
    assert valid.any()
    for name, value in found_on_cpu.items():
        np.testing.assert_allclose(found[name][valid], value[valid], rtol=0, atol=1e-4, err_msg=name)


def test_a_batch_of_no_image_is_refused(run):
    with pytest.raises(ValueError, match=r"^got a batch of 0 images; expected 1 or more"):
        lower(run, (96, 96), batch_size=0)
