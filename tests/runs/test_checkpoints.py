import errno
import gc
import json
import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import CheckpointManager

import maskx_jax
from maskx_jax.coco.categories import Categories
from maskx_jax.distributed.mesh import make_mesh, replicated, state_shardings
from maskx_jax.runs.checkpoints import Checkpoints, DamagedCheckpointError, check_beginning
from maskx_jax.runs.workdir import read_config, write_config
from maskx_jax.structures import TrainState
from tests.models.build import tiny_config

# Where a reading fails, Orbax leaves coroutines that nobody awaits, and Python says so when it finds them: in whatever
# test is next.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")


@pytest.fixture(scope="module", autouse=True)
def find_all_coroutines():
    yield
    gc.collect()


# Not in the order of their ids.
CATEGORIES = Categories((11, 7), ("eleven", "seven"))
OPTIMIZER = optax.chain(optax.masked(optax.scale(2.0), {"fc": {"kernel": True, "bias": False}}), optax.adam(0.1))


def toy_state(step: int, devices=None) -> TrainState:
    params = {"fc": {"kernel": jnp.arange(6.0).reshape(2, 3) + step, "bias": jnp.full(3, step, jnp.float32)}}
    state = TrainState(
        step=jnp.int32(step),
        trained={"fc": {"kernel": params["fc"]["kernel"]}},
        untrained={"fc": {"bias": params["fc"]["bias"]}},
        frozen={"norm": {"scale": jnp.full(2, 0.5)}},
        opt_state=OPTIMIZER.init(params),
        average=None,
    )
    return jax.device_put(state, replicated(make_mesh(devices or jax.devices()[:1])))


def save(checkpoints: Checkpoints, *steps: int, scores=None) -> None:
    for step in steps:
        checkpoints.save(toy_state(step), CATEGORIES, scores)


def test_restored_state_is_the_saved_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, writes=True)
    save(checkpoints, 3)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, writes=True)
    restored = checkpoints.restore(toy_state(0))
    assert checkpoints.categories() == CATEGORIES
    checkpoints.close()
    expected = toy_state(3)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)


def test_state_of_one_device_is_restored_onto_eight(tmp_path):
    checkpoints = Checkpoints(tmp_path, writes=True)
    save(checkpoints, 1)
    restored = checkpoints.restore(toy_state(0, jax.devices()))
    checkpoints.close()
    assert len(restored.params["fc"]["kernel"].sharding.device_set) == 8
    np.testing.assert_array_equal(restored.params["fc"]["kernel"], toy_state(1).params["fc"]["kernel"])


@pytest.mark.parametrize(("saved", "wanted"), [("fsdp", "replicated"), ("replicated", "fsdp"), ("fsdp", "fsdp")])
def test_a_state_is_restored_split_or_whole_however_it_was_saved(tmp_path, saved, wanted):
    mesh = make_mesh()

    def state(step, mode):
        params = {"fc": {"kernel": jnp.arange(48.0).reshape(3, 16) + step, "bias": jnp.full(3, step, jnp.float32)}}
        whole = TrainState(jnp.int32(step), params, {}, {}, OPTIMIZER.init(params), jax.tree.map(jnp.copy, params))
        return jax.device_put(whole, state_shardings(mesh, whole, mode, min_size=16))

    checkpoints = Checkpoints(tmp_path, writes=True)
    checkpoints.save(state(1, saved), CATEGORIES)
    restored = checkpoints.restore(state(0, wanted))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restored, state(1, wanted))
    for kernel in (restored.params["fc"]["kernel"], restored.average["fc"]["kernel"]):
        assert kernel.addressable_shards[0].data.shape == ((3, 2) if wanted == "fsdp" else (3, 16))


def test_the_latest_checkpoints_and_the_best_are_kept_over_restarts(tmp_path):
    scores = {}
    for step, score in ((1, 0.1), (2, 0.9), (3, 0.3), (4, None), (5, 0.2), (6, 0.9), (7, 0.1), (8, 0.1)):
        with Checkpoints(tmp_path, writes=True, keep=2) as checkpoints:
            save(checkpoints, step, scores=scores)
        if score is not None:
            scores[step] = score
        if step == 5:
            assert steps(tmp_path) == [2, 4, 5]
    # Of equal ones the later.
    assert steps(tmp_path) == [6, 7, 8]


