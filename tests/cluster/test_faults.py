"""Real processes, joined over localhost: whatever happens to them, a run ends with the same weights."""

import collections
import json
import random
import re
import subprocess
import time

import jax
import numpy as np
import pytest

import maskx_jax
import tests.processes
from maskx_jax.training.interruption import EXIT_INTERRUPTED
from maskx_jax.training.watchdog import EXIT_LOST

pytestmark = pytest.mark.slow

# Over all processes, so that their number changes nothing of the arithmetic but its place.
TOTAL_DEVICES = 4


def start(workdir, *changes: str, processes: int = 1, fault: str = "") -> list[subprocess.Popen]:
    command = ("-m", "tests.cluster.small_run", workdir, *changes)
    devices = TOTAL_DEVICES // processes
    return tests.processes.start(*command, processes=processes, devices=devices, FAULT=fault)


def run(workdir, *changes: str, processes: int = 1, fault: str = "") -> list[int]:
    return tests.processes.finish(start(workdir, *changes, processes=processes, fault=fault))


def losses(workdir) -> dict[int, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "train/total" in line]
    # A step that was done twice is logged once.
    assert len({line["step"] for line in logged}) == len(logged)
    return {line["step"]: line["train/total"] for line in logged}


def ids(workdir) -> dict[int, set[tuple[int, ...]]]:
    """Return for each step the ids of its global batch, as every attempt at it saw them."""
    seen: dict[int, set[tuple[int, ...]]] = collections.defaultdict(set)
    of_count = collections.defaultdict(lambda: collections.defaultdict(dict))
    for path in workdir.glob("ids-*.jsonl"):
        index, _, count = path.stem.removeprefix("ids-").partition("-of-")
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # Killed while it was written.
                continue
            part = of_count[count][entry["step"]].setdefault(int(index), tuple(entry["ids"]))
            assert part == tuple(entry["ids"]), f"step {entry['step']} has other examples than before"
    for count, steps in of_count.items():
        for step, parts in steps.items():
            if len(parts) == int(count):
                seen[step].add(tuple(i for index in sorted(parts) for i in parts[index]))
    return seen


def assert_same_weights(first, second, tolerance: float = 0.0) -> None:
    first, second = maskx_jax.load(first), maskx_jax.load(second)
    assert first.step == second.step
    for one, other in zip(jax.tree.leaves(first.variables), jax.tree.leaves(second.variables), strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance, rtol=0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the work directory of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole")
    assert run(workdir) == [0]
    return workdir


def test_the_number_of_processes_changes_nothing(tmp_path):
    changes = ("train.num_steps=20", "train.checkpoint_every=20", "train.eval_every=20")
    for processes in (1, 2, 4):
        assert run(tmp_path / str(processes), *changes, processes=processes) == [0] * processes
    expected = losses(tmp_path / "1")
    assert sorted(expected) == list(range(1, 21))
    for processes in ("2", "4"):
        found = losses(tmp_path / processes)
        np.testing.assert_allclose([found[step] for step in expected], list(expected.values()), atol=1e-5, rtol=0)
        assert_same_weights(tmp_path / "1", tmp_path / processes, 1e-5)
        assert ids(tmp_path / processes) == ids(tmp_path / "1")


def test_a_run_that_is_killed_20_times_ends_bit_equal(tmp_path):
    changes = ("train.num_steps=30", "train.checkpoint_every=1", "train.eval_every=3")
    # Saving and evaluating do not change what is learned.
    assert run(tmp_path / "whole", changes[0], "train.checkpoint_every=30", "train.eval_every=0") == [0]
    rng = random.Random(0)
    workdir, met = tmp_path / "killed", collections.Counter()
    for moment in range(20):
        step = saved_step(workdir) + 1
        phase = "evaluation 1" if moment % 4 == 3 else f"{rng.choice(('data', 'step', 'checkpoint'))} {step}"
        # The delay takes it into the phase, and some of them beyond it; a checkpoint is written during what follows.
        assert run(workdir, *changes, fault=f"kill 0 {phase} {rng.uniform(0, 0.6):.2f}") == [-9]
        met[phase.split()[0]] += 1
    print(f"killed {met.total()} times, in {dict(met)}")
    assert run(workdir, *changes) == [0]
    assert_same_weights(tmp_path / "whole", workdir)
    expected = ids(tmp_path / "whole")
    assert all(seen == expected[step] for step, seen in ids(workdir).items() if step in expected)
    assert losses(workdir) == losses(tmp_path / "whole")


def saved_step(workdir) -> int:
    return max((int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()), default=0)


def test_a_run_goes_on_with_another_number_of_processes(whole, tmp_path):
    for processes, fault in ((1, "kill 0 step 3"), (2, "kill 0 data 6"), (4, "")):
        codes = run(tmp_path, processes=processes, fault=fault)
        assert (codes == [0] * processes) == (fault == ""), codes
    assert_same_weights(whole, tmp_path, 1e-5)
    assert ids(tmp_path) == ids(whole)


@pytest.mark.parametrize(
    ("fault", "saved_at"),
    [
        ("term 0 step 3", 3),
        # The write of step 2 has just begun.
        ("term 0 data 3", 3),
        ("term 0 checkpoint 6", 6),
        ("term 0 evaluation 1", 4),
    ],
)
def test_a_run_that_is_asked_to_leave_saves_and_goes_on(whole, tmp_path, fault, saved_at, capfd):
    assert run(tmp_path, fault=fault) == [EXIT_INTERRUPTED]
    assert f"asked to leave after step {saved_at}, which is saved" in capfd.readouterr().err
    assert maskx_jax.load(tmp_path).step == saved_at
    assert run(tmp_path) == [0]
    assert_same_weights(whole, tmp_path)
    # The evaluation that was broken off is made up for.
    assert evaluated(tmp_path) == evaluated(whole)


def evaluated(workdir) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "bbox/all/AP" in line]


