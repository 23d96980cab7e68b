"""train.py around a model that computes nothing: what a run writes, resumes from and refuses, without a compilation."""

import dataclasses
import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from configs import demo, mask_rcnn, maskx_rcnn, paper
from maskx_jax.coco.categories import Categories
from maskx_jax.data.records import identity_of
from maskx_jax.data.shapes.source import ShapesSource
from maskx_jax.distributed.mesh import split_batch
from maskx_jax.runs import checkpoints as checkpointing
from maskx_jax.runs import workdir as runs
from maskx_jax.runs.checkpoints import Checkpoints
from maskx_jax.structures import Detections
from maskx_jax.training import loop
from tests.models.build import tiny_config
from tests.processes import ENVIRONMENT, ROOT

NAMES = ("person", "car", "cat", "zebra", "pizza", "kite")
NUM_WITHOUT_MASKS = 2
PARAMETERS = ("backbone/stem", "backbone/res2_block0/conv1", "fpn/p2", "rpn/conv", "box_head/fc1", "mask_head/conv1")


class Source(ShapesSource):
    """Synthetic images of classes that VOC has and has not; the last two of six are annotated without masks."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **(options | {"num_hues": 3, "num_textures": 2}))
        self.categories = Categories(tuple(range(1, 7)), NAMES)

    @property
    def image_has_mask(self):
        return [labels <= len(NAMES) - NUM_WITHOUT_MASKS for labels in self.image_labels]

    def coco_ground_truth(self):
        ground_truth = super().coco_ground_truth()
        for annotation in ground_truth["annotations"]:
            if annotation["category_id"] > len(NAMES) - NUM_WITHOUT_MASKS:
                del annotation["segmentation"]
        return ground_truth


@pytest.fixture(autouse=True)
def light(monkeypatch):
    replace_what_compiles(monkeypatch)


def replace_what_compiles(monkeypatch) -> None:
    """Let a step count, and a detector find one box in each image."""

    def initialize(model, key):
        return {"params": traverse_util.unflatten_dict({f"{path}/kernel": jnp.ones(3) for path in PARAMETERS}, sep="/")}

    @jax.jit
    def step(state):
        return dataclasses.replace(state, step=state.step + 1), {"total": jnp.float32(1)}

    def detect(variables, images, image_sizes):
        shape = (len(images), 1)
        masks = np.ones((*shape, 28, 28), np.float32)
        found = Detections(
            boxes=np.tile(np.float32([8, 8, 40, 40]), (*shape, 1)),
            scores=np.full(shape, 0.5, np.float32),
            labels=np.ones(shape, np.int32),
            masks=masks,
            keypoints=None,
            valid=np.ones(shape, bool),
        )
        return jax.device_put(found, split_batch(images.sharding.mesh))

    def open_source(data, *, training, seed=0):
        return Source(8, seed=int(training), image_size=64)

    monkeypatch.setattr(loop, "initialize", initialize)
    monkeypatch.setattr(loop, "make_train_step", lambda *arguments, **options: lambda state, batch: step(state))
    monkeypatch.setattr(loop, "make_detect_step", lambda *arguments: detect)
    monkeypatch.setattr(loop, "open_source", open_source)


def shortened(config, num_steps=2):
    """Return a config with a tiny canvas and few steps, and all else as it is."""
    config.data.transform.update(canvas=(64, 64), short_sides=(64,), max_long_side=64)
    config.data.update(loader="threads", num_workers=1)
    config.train.update(batch_size=8, num_steps=num_steps, log_every=1, checkpoint_every=1, eval_every=num_steps)
    config.evaluation.batch_size = 8
    return config


def small(**fields):
    config = shortened(tiny_config())
    config.optimizer.schedule = "step"
    config.train.update(eval_every=1, **fields)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        replace_what_compiles(patch)
        loop.train(small(), str(workdir))
    return workdir


@pytest.fixture
def run(trained, tmp_path):
    """Return the work directory of a run of two steps, each of them evaluated."""
    return pathlib.Path(shutil.copytree(trained, tmp_path / "run"))


def evaluations(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if "bbox/all/AP" in line]


def steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


SHIPPED = {
    "demo": lambda: demo.get_config(),
    **{
        f"mask_rcnn:{text}": lambda text=text: mask_rcnn.get_config(text)
        for text in (
            *("predictor=class_specific", "predictor=class_agnostic", "predictor=none"),
            *("masks=voc", "masks=nonvoc", "masks=annotated"),
        )
    },
    **{
        f"maskx_rcnn:{text}": lambda text=text: maskx_rcnn.get_config(text)
        for text in (
            "masks=voc",
            "masks=nonvoc",
            "masks=all",
            "masks=annotated,mlp=light,start=scratch",
            "training=stage_wise",
        )
    },
    **{
        f"paper:{text}": lambda text=text: paper.get_config(text)
        for text in ("row=2/r50_maskx", "row=1a/oracle,masks=nonvoc", "row=detector", "row=fig3/transfer")
    },
}
BEST = {
    "demo": "segm/B/AP",
    "mask_rcnn:predictor=none": "bbox/all/AP",
    "maskx_rcnn:masks=all": "segm/all/AP",
    "paper:row=detector": "bbox/all/AP",
}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_variant_passes_its_first_evaluation_a_save_and_a_restart(name, tmp_path, monkeypatch):
    config = shortened(SHIPPED[name]())
    if name == "demo":
        config.data.mask_classes = "random(1,4)"
    chosen = []
    choose = loop.choose_best_metric
    monkeypatch.setattr(loop, "choose_best_metric", lambda *names: chosen.append(choose(*names)) or chosen[-1])
    metrics = loop.train(config, str(tmp_path))
    assert metrics["bbox"]["all"]["AP"] is not None
    assert loop.train(config, str(tmp_path)) == {}
    assert evaluations(tmp_path) == [2] and steps(tmp_path) == [1, 2]
    # The last two classes have no masks to measure B's AP on, where the annotations say what B is.
    measures_b = not name.startswith("mask_rcnn") and "annotated" not in name
    default = "segm/B/AP" if measures_b else "segm/all/AP"
    assert set(chosen) == {BEST.get(name, default)}


def test_annotated_classes_are_scored_by_what_their_annotations_have(tmp_path):
    config = small(num_steps=1)
    config.data.mask_classes = "annotated"
    metrics = loop.train(config, str(tmp_path))
    assert set(metrics["bbox"]) == {"all", "A", "B"}
    # Nothing of B has a mask to score against.
    assert metrics["segm"]["B"]["AP"] is None and metrics["segm"]["A"]["AP"] is not None
    groups = runs.read_groups(tmp_path, Categories(tuple(range(1, 7)), NAMES))
    assert groups == {"A": [1, 2, 3, 4], "B": [5, 6]}


def test_a_class_with_some_masks_is_scored_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(
        Source,
        "image_has_mask",
        property(lambda s: [(labels < 3) | (labels > 5) & (i % 2 > 0) for i, labels in enumerate(s.image_labels)]),
    )
    config = small(num_steps=1)
    config.data.mask_classes = "annotated"
    assert set(loop.train(config, str(tmp_path))["bbox"]) == {"all", "A", "B", "mixed"}


def test_a_best_metric_without_a_value_prevents_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(
        loop.evaluation,
        "score",
        lambda *arguments, **options: {kind: {"all": {"AP": None}} for kind in ("bbox", "segm")},
    )
    monkeypatch.setattr(loop, "format_table", lambda metrics: "")
    loop.train(small(), str(tmp_path))
    assert steps(tmp_path) == [1, 2]


def test_a_best_metric_that_the_data_does_not_measure_is_refused_before_anything_is_written(tmp_path):
    config = small(best_metric=("segm/B/AP",))
    with pytest.raises(
        ValueError, match=r"config\.train\.best_metric is \('segm/B/AP',\); expected one that this data"
    ):
        loop.train(config, str(tmp_path))
    assert not (tmp_path / "config.json").exists()


def test_the_best_checkpoint_outlives_restarts(tmp_path, monkeypatch):
    values = iter((0.1, 0.9, None, 0.3))

    def score(*arguments):
        value = next(values)
        return {kind: {"all": {"AP": value}} for kind in ("bbox", "segm")}

    monkeypatch.setattr(loop.evaluation, "score", score)
    monkeypatch.setattr(loop, "format_table", lambda metrics: "")
    # A run that is killed after each step and started again.
    for num_steps in range(1, 5):
        loop.train(small(num_steps=num_steps), str(tmp_path))
    assert steps(tmp_path) == [2, 3, 4]


KILLED = """
import os, signal, sys
import jax, pytest
from maskx_jax.training import loop
from tests import test_train_loop

