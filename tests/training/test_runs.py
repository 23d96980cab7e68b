import contextlib
import subprocess
import sys

import pytest

from maskx_jax.training import runs
from tests.models.build import tiny_config


def test_harmless_changes_pass():
    begun, config = tiny_config(), tiny_config()
    config.train.update(log_every=3, checkpoint_every=7, best_metric="")
    config.data.update(loader="tf_data", num_workers=9, directory="/elsewhere")
    config.evaluation.batch_size = 3
    runs.check_resumable(begun, config)


def test_changes_that_decide_on_the_result_are_named():
    begun, config = tiny_config(), tiny_config()
    config.seed = 5
    config.optimizer.learning_rate = 0.5
    config.model.box_head.hidden = 99
    with pytest.raises(ValueError, match=r"begun with another config") as caught:
        runs.check_resumable(begun, config)
    message = str(caught.value)
    assert "seed: 0 -> 5" in message and "model.box_head.hidden: 256 -> 99" in message
    assert "optimizer.learning_rate: 0.001 -> 0.5" in message and "--change_config" in message


def test_a_run_may_be_made_longer_if_its_learning_rate_does_not_depend_on_its_end():
    begun, config = tiny_config(), tiny_config()
    config.train.num_steps += 1
    with pytest.raises(ValueError, match=r"train\.num_steps: 1000 -> 1001"):
        runs.check_resumable(begun, config)
    begun.optimizer.schedule = config.optimizer.schedule = "step"
    runs.check_resumable(begun, config)


def test_fields_of_another_version_pass():
    begun, config = tiny_config(), tiny_config()
    del begun.optimizer["ema_decay"]
    runs.check_resumable(begun, config)


def test_a_directory_is_locked_until_it_is_closed_and_the_owner_is_named(tmp_path):
    refused = pytest.raises(ValueError, match=rf"another run writes into {tmp_path}: process \d+ of")
    with contextlib.closing(runs.lock(tmp_path)), refused:
        runs.lock(tmp_path)
    runs.lock(tmp_path).close()


def test_the_lock_goes_with_a_process_that_is_killed(tmp_path):
    code = (
        f"import os; from maskx_jax.training import runs; keep = runs.lock({str(tmp_path)!r}); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    runs.lock(tmp_path).close()


def test_a_directory_that_cannot_be_written_to_is_named():
    with pytest.raises(OSError, match=r"cannot write into the work directory /proc/nothing"):
        runs.lock("/proc/nothing")


def test_a_config_is_written_whole_or_not_at_all(tmp_path):
    runs.write_config(tmp_path, tiny_config())
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(FileNotFoundError, match="expected the work directory of a run"):
        runs.read_config(tmp_path / "nothing")