def steps(workdir) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_a_missing_checkpoint_is_named_with_what_exists(tmp_path):
    checkpoints = Checkpoints(tmp_path, writes=True)
    with pytest.raises(FileNotFoundError, match="expected any checkpoint"):
        checkpoints.restore(toy_state(0))
    save(checkpoints, 1)
    with pytest.raises(FileNotFoundError, match=r"step 2 in .*; found steps \[1\]"):
        checkpoints.restore(toy_state(0), step=2)
    checkpoints.close()


def test_loading_what_is_no_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the work directory of a run"):
        maskx_jax.load(tmp_path)


def test_config_survives_the_work_directory(tmp_path):
    config = tiny_config()
    write_config(tmp_path, config)
    assert read_config(tmp_path).to_dict() == json.loads(
        json.dumps(config.to_dict()),
        object_hook=lambda d: {k: tuple(v) if isinstance(v, list) else v for k, v in d.items()},
    )
    assert isinstance(read_config(tmp_path).model.rcnn.rpn.anchor_sizes, tuple)


@pytest.fixture
def saved(tmp_path):
    """Return a work directory with checkpoints of steps 1 and 2."""
    checkpoints = Checkpoints(tmp_path, writes=True)
    save(checkpoints, 1, 2)
    checkpoints.close()
    return tmp_path


def arrays_file(workdir, step: int):
    """Return the file with the model's values: the largest."""
    return max((workdir / f"checkpoints/{step}/model").rglob("d/*"), key=lambda path: path.stat().st_size)


def truncate(workdir) -> None:
    path = arrays_file(workdir, 2)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_one_value(workdir) -> None:
    """Write the checkpoint as Orbax would if memory had failed: only the fingerprint knows."""
    path = workdir / "checkpoints/2/description/metadata"
    text = path.read_text()
    description = json.loads(text)
    name = "model/params/fc/kernel"
    description["arrays"][name]["fingerprint"] ^= 1
    path.write_text(json.dumps(description))


def remove_metadata(workdir) -> None:
    (workdir / "checkpoints/2/model/manifest.ocdbt").unlink()


def change_the_description(workdir) -> None:
    """Lose one array of the description, which still parses."""
    path = workdir / "checkpoints/2/description/metadata"
    description = json.loads(path.read_text())
    del description["arrays"]["model/params/fc/kernel"]
    path.write_text(json.dumps(description))


def fill_the_description_with(content: bytes):
    def damage(workdir) -> None:
        (workdir / "checkpoints/2/description/metadata").write_bytes(content)

    return damage


def remove_description(workdir) -> None:
    shutil.rmtree(workdir / "checkpoints/2/description")


def empty(workdir) -> None:
    shutil.rmtree(workdir / "checkpoints/2")
    (workdir / "checkpoints/2").mkdir()


# Orbax's other reads are still under way when the first one fails, and end on a closed event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "damage",
    [
        *(truncate, change_one_value, remove_metadata, change_the_description, remove_description, empty),
        *map(fill_the_description_with, (b"", b"[]", b"{}", b"\xff")),
    ],
)
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(saved, damage):
    damage(saved)
    said = []
    checkpoints = Checkpoints(saved, writes=True)
    restored = checkpoints.restore_newest(toy_state(0), said.append)
    jax.tree.map(np.testing.assert_array_equal, restored, toy_state(1))
    if said:  # Orbax itself does not see an empty directory as a checkpoint.
        assert "damaged: checkpoint 2 in " in said[0] and "damaged_checkpoints/2" in said[0]
        assert (saved / "damaged_checkpoints/2").is_dir()
    assert said or damage is empty
    # The step can be saved again.
    save(checkpoints, 2)
    checkpoints.close()
    checkpoints = Checkpoints(saved)
    assert int(checkpoints.restore(toy_state(0)).step) == 2
    checkpoints.close()


