"""Real processes, joined over localhost: whatever happens to them, a run ends with the same weights.

The tests of a `system` train a real detector, and all but one of them take minutes. The others do the same to a model
that compiles in a second, in few runs to which many things happen one after the other.
"""

import collections
import json
import random
import re
import socket
import subprocess
import time

import jax
import numpy as np
import pytest

import maskx_jax
import tests.processes
from maskx_jax.distributed.interruption import EXIT_INTERRUPTED
from maskx_jax.distributed.watchdog import EXIT_LOST
from maskx_jax.errors import EXIT_SIGINT
from maskx_jax.models import build
from tests.cluster.small_config import SYSTEMS
from tests.cluster.stand_in import StandIn

pytestmark = pytest.mark.slow

# Over all processes, so that their number changes nothing of the arithmetic but its place.
TOTAL_DEVICES = 4
HOST = socket.gethostname()


def start(workdir, *changes: str, processes: int = 1, fault: str = "", system: str = "") -> list[subprocess.Popen]:
    command = ("-m", "tests.cluster.small_run", workdir, *changes)
    devices = TOTAL_DEVICES // processes
    return tests.processes.start(*command, processes=processes, devices=devices, FAULT=fault, SYSTEM=system)


def run(workdir, *changes: str, **options) -> list[int]:
    return tests.processes.finish(start(workdir, *changes, **options))


def losses(workdir) -> dict[int, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "train/total" in line]
    # A step that was done twice is logged once.
    assert len({line["step"] for line in logged}) == len(logged)
    return {line["step"]: line["train/total"] for line in logged}


def evaluated(workdir) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "bbox/all/AP" in line]


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


def saved_step(workdir) -> int:
    return max((int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()), default=0)


def assert_same_weights(first, second, tolerance: float = 0.0) -> None:
    """Check that two runs ended with the same weights, but for such a part of their norm.

    AdamW divides by small numbers, so that single weights differ by more than the sums do that were added in another
    order: by 4e-6 of the norm after 20 steps on a processor with AVX-512. One step changes 1e-3 of it.
    """
    one, other = maskx_jax.load(first), maskx_jax.load(second)
    assert one.step == other.step
    found, expected = (
        np.concatenate([np.ravel(array) for array in jax.tree.leaves(run.variables)]) for run in (one, other)
    )
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


