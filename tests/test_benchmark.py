import dataclasses
import sys

import numpy as np
import pytest

from tools.benchmark import __main__ as benchmark
from tools.benchmark import cases, host, ours


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
