import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maskx_jax
from maskx_jax.structures import TrainState
from maskx_jax.training.checkpoints import Checkpoints, read_config, write_config
from maskx_jax.training.sharding import make_mesh, replicated, state_shardings
from tests.models.build import tiny_config

CATEGORIES = [{"id": 7, "name": "seven"}, {"id": 11, "name": "eleven"}]
OPTIMIZER = optax.chain(optax.masked(optax.scale(2.0), {"fc": {"kernel": True, "bias": False}}), optax.adam(0.1))


def toy_state(step: int, devices=None) -> TrainState:
    params = {"fc": {"kernel": jnp.arange(6.0).reshape(2, 3) + step, "bias": jnp.full(3, step, jnp.float32)}}
    state = TrainState(
        step=jnp.int32(step),
        params=params,
        frozen={"norm": {"scale": jnp.full(2, 0.5)}},
        opt_state=OPTIMIZER.init(params),
        ema_params=None,
    )
    return jax.device_put(state, replicated(make_mesh(devices or jax.devices()[:1])))


def save(checkpoints: Checkpoints, *steps: int, metrics=None) -> None:
    for step in steps:
        checkpoints.save(toy_state(step), CATEGORIES, metrics)


def test_restored_state_is_the_saved_one(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 3)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(toy_state(0))
    assert checkpoints.categories() == CATEGORIES
    checkpoints.close()
    expected = toy_state(3)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)


def test_state_of_one_device_is_restored_onto_eight(tmp_path):
    checkpoints = Checkpoints(tmp_path)
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
        whole = TrainState(jnp.int32(step), params, {}, OPTIMIZER.init(params), jax.tree.map(jnp.copy, params))
        return jax.device_put(whole, state_shardings(mesh, whole, mode, min_size=16))

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1, saved), CATEGORIES)
    restored = checkpoints.restore(state(0, wanted))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restored, state(1, wanted))
    for kernel in (restored.params["fc"]["kernel"], restored.ema_params["fc"]["kernel"]):
        assert kernel.addressable_shards[0].data.shape == ((3, 2) if wanted == "fsdp" else (3, 16))


def test_the_latest_checkpoints_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, best_metric="segm/B/AP")
    for step, value in ((1, 0.1), (2, 0.9), (3, 0.3), (4, None), (5, 0.2)):
        save(checkpoints, step, metrics={"segm/B/AP": value, "bbox/all/AP": 1.0})
    checkpoints.close()
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 4, 5]


def test_a_best_metric_that_nobody_measures_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, best_metric="segm/B/APP")
    with pytest.raises(ValueError, match=r"'segm/B/APP' is not among the metrics \['segm/B/AP'\]"):
        save(checkpoints, 1, metrics={"segm/B/AP": 0.1})
    checkpoints.close()


def test_a_missing_checkpoint_is_named_with_what_exists(tmp_path):
    checkpoints = Checkpoints(tmp_path)
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
    assert isinstance(read_config(tmp_path).model.rpn.anchor_sizes, tuple)