@pytest.fixture
def stand_in(monkeypatch):
    """Let `maskx_jax.load` build the model of the quick runs."""
    monkeypatch.setitem(build.FAMILIES, "rcnn", build.Part(lambda num_classes, **_: StandIn(num_classes)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the work directory of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole")
    assert run(workdir) == [0]
    return workdir


def test_one_process_that_is_killed_and_asked_to_leave_ends_bit_equal(whole, tmp_path, stand_in, capfd):
    def goes_on(code: int, fault: str) -> str:
        assert run(tmp_path, fault=fault) == [code]
        return capfd.readouterr().err

    # Before anything is saved, or can be.
    assert (
        goes_on(EXIT_INTERRUPTED, "term 0 open 0")
        == "got SIGTERM with nothing to save; start the command again to go on\n"
    )
    # The write of step 2 has just begun.
    goes_on(-9, "kill 0 checkpoint 2 0.1")
    assert "asked to leave after step 3, which is saved" in goes_on(EXIT_INTERRUPTED, "term 0 data 3")
    assert saved_step(tmp_path) == 3
    assert "asked to leave after step 4, which is saved" in goes_on(EXIT_INTERRUPTED, "term 0 evaluation 1")
    assert saved_step(tmp_path) == 4
    # The evaluation that was broken off is made up for. The second SIGINT does not wait for the end of the step.
    said = goes_on(EXIT_SIGINT, "int 0 data 6")
    assert said.endswith("error: interrupted (SIGINT)\n") and "Traceback" not in said
    assert "asked to leave after step 6, which is saved" in goes_on(EXIT_INTERRUPTED, "term 0 checkpoint 6")

    (running,) = start(tmp_path, fault="hang 0 data 7")
    while json.loads((tmp_path / "processes/0.json").read_text())["pid"] != running.pid:
        time.sleep(0.1)
    assert goes_on(1, "").endswith(f"error: another run writes into {tmp_path}: process {running.pid} of {HOST}\n")
    running.kill()
    running.wait()

    goes_on(-9, "kill 0 evaluation 1")
    goes_on(0, "")
    assert_same_weights(whole, tmp_path)
    assert ids(tmp_path) == ids(whole)
    assert losses(tmp_path) == losses(whole)
    assert evaluated(tmp_path) == evaluated(whole)


def test_two_processes_that_are_hit_one_after_the_other_end_as_one(whole, tmp_path, stand_in, capfd):
    def goes_on(*changes: str, fault: str) -> tuple[list[int], str]:
        codes = run(tmp_path, *changes, processes=2, fault=fault)
        return codes, capfd.readouterr().err

    # One that is asked to leave takes the other with it, after the same step.
    codes, said = goes_on(fault="term 1 step 3")
    assert codes == [EXIT_INTERRUPTED] * 2 and saved_step(tmp_path) == 3
    assert said.count("asked to leave after step 3, which is saved") == 2

    # One that ends by an error says so in a line, and the other quotes it and leaves at once.
    began = time.monotonic()
    codes, said = goes_on("distributed.peer_timeout=600", fault="fail 1 data 5")
    assert codes == [EXIT_LOST, 1] and time.monotonic() - began < 300
    assert said.count("error: only this process has no luck\n") == 1 and "Traceback" not in said
    assert f"process 1 on {HOST} ended by an error: ValueError: only this process has no luck; process 0 exits" in said
    codes, said = goes_on("distributed.peer_timeout=600", fault="fail 0 data 5")
    assert codes == [1, EXIT_LOST]
    assert f"process 0 on {HOST} ended by an error: ValueError: only this process has no luck; process 1 exits" in said

    # What is not finite is the error of both, wherever it came from.
    codes, said = goes_on(fault="nan 1 data 5")
    assert codes == [1, 1] and said.count("error: step 5: not finite") == 2 and saved_step(tmp_path) == 4

    # One that dies is named, and the place of its last heartbeat, which may be a few seconds before its death.
    codes, said = goes_on("distributed.peer_timeout=5", fault="kill 1 data 6")
    assert codes[0] not in (0, -9) and codes[1] == -9, codes
    assert "no heartbeat for 5 s from process 1; process 0 exits" in said
    assert re.search(r"process 1 on \S+: \w+, step \d; last heartbeat \d+ s ago", said)

    # With another number of processes it goes on as well.
    assert run(tmp_path) == [0]
    assert_same_weights(whole, tmp_path, 1e-4)
    assert ids(tmp_path) == ids(whole)


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request):
    return request.param


@pytest.mark.long
def test_the_number_of_processes_changes_nothing(tmp_path, system):
    # What evaluations find on any number of processes is in tests/runs/test_evaluation.py, and each has to compile it.
    changes = ("train.num_steps=20", "train.checkpoint_every=20", "train.eval_every=0")
    for processes in (1, 2, 4):
        assert run(tmp_path / str(processes), *changes, processes=processes, system=system) == [0] * processes
    expected = losses(tmp_path / "1")
    assert sorted(expected) == list(range(1, 21))
    for processes in ("2", "4"):
        found = losses(tmp_path / processes)
        np.testing.assert_allclose([found[step] for step in expected], list(expected.values()), atol=1e-4, rtol=0)
        assert_same_weights(tmp_path / "1", tmp_path / processes, 1e-4)
        assert ids(tmp_path / processes) == ids(tmp_path / "1")


@pytest.mark.long
def test_a_run_that_is_killed_20_times_ends_bit_equal(tmp_path, system):
    changes = ("train.num_steps=30", "train.checkpoint_every=1", "train.eval_every=3")
    # Saving and evaluating do not change what is learned.
    undisturbed = (changes[0], "train.checkpoint_every=30", "train.eval_every=0")
    assert run(tmp_path / "whole", *undisturbed, system=system) == [0]
    rng = random.Random(0)
    workdir, met = tmp_path / "killed", collections.Counter()
    for moment in range(20):
        step = saved_step(workdir) + 1
        phase = "evaluation 1" if moment % 4 == 3 else f"{rng.choice(('data', 'step', 'checkpoint'))} {step}"
        # The delay takes it into the phase, and some of them beyond it; a checkpoint is written during what follows.
        fault = f"kill 0 {phase} {rng.uniform(0, 0.6):.2f}"
        assert run(workdir, *changes, fault=fault, system=system) == [-9]
        met[phase.split()[0]] += 1
    print(f"killed {met.total()} times, in {dict(met)}")
    assert run(workdir, *changes, system=system) == [0]
    assert_same_weights(tmp_path / "whole", workdir)
    expected = ids(tmp_path / "whole")
    assert all(seen == expected[step] for step, seen in ids(workdir).items() if step in expected)
    assert losses(workdir) == losses(tmp_path / "whole")


@pytest.fixture(scope="module")
def whole_detector(tmp_path_factory, system):
    """Return the work directory of a run of a detector that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole_detector")
    assert run(workdir, system=system) == [0]
    return workdir


@pytest.mark.parametrize(
    ("system", "counts"),
    [("embedmask", (1, 2)), *(pytest.param(system, (1, 2, 4), marks=pytest.mark.long) for system in SYSTEMS)],
    indirect=["system"],
)
def test_a_detector_goes_on_with_another_number_of_processes(whole_detector, tmp_path, system, counts):
    for processes, fault in zip(counts, ("kill 0 step 3", "kill 0 data 6", ""), strict=False):
        fault = fault if processes < max(counts) else ""
        # Evaluations change nothing of what is learned.
        codes = run(tmp_path, "train.eval_every=0", processes=processes, fault=fault, system=system)
        assert (codes == [0] * processes) == (fault == ""), codes
    assert_same_weights(whole_detector, tmp_path, 1e-4)
    assert ids(tmp_path) == ids(whole_detector)


@pytest.mark.long
@pytest.mark.parametrize("fault", ["term 0 step 3", "term 0 data 3", "term 0 checkpoint 6", "term 0 evaluation 1"])
def test_a_detector_that_is_asked_to_leave_ends_bit_equal(whole_detector, tmp_path, fault, system):
    assert run(tmp_path, fault=fault, system=system) == [EXIT_INTERRUPTED]
    assert run(tmp_path, system=system) == [0]
    assert_same_weights(whole_detector, tmp_path)
    assert evaluated(tmp_path) == evaluated(whole_detector)