jax.config.update("jax_num_cpu_devices", 8)
patch = pytest.MonkeyPatch()
test_train_loop.replace_what_compiles(patch)
scores, kills = iter(map(float, sys.argv[2].split(","))), sys.argv[3].split(",")
patch.setattr(loop.evaluation, "score", lambda *_: {"bbox": {"all": {"AP": next(scores)}}})
patch.setattr(loop, "format_table", str)

class Killing(loop.MetricLog):
    def write(self, step, metrics):
        super().write(step, metrics)
        if "bbox/all/AP" in metrics and str(step) in kills:
            os.kill(os.getpid(), signal.SIGKILL)

patch.setattr(loop, "MetricLog", Killing)
loop.train(test_train_loop.small(num_steps=8, best_metric=("bbox/all/AP",)), sys.argv[1])
"""


@pytest.mark.slow
def test_the_best_checkpoint_outlives_kills(tmp_path):
    scores = [0.1, 0.9, 0.2, 0.3, 0.2, 0.3, 0.1, 0.1]
    for killed_at, begun_at in ((2, 0), (5, 2), (None, 5)):
        left = ",".join(map(str, scores[begun_at:]))
        command = [sys.executable, "-c", KILLED, str(tmp_path), left, str(killed_at)]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == (0 if killed_at is None else -9), done.stderr
    assert steps(tmp_path) == [2, 7, 8] and evaluations(tmp_path) == list(range(1, 9))


def test_a_step_is_saved_before_it_is_scored_and_scored_once(tmp_path, monkeypatch):
    def score(*arguments, **options):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(loop.evaluation, "score", score)
        with pytest.raises(MemoryError):
            loop.train(small(), str(tmp_path))
    assert steps(tmp_path) == [1] and evaluations(tmp_path) == []
    loop.train(small(), str(tmp_path))
    assert steps(tmp_path) == [1, 2] and evaluations(tmp_path) == [1, 2]
    # Killed between the line of the last evaluation and what would have come after it.
    loop.train(small(num_steps=3), str(tmp_path))
    assert evaluations(tmp_path) == [1, 2, 3]


def test_other_training_data_under_the_same_path_are_refused(run, monkeypatch):
    before = (run / "data.json").read_text()
    monkeypatch.setattr(Source, "identity", property(lambda source: identity_of(source.categories, 9)))
    with pytest.raises(ValueError, match=r"begun with other training data:\n  num_images: 8 -> 9"):
        loop.train(small(num_steps=3), str(run))
    assert (run / "data.json").read_text() == before
    loop.train(small(num_steps=3), str(run), change_config=True)
    assert json.loads((run / "data.json").read_text())["train"]["num_images"] == 9


def test_a_restart_that_is_refused_changes_nothing(run, monkeypatch):
    before = {path.name: path.read_bytes() for path in run.glob("*.json*")}
    config = small(num_steps=3)
    config.optimizer.ema_decay = 0.5
    with pytest.raises(ValueError, match="another model, number of classes or optimizer"):
        loop.train(config, str(run), change_config=True)
    assert {path.name: path.read_bytes() for path in run.glob("*.json*")} == before
    loop.train(small(num_steps=3), str(run))
    assert steps(run) == [2, 3]


def test_what_stays_at_its_initial_values_for_good_is_warned_of(tmp_path, capsys):
    config = small()
    config.optimizer.untrained = ("backbone/stem/.*", "backbone/res2_.*")
    for warned in (True, False):
        loop.train(config, str(tmp_path))
        said = "warning: untrained parameters that no weights were loaded for: backbone/res2_block0, backbone/stem (2 "
        assert (said in capsys.readouterr().out) == warned
        # A run that goes on has weights of its own.
        config.train.num_steps += 1


def test_a_run_without_a_whole_checkpoint_begins_anew_only_if_it_is_told_to(run):
    for step in steps(run):
        shutil.rmtree(run / f"checkpoints/{step}/description")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="--restart to begin at step 0"):
            loop.train(small(), str(run))
    loop.train(small(), str(run), restart=True)
    assert steps(run) == [1, 2]


@pytest.mark.parametrize("content", [b"", b'{"seed": 0,', b"[]", b"\xff"])
def test_a_damaged_config_is_named(run, content):
    (run / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{run}/config\.json "):
        loop.train(small(num_steps=3), str(run))


def test_a_bad_config_leaves_no_trace(tmp_path):
    with pytest.raises(ValueError, match=r"config\.train\.log_every is 0; expected 1 or more"):
        loop.train(small(log_every=0), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_write_that_fails_is_told_with_the_step_that_is_safe(tmp_path, monkeypatch):
    save = Checkpoints.save

    def failing(checkpoints, state, *arguments):
        if int(state.step) == 2:
            monkeypatch.setattr(checkpoints._manager, "save", fail)
        save(checkpoints, state, *arguments)

    def fail(*arguments, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Checkpoints, "save", failing)
    with pytest.raises(
        OSError, match=r"step 2 could not be written to .*Too many open files; .* of step 1\. Start the"
    ):
        loop.train(small(), str(tmp_path))


def test_a_work_directory_that_is_deleted_is_told(tmp_path, monkeypatch):
    score = loop.evaluation.score

    def delete(*arguments, **options):
        shutil.rmtree(tmp_path / "run")
        return score(*arguments, **options)

    monkeypatch.setattr(loop.evaluation, "score", delete)
    with pytest.raises(
        OSError, match=r"step 2 could not be written to .*run/checkpoints: .* was deleted; .* may be lost"
    ):
        loop.train(small(), str(tmp_path / "run"))
    assert not checkpointing.has_checkpoint(tmp_path / "run")
