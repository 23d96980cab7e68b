"""The SavedModel: TensorFlow finds the same with it, without JAX and without this package."""

import pytest

from maskx_jax.cli.export import main
from tests.export.conftest import assert_same


@pytest.mark.slow
def test_a_process_with_tensorflow_alone_finds_the_same(workdir, tmp_path, picture, expected, run_elsewhere):
    folder = tmp_path / "saved_model"
    assert main([f"--workdir={workdir}", "--format=saved_model", f"--output={folder}"]) == 0
    assert_same(run_elsewhere("run_saved_model.py", folder, picture, hidden=("jax", "jaxlib")), expected)
