import contextlib
import errno
import json
import os
import subprocess
import sys
import types

import pytest
from ml_collections import ConfigDict

from configs import base
from configs.families import rcnn
from maskx_jax.coco.categories import Categories
from maskx_jax.runs import workdir as runs
from tests.models.build import tiny_config

CATEGORIES = Categories((3, 5, 9), ("a", "b", "c"))


def test_what_may_change_is_marked_in_the_config():
    assert sorted(base.get_config().may_change) == sorted(
        (
            *("distributed", "evaluation", "initialize", "watchdog", "model.backbone.remat", "data.shapes.num_eval"),
            *(
                f"data.{name}"
                for name in ("directory", "eval_split", "loader", "num_workers", "prefetch", "read_ahead")
            ),
            *("data.max_broken_records", "data.cache_features", "data.cache_gigabytes"),
            *(f"train.{name}" for name in ("log_every", "checkpoint_every", "eval_every", "keep_checkpoints")),
            *("train.best_metric", "train.state_sharding"),
        )
    )


def test_a_family_marks_what_may_change_in_its_own_section():
    marks = {*rcnn.get_config().may_change} - {*base.get_config().may_change}
    assert marks == {"model.rcnn.mask_head.remat"}
    assert rcnn.get_config().model.rcnn.mask_head.remat is False


def test_a_config_of_somebody_else_may_change_nothing_unless_it_says_so():
    begun = ConfigDict({"optimizer": {"schedule": "cosine"}, "own": {"a": 1, "ab": 2}})
    config = begun.copy_and_resolve_references()
    config.own.a = 3
    with pytest.raises(ValueError, match=r"own\.a: 1 -> 3"):
        runs.check_resumable(begun, config)
    config.may_change = ("own.a",)
    runs.check_resumable(begun, config)
    # The name of a field that begins alike is another one.
    config.own.ab = 4
    with pytest.raises(ValueError, match=r"own\.ab: 2 -> 4"):
        runs.check_resumable(begun, config)


def test_harmless_changes_pass():
    begun, config = tiny_config(), tiny_config()
    config.train.update(log_every=3, checkpoint_every=7, best_metric=())
    config.data.update(loader="tf_data", num_workers=9, directory="/elsewhere")
    config.evaluation.batch_size = 3
    runs.check_resumable(begun, config)


def test_changes_that_decide_on_the_result_are_named():
    begun, config = tiny_config(), tiny_config()
    config.seed = 5
    config.optimizer.learning_rate = 0.5
    config.model.rcnn.box_head.hidden = 99
    with pytest.raises(ValueError, match=r"begun with another config") as caught:
        runs.check_resumable(begun, config)
    message = str(caught.value)
    assert "seed: 0 -> 5" in message and "model.rcnn.box_head.hidden: 256 -> 99" in message
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
        "import os; from maskx_jax.runs import workdir; "
        f"keep = workdir.lock({str(tmp_path)!r}); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    runs.lock(tmp_path).close()


def test_a_directory_that_cannot_be_written_to_is_named():
    with pytest.raises(OSError, match=r"cannot write into the work directory /proc/nothing"):
        runs.lock("/proc/nothing")


def test_a_lock_is_not_taken_through_a_link(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="cannot write into the work directory"):
        runs.lock(tmp_path / "run")
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(runs.fcntl, "flock", flock)
    runs.lock(tmp_path).close()
    assert f"lock: no lock ([Errno {number}]" in caplog.text


def without(*names):
    config = tiny_config().to_dict()
    for name in names:
        *sections, field = name.split(".")
        section = config
        for key in sections:
            section = section[key]
        del section[field]
    return json.dumps(config).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no JSON"),
        (b'{"seed": 0, "mod', "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[1]", "holds a list; expected the config of a run"),
        (b"3", "holds a int; expected"),
        (b"{}", "found no seed; expected the config of a run"),
        (without("model"), r"found no model\.family"),
        (without("model.backbone"), r"found no model\.backbone"),
        (without("evaluation.backend"), r"found no evaluation\.backend"),
        (b'{"seed": "x"}', r"seed is 'x'; expected int"),
        (b'{"seed": 0, "model": []}', r"found no model\.family"),
    ],
)
def test_what_is_no_config_is_named(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}/config\.json:? {message}") as caught:
        runs.read_config(tmp_path)
    assert "\n" not in str(caught.value)


def write_description(workdir, identity, **groups):
    source = types.SimpleNamespace(categories=CATEGORIES, identity=identity)
    runs.write_description(workdir, tiny_config(), source, groups, {"python": "3"})


def test_the_groups_of_a_run_are_read_by_the_names_of_their_classes(tmp_path):
    assert runs.read_groups(tmp_path, CATEGORIES) is None
    write_description(tmp_path, {}, A=[5], B=[3, 9])
    assert runs.read_groups(tmp_path, CATEGORIES) == {"A": [5], "B": [3, 9]}
    # The same classes under other ids.
    assert runs.read_groups(tmp_path, Categories((1, 2, 3), CATEGORIES.names)) == {"A": [2], "B": [1, 3]}
    with pytest.raises(ValueError, match="unknown category name 'a'"):
        runs.read_groups(tmp_path, Categories((1,), ("b",)))


def test_other_training_data_are_named(tmp_path):
    identity = {"categories": ["a", "b"], "num_images": 4, "index_sha256": "12"}
    runs.check_data_identity(tmp_path, identity)  # Runs of earlier versions do not say.
    write_description(tmp_path, identity)
    runs.check_data_identity(tmp_path, identity)
    with pytest.raises(ValueError, match="begun with other training data") as caught:
        runs.check_data_identity(tmp_path, identity | {"num_images": 5, "categories": ["a"]})
    assert "num_images: 4 -> 5" in str(caught.value) and "--change_config" in str(caught.value)
    assert "categories: 2 of them, a, b -> 1 of them, a" in str(caught.value)
    for content, message in (("[]", "holds a list"), ("{", "is no JSON"), ('{"train": 3}', "its sections")):
        (tmp_path / "data.json").write_text(content)
        with pytest.raises(ValueError, match=rf"data\.json.*{message}"):
            runs.check_data_identity(tmp_path, identity)


def test_a_description_is_not_written_through_links(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "run").mkdir()
    names = ("config.json", "data.json", "environment.json")
    for name in names:
        (tmp_path / "run" / name).symlink_to(tmp_path / "mine")
    write_description(tmp_path / "run", {})
    assert (tmp_path / "mine").read_text() == "precious"
    assert all(json.loads((tmp_path / "run" / name).read_text()) is not None for name in names)


def test_a_config_is_written_whole_or_not_at_all(tmp_path):
    runs.write_config(tmp_path, tiny_config())
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(FileNotFoundError, match="expected the work directory of a run"):
        runs.read_config(tmp_path / "nothing")
