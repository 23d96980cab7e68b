import contextlib
import json

import jax.numpy as jnp
import pytest

from maskx_jax.training.logging import MetricLog, RecentLosses


def test_lines_after_the_step_that_a_run_goes_on_from_are_removed(tmp_path):
    with contextlib.closing(MetricLog(tmp_path, tensorboard=False)) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": step / 2})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')  # Killed while it was written.
    with contextlib.closing(MetricLog(tmp_path, start_step=2, tensorboard=False)) as log:
        log.write(3, {"loss": None})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": None}]


def test_losses_are_averaged_over_the_steps_since_the_last_report():
    recent = RecentLosses()
    for step, value in enumerate((1.0, 2.0, 6.0), 1):
        recent.add(step, {"total": jnp.float32(value)})
    assert len(recent) == 2  # The last one is still on its way.
    recent.read()
    assert recent.averages() == {"total": 3.0}
    assert len(recent) == 0


def test_a_loss_that_is_not_finite_is_named_with_its_step():
    recent = RecentLosses()
    recent.add(4, {"mask": jnp.float32("nan"), "box": jnp.float32(1)})
    with pytest.raises(FloatingPointError, match=r"step 4: not finite: \{'mask': nan\}; all: .*'box': 1.0"):
        recent.add(5, {})
