import contextlib
import json
import struct

import jax.numpy as jnp
import pytest
from etils import epath
from etils.epath import register

from maskx_jax.runs import logs
from maskx_jax.runs.logs import MetricLog, RecentLosses


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


def test_an_object_store_gets_all_lines_now_and_then(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(register._URI_PREFIXES_TO_CLS, "store://", lambda uri: epath.Path(tmp_path / uri[8:]))
    (tmp_path / "bucket/run").mkdir(parents=True)

    def stored():
        return [json.loads(line)["step"] for line in (tmp_path / "bucket/run/metrics.jsonl").read_text().splitlines()]

    with contextlib.closing(MetricLog("store://bucket/run")) as log:
        log.write(1, {"a": 1.0})
        assert stored() == []
        monkeypatch.setattr(logs, "_STORE_EVERY", 0.0)
        log.write(2, {"a": 1.0})
        assert stored() == [1, 2]
        monkeypatch.setattr(logs, "_STORE_EVERY", 30.0)
        log.write(3, {"a": 1.0})
    assert stored() == [1, 2, 3]
    with contextlib.closing(MetricLog("store://bucket/run", start_step=2)) as log:
        assert log.history("a") == {1: 1.0, 2: 1.0}
        log.write(3, {"a": 2.0})
    assert stored() == [1, 2, 3]
    # Nothing lies in a local folder of that name.
    assert [path.name for path in tmp_path.iterdir()] == ["bucket"]


def test_lines_that_are_no_metrics_are_removed_and_counted(tmp_path, caplog):
    lines = ['{"step": 1, "a": 0.5}', "[1]", '{"a": 2}', '{"step": "2"}', '{"step": 2, "a": null}', '{"step": 2, "b"']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    with contextlib.closing(MetricLog(tmp_path, start_step=2, tensorboard=False)) as log:
        assert log.history("a") == {1: 0.5, 2: None} and log.history("c") == {}
    assert "metrics.jsonl: removed 4 of 6 lines that are no metrics" in caplog.text
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "a": 0.5}\n{"step": 2, "a": null}\n'


def test_a_log_that_is_no_text_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"metrics\.jsonl is no text in UTF-8 .*; move it away to go on without it"):
        MetricLog(tmp_path, tensorboard=False)


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").symlink_to(tmp_path / "mine")
    with contextlib.closing(MetricLog(tmp_path / "run", tensorboard=False)) as log:
        log.write(1, {"a": 1.0})
    assert not (tmp_path / "mine").exists()


def test_tensorboard_reads_what_is_written(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    with contextlib.closing(MetricLog(tmp_path)) as log:
        log.write(3, {"train/total": 0.5, "segm/B/AP": None})
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, events = path.read_bytes(), []
    while data:
        # Length, its checksum, the event, its checksum.
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    assert [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value] == [(3, "train/total", 0.5)]


@pytest.mark.parametrize("file", ["metrics", "tensorboard"])
def test_a_full_disk_is_warned_of_once_and_stops_nothing(tmp_path, caplog, file):
    # Writing to it always fails with "no space left on device".
    full = open("/dev/full", "wb" if file == "tensorboard" else "w")  # noqa: SIM115
    with contextlib.closing(MetricLog(tmp_path)) as log:
        if file == "metrics":
            log._lines.close()
            log._lines = full
        else:
            log._events._writer._py_recordio_writer._writer.close()
            log._events._writer._py_recordio_writer._writer = full
        # More than the ten that tensorboardX's own queue holds.
        for step in range(30):
            log.write(step, {"a": 1.0})
    with contextlib.suppress(OSError):
        full.close()
    (warning,) = caplog.messages
    assert warning == "metrics cannot be written, training goes on without: [Errno 28] No space left on device"
    if file == "tensorboard":
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 30


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