def test_one_process_that_is_asked_to_leave_takes_the_others_with_it(whole, tmp_path, capfd):
    assert run(tmp_path, processes=2, fault="term 1 step 3") == [EXIT_INTERRUPTED] * 2
    assert maskx_jax.load(tmp_path).step == 4
    assert "asked to leave after step 4" in capfd.readouterr().err
    assert run(tmp_path, processes=2) == [0, 0]
    assert_same_weights(whole, tmp_path, 1e-5)


def test_a_loss_that_is_not_finite_on_one_process_stops_both(tmp_path, capfd):
    codes = run(tmp_path, processes=2, fault="nan 1 data 4")
    assert 0 not in codes and EXIT_LOST not in codes
    assert capfd.readouterr().err.count("FloatingPointError: step 4: not finite") == 2
    assert maskx_jax.load(tmp_path).step == 2


def test_a_process_that_dies_is_named_by_the_other(tmp_path, capfd):
    codes = run(tmp_path, processes=2, fault="kill 1 data 4")
    assert codes[0] not in (0, -9) and codes[1] == -9, codes
    error = capfd.readouterr().err
    assert "no sign of life for 20 s from process 1; process 0 leaves" in error
    # Where it gave its last sign, which may be a few seconds before its death.
    assert re.search(r"process 1 on \S+: (data|step), step [34]; last sign of life \d+ s ago", error)


def test_when_the_first_process_dies_jax_ends_the_others(tmp_path, capfd):
    # It leads the others; they lose their connection at once, and the watchdog has nothing to wait for.
    codes = run(tmp_path, processes=2, fault="kill 0 data 4")
    assert codes[0] == -9 and codes[1] not in (0, -9), codes
    error = capfd.readouterr().err
    assert "the leader task was preempted/died" in error or "no sign of life for 20 s from process 0" in error


def test_a_process_that_hangs_says_where_and_leaves(tmp_path, capfd):
    # Longer than compilation takes on a busy machine.
    changes = ("watchdog.report_after=80.0", "watchdog.leave_after=90.0")
    assert run(tmp_path, *changes, processes=2, fault="hang 1 data 4") == [EXIT_LOST] * 2
    error = capfd.readouterr().err
    assert "process 1 (this one): data, step 4" in error
    assert 'small_run.py", line' in error and "time.sleep(1)" in error
    # The other one stands in the step's collective operation, and knows who is late.
    assert "process 0 (this one): step, step 4" in error or "process 0 (this one): data, step 5" in error


def test_a_second_run_in_the_same_directory_is_refused(tmp_path, capfd):
    (first,) = start(tmp_path, fault="hang 0 data 1")
    while not (tmp_path / "processes/0.json").exists():
        time.sleep(0.1)
    assert run(tmp_path) == [1]
    assert f"another run writes into {tmp_path}: process {first.pid} of" in capfd.readouterr().err
    first.kill()
    first.wait()
