import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.ops.roi_align import roi_align
from tools.benchmark import __main__ as benchmark
from tools.benchmark import cases, host, ours, roi_align_forms


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    benchmark.write_inputs(folder, with_parameters=False)
    return folder


def test_case_names_tell_them_apart():
    for suite in cases.SUITES.values():
        assert len({case.name for case in suite}) == len(suite)


SMALL = [
    cases.Case("nms", size=50, groups=2),
    cases.Case("roi_align", canvas=(64, 96), size=7, gradient=True),
    cases.Case("paste", canvas=(120, 150)),
    cases.Case("product", size=64),
    cases.Case("copy", size=1),
    cases.Case("input", batch=2),
    cases.Case("scores", size=3, scored="segm", backend="hotcoco"),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.kind)
def test_operations_and_host_work_run(folder, case):
    call, told = ours.build(folder, case)
    call()
    assert told["version"].startswith("jax")


@pytest.mark.parametrize("form", cases.ROI_ALIGN_FORMS)
def test_other_forms_of_roi_align_equal_the_one_the_models_use(form):
    rng = np.random.default_rng(0)
    features = {k: jnp.asarray(rng.standard_normal((96 >> k, 128 >> k, 8), np.float32)) for k in (2, 3)}
    corners = rng.uniform(-20, 100, (12, 2))
    # Of both levels, some of them beyond the border.
    boxes = jnp.asarray(np.concatenate([corners, corners + rng.uniform(2, 300, (12, 2))], axis=1), jnp.float32)

    def pooled_with_gradients(pool):
        pooled, pull_back = jax.vjp(lambda maps: pool(maps, boxes, 7), features)
        return pooled, pull_back(jnp.cos(jnp.arange(pooled.size, dtype=jnp.float32)).reshape(pooled.shape))

    expected = pooled_with_gradients(roi_align)
    assert all(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(expected))
    actual = pooled_with_gradients(roi_align_forms.FORMS[form])
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), actual, expected)


def test_the_kernel_is_one_of_triton_on_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    features, boxes = {2: jnp.zeros((24, 32, 256))}, jnp.zeros((3, 4))
    gradients = jax.jit(jax.value_and_grad(lambda maps: roi_align_forms.kernel(maps, boxes, 7).sum()))
    assert gradients.trace(features).lower(lowering_platforms=("cuda",)).as_text().count("xla.gpu.triton(") == 2


def test_a_process_is_told_what_to_time_and_a_row_is_written(folder, monkeypatch, capfd):
    monkeypatch.setitem(cases.SUITES, "ops", (cases.Case("nms", size=20), cases.Case("nms", size=30)))
    monkeypatch.setattr(sys, "argv", ["benchmark", "--suite=ops", "--only=x 20", "--rounds=2", "--seconds=0"])
    benchmark.main()
    lines = capfd.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("| NMS, 1 x 20 boxes |")]) == 1
    assert not any("x 30" in line for line in lines)


def test_a_process_that_ends_is_named():
    worker = benchmark.Worker([sys.executable, "-c", "raise SystemExit(3)"], {})
    with pytest.raises(RuntimeError, match=r"ended with exit code 3 at \{'repeat': 1\}"):
        worker.ask(repeat=1)
    worker.close()


def test_inputs_are_the_same_in_every_process(folder):
    case = dataclasses.replace(cases.SUITES["train"][0], canvas=(64, 96))
    first, second = cases.read_inputs(folder, case), cases.read_inputs(folder, case)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    assert first["images"].shape == (2, 64, 96, 3) and first["images"].std() > 10


def test_examples_come_from_files_as_large_as_those_of_coco():
    batch = next(host.training_batches(2, num_images=4))
    assert batch.images.shape[1:] in ((800, 1344, 3), (1344, 800, 3))
    assert batch.ground_truth.valid.any(axis=1).all()
    files = [len(record.image) for record in host.JpegSource(4)]
    assert 100_000 < np.mean(files) < 250_000