def test_when_every_checkpoint_is_damaged_the_run_does_not_begin_anew_by_itself(saved):
    for step in (1, 2):
        (saved / f"checkpoints/{step}/model/manifest.ocdbt").unlink()
    check_beginning(saved)
    with Checkpoints(saved, writes=True) as checkpoints, pytest.raises(RuntimeError, match="all checkpoints in"):
        checkpoints.restore_newest(toy_state(0), lambda text: None)
    # Nor does the next start.
    with pytest.raises(RuntimeError, match=r"no checkpoint left.*damaged_checkpoints.* or give --restart"):
        check_beginning(saved)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle", "a.json"),
        ValueError("UNKNOWN: Error reading local file: [OS error 116: ESTALE Stale file handle]"),
        ValueError("RESOURCE_EXHAUSTED: [OS error 24: EMFILE Too many open files]"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes"),
        RuntimeError(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("lasts", [True, False])
def test_a_reading_that_fails_for_the_moment_puts_nothing_aside(saved, monkeypatch, error, lasts):
    with Checkpoints(saved, writes=True) as checkpoints:
        whole, calls = checkpoints._manager.restore, []

        def restore(*arguments, **options):
            calls.append(arguments)
            if lasts or len(calls) == 1:
                raise error
            return whole(*arguments, **options)

        monkeypatch.setattr(checkpoints._manager, "restore", restore)
        with pytest.raises(OSError, match=r"checkpoint 2 in .* could not be read: \w+.*Nothing was changed"):
            checkpoints.restore_newest(toy_state(0), pytest.fail)
    assert steps(saved) == [1, 2] and not (saved / "damaged_checkpoints").exists()


def test_damage_that_the_second_reading_does_not_see_is_none(saved, monkeypatch):
    with Checkpoints(saved, writes=True) as checkpoints:
        whole, calls = checkpoints._verify, []

        def verify(*arguments):
            calls.append(arguments)
            if len(calls) == 1:
                raise DamagedCheckpointError("one bit in memory")
            whole(*arguments)

        monkeypatch.setattr(checkpoints, "_verify", verify)
        assert int(checkpoints.restore_newest(toy_state(0), pytest.fail).step) == 2


def test_a_checkpoint_that_vanished_is_not_put_aside(saved):
    with Checkpoints(saved, writes=True) as checkpoints:
        shutil.rmtree(saved / "checkpoints")
        with pytest.raises(OSError, match=r"checkpoint 2 in .* could not be read"):
            checkpoints.restore_newest(toy_state(0), pytest.fail)


def test_what_a_killed_run_left_half_written_is_removed(saved):
    leftovers = [saved / "checkpoints" / f"{step}.orbax-checkpoint-tmp-{step}" for step in range(3, 103)]
    for leftover in leftovers:
        leftover.mkdir()
        (leftover / "part").write_text("half")
    notes = saved / "checkpoints/notes"
    notes.mkdir()
    file = saved / "checkpoints/77"
    file.write_text("no folder: nobody's checkpoint")
    with Checkpoints(saved, writes=True) as checkpoints:
        # At once: a thread may outlive a failing run, whose folder somebody then removes.
        assert not [leftover for leftover in leftovers if leftover.exists()]
        assert int(checkpoints.restore_newest(toy_state(0), print).step) == 2
    assert notes.exists() and file.exists()


def test_what_has_its_last_name_and_is_not_marked_as_whole_is_removed(saved, monkeypatch):
    # As on object stores, where Orbax marks a finished checkpoint in place of renaming it.
    monkeypatch.setattr(CheckpointManager, "all_steps", lambda manager: [1])
    Checkpoints(saved, writes=True).close()
    assert [path.name for path in (saved / "checkpoints").iterdir()] == ["1"]


def test_a_checkpoint_of_another_model_is_refused_with_the_difference(saved):
    other = toy_state(0)
    other.trained["fc"]["kernel"] = jnp.zeros((2, 4))
    other.trained["fc"]["extra"] = jnp.zeros(1)
    checkpoints = Checkpoints(saved, writes=True)
    with pytest.raises(ValueError, match=r"another model, number of classes or optimizer") as caught:
        checkpoints.restore_newest(other, print)
    checkpoints.close()
    assert "model/params/fc/extra: only in the run" in str(caught.value)
    assert "kernel: (2, 3) float32 in the checkpoint, (2, 4) float32 in the run" in str(caught.value)
    # It is not damaged: it stays where it is.
    assert (saved / "checkpoints/2").exists()


def test_a_full_disk_is_told_with_the_last_good_checkpoint(saved):
    checkpoints = Checkpoints(saved, writes=True)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # No file may grow beyond some bytes: writing fails as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, limit[1]))
        with pytest.raises(OSError, match=r"could not be written to .*; the last good one is of step 2\. Start"):
            save(checkpoints, 3)
            checkpoints.wait()
        # Nor does leaving hide the error that led to it.
        with pytest.raises(KeyError, match="the cause"), checkpoints:
            raise KeyError("the cause")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    checkpoints = Checkpoints(saved, writes=True)
    assert int(checkpoints.restore_newest(toy_state(0), print).step) == 2
    checkpoints.close()
