"""The training loop around a model that computes nothing: what a run writes, resumes from and refuses."""

import dataclasses
import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
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
from maskx_jax.training.examples import open_examples
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


class Still(nn.Module):
    """A model that has parameters and is never applied."""

    multiple: int = 32

    def init(self, key, *arguments, method):
        return {"params": traverse_util.unflatten_dict({f"{path}/kernel": jnp.ones(3) for path in PARAMETERS}, sep="/")}


@jax.jit
def count(state):
    return dataclasses.replace(state, step=state.step + 1), {"total": jnp.float32(1)}


def find_one_box(variables, images, image_sizes):
    shape = (len(images), 1)
    found = Detections(
        boxes=np.tile(np.float32([8, 8, 40, 40]), (*shape, 1)),
        scores=np.full(shape, 0.5, np.float32),
        labels=np.ones(shape, np.int32),
        masks=np.ones((*shape, 28, 28), np.float32),
        valid=np.ones(shape, bool),
    )
    return jax.device_put(found, split_batch(images.sharding.mesh))


def opens(kind):
    def open_source(data, *, training, seed):
        return kind(8, seed=int(training), image_size=64)

    return open_source


# A step counts, and a detector finds one box in each image: nothing is compiled.
PARTS = loop.Parts(
    open_source=opens(Source),
    build=lambda fields, num_classes: Still(),
    make_train_step=lambda *arguments, **options: lambda state, batch: count(state),
    make_detect_step=lambda *arguments: find_one_box,
)


def train(config, workdir, parts=PARTS, **options):
    return loop.train(config, str(workdir), parts=parts, **options)


def scores(*values):
    """Return the parts of a run whose evaluations give these values, one after the other."""
    left = iter(values)
    fixed = {"federated": False, "max_detections": 100, "num_areas_replaced": 0}

    def score(*arguments):
        value = next(left)
        return {kind: {"all": {"AP": value}} for kind in ("bbox", "segm")} | fixed

    return dataclasses.replace(PARTS, score=score)


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
    train(small(), workdir)
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
def test_every_shipped_variant_passes_its_first_evaluation_a_save_and_a_restart(name, tmp_path):
    config = shortened(SHIPPED[name]())
    if name == "demo":
        config.data.mask_classes = "random(1,4)"
    metrics = train(config, tmp_path)
    assert metrics["bbox"]["all"]["AP"] is not None
    assert train(config, tmp_path) == {}
    assert evaluations(tmp_path) == [2] and steps(tmp_path) == [1, 2]
    # The last two classes have no masks to measure B's AP on, where the annotations say what B is.
    measures_b = not name.startswith("mask_rcnn") and "annotated" not in name
    default = "segm/B/AP" if measures_b else "segm/all/AP"
    assert open_examples(config, tmp_path, PARTS.open_source).best_metric == BEST.get(name, default)


def test_annotated_classes_are_scored_by_what_their_annotations_have(tmp_path):
    config = small(num_steps=1)
    config.data.mask_classes = "annotated"
    metrics = train(config, tmp_path)
    assert set(metrics["bbox"]) == {"all", "A", "B"}
    # Nothing of B has a mask to score against.
    assert metrics["segm"]["B"]["AP"] is None and metrics["segm"]["A"]["AP"] is not None
    groups = runs.read_groups(tmp_path, Categories(tuple(range(1, 7)), NAMES))
    assert groups == {"A": [1, 2, 3, 4], "B": [5, 6]}


class MixedSource(Source):
    @property
    def image_has_mask(self):
        return [(labels < 3) | (labels > 5) & (i % 2 > 0) for i, labels in enumerate(self.image_labels)]


def test_a_class_with_some_masks_is_scored_by_itself(tmp_path):
    config = small(num_steps=1)
    config.data.mask_classes = "annotated"
    parts = dataclasses.replace(PARTS, open_source=opens(MixedSource))
    assert set(train(config, tmp_path, parts)["bbox"]) == {"all", "A", "B", "mixed"}


def test_a_best_metric_without_a_value_prevents_no_checkpoint(tmp_path):
    train(small(), tmp_path, scores(None, None))
    assert steps(tmp_path) == [1, 2]


def test_a_best_metric_that_the_data_does_not_measure_is_refused_before_anything_is_written(tmp_path):
    config = small(best_metric=("segm/B/AP",))
    with pytest.raises(
        ValueError, match=r"config\.train\.best_metric is \('segm/B/AP',\); expected one that this data"
    ):
        train(config, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_the_best_checkpoint_outlives_restarts(tmp_path):
    # A run that is killed after each step and started again.
    for num_steps, value in enumerate((0.1, 0.9, None, 0.3), 1):
        train(small(num_steps=num_steps), tmp_path, scores(value))
    assert steps(tmp_path) == [2, 3, 4]


KILLED = """
import dataclasses, os, signal, sys
import jax
from tests import test_train_loop

jax.config.update("jax_num_cpu_devices", 8)

def on_phase(phase, step):
    # The evaluation of the step before is written.
    if phase == "data" and str(step - 1) == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

parts = dataclasses.replace(test_train_loop.scores(*map(float, sys.argv[2].split(","))), on_phase=on_phase)
test_train_loop.train(test_train_loop.small(num_steps=8, best_metric=("bbox/all/AP",)), sys.argv[1], parts)
"""


@pytest.mark.slow
def test_the_best_checkpoint_outlives_kills(tmp_path):
    values = [0.1, 0.9, 0.2, 0.3, 0.2, 0.3, 0.1, 0.1]
    for killed_at, begun_at in ((2, 0), (5, 2), (None, 5)):
        left = ",".join(map(str, values[begun_at:]))
        command = [sys.executable, "-c", KILLED, str(tmp_path), left, str(killed_at)]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == (0 if killed_at is None else -9), done.stderr
    assert steps(tmp_path) == [2, 7, 8] and evaluations(tmp_path) == list(range(1, 9))


def test_a_step_is_saved_before_it_is_scored_and_scored_once(tmp_path):
    def score(*arguments):
        raise MemoryError

    with pytest.raises(MemoryError):
        train(small(), tmp_path, dataclasses.replace(PARTS, score=score))
    assert steps(tmp_path) == [1] and evaluations(tmp_path) == []
    train(small(), tmp_path)
    assert steps(tmp_path) == [1, 2] and evaluations(tmp_path) == [1, 2]
    # Killed between the line of the last evaluation and what would have come after it.
    train(small(num_steps=3), tmp_path)
    assert evaluations(tmp_path) == [1, 2, 3]


class OtherSource(Source):
    @property
    def identity(self):
        return identity_of(self.categories, 9)


def test_other_training_data_under_the_same_path_are_refused(run):
    before = (run / "data.json").read_text()
    other = dataclasses.replace(PARTS, open_source=opens(OtherSource))
    with pytest.raises(ValueError, match=r"begun with other training data:\n  num_images: 8 -> 9"):
        train(small(num_steps=3), run, other)
    assert (run / "data.json").read_text() == before
    train(small(num_steps=3), run, other, change_config=True)
    assert json.loads((run / "data.json").read_text())["train"]["num_images"] == 9


def test_a_restart_that_is_refused_changes_nothing(run):
    before = {path.name: path.read_bytes() for path in run.glob("*.json*")}
    config = small(num_steps=3)
    config.optimizer.ema_decay = 0.5
    with pytest.raises(ValueError, match="another model, number of classes or optimizer"):
        train(config, run, change_config=True)
    assert {path.name: path.read_bytes() for path in run.glob("*.json*")} == before
    train(small(num_steps=3), run)
    assert steps(run) == [2, 3]


def test_what_stays_at_its_initial_values_for_good_is_warned_of(tmp_path, capsys):
    config = small()
    config.optimizer.untrained = ("backbone/stem/.*", "backbone/res2_.*")
    for warned in (True, False):
        train(config, tmp_path)
        said = "warning: untrained parameters that no weights were loaded for: backbone/res2_block0, backbone/stem (2 "
        assert (said in capsys.readouterr().out) == warned
        # A run that goes on has weights of its own.
        config.train.num_steps += 1


def test_a_run_without_a_whole_checkpoint_begins_anew_only_if_asked_to(run):
    for step in steps(run):
        shutil.rmtree(run / f"checkpoints/{step}/description")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="--restart to begin at step 0"):
            train(small(), run)
    train(small(), run, restart=True)
    assert steps(run) == [1, 2]


@pytest.mark.parametrize("content", [b"", b'{"seed": 0,', b"[]", b"\xff"])
def test_a_damaged_config_is_named(run, content):
    (run / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{run}/config\.json "):
        train(small(num_steps=3), run)


def test_a_run_goes_on_with_the_conventions_of_its_weights_unless_told_to_keep_others(tmp_path):
    config = shortened(mask_rcnn.get_config())
    config.evaluation.paste_grid = "integer"
    train(config, tmp_path)
    for keep, expected in (((), "integer"), (("evaluation.paste_grid",), "continuous")):
        config = shortened(mask_rcnn.get_config(), num_steps=2)
        config.initialize.keep = keep
        assert config.evaluation.paste_grid == "continuous"
        train(config, tmp_path)
        assert runs.read_config(tmp_path).evaluation.paste_grid == expected


def test_a_loss_that_never_gets_its_weight_is_warned_of(tmp_path, capsys):
    class Warmed(Still):
        warmups = types.MappingProxyType({"mask_pairwise": 10_000, "mask_background": 2})

    parts = dataclasses.replace(PARTS, build=lambda fields, num_classes: Warmed())
    train(shortened(mask_rcnn.get_config()), tmp_path, parts)
    warnings = [line for line in capsys.readouterr().out.splitlines() if "weight of the loss" in line]
    assert warnings == ["warning: the weight of the loss mask_pairwise rises over 10,000 steps, of 2"]


def test_a_run_that_is_asked_to_leave_says_so_only_once_it_is_saved(tmp_path, monkeypatch):
    config = shortened(mask_rcnn.get_config(), num_steps=3)
    # Before the second step.
    answers = iter([False, True] * 2)
    monkeypatch.setattr(loop.Interruption, "poll", lambda self: next(answers))
    with monkeypatch.context() as full:

        def wait(self):
            raise OSError("a checkpoint cannot be written: no space left")

        full.setattr(Checkpoints, "wait", wait)
        with pytest.raises(OSError, match="no space left"):
            train(config, tmp_path / "full")
    with pytest.raises(loop.InterruptedRun, match="after step 1, which is saved"):
        train(config, tmp_path / "run")


def test_a_bad_config_leaves_no_trace(tmp_path):
    with pytest.raises(ValueError, match=r"config\.train\.log_every is 0; expected 1 or more"):
        train(small(log_every=0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_write_that_fails_is_named_with_the_step_that_is_safe(tmp_path, monkeypatch):
    save = ocp.CheckpointManager.save

    def failing(manager, step, **options):
        if step == 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        save(manager, step, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "save", failing)
    with pytest.raises(
        OSError, match=r"step 2 could not be written to .*Too many open files; .* of step 1\. Start the"
    ):
        train(small(), tmp_path)


def test_a_work_directory_that_is_deleted_is_named(tmp_path):
    def delete(phase, step):
        if phase == "scores":
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(
        OSError, match=r"step 2 could not be written to .*run/checkpoints: .* was deleted; .* may be lost"
    ):
        train(small(), tmp_path / "run", dataclasses.replace(PARTS, on_phase=delete))
    assert not checkpointing.has_checkpoint(tmp_path / "run")


def test_a_run_that_goes_on_initializes_nothing(run):
    class Uninitialized(Still):
        def init(self, key, *arguments, method):
            assert isinstance(key, jax.core.Tracer)
            return super().init(key, *arguments, method=method)

    entered = []
    parts = dataclasses.replace(
        PARTS,
        build=lambda fields, num_classes: Uninitialized(),
        on_phase=lambda phase, step: entered.append(phase),
    )
    train(small(num_steps=3), run, parts)
    assert "restore" in entered and "initialize" not in entered


def test_a_checkpoint_of_a_run_with_other_untrained_parameters_is_read(tmp_path):
    config = small()
    config.optimizer.update(name="sgd", untrained=("backbone/stem/.*",), ema_decay=0.5)
    train(config, tmp_path)
    # What is trained decides on the optimizer's state alone.
    loaded = Checkpoints(tmp_path)
    description = loaded._describe(2)
    loaded.close()
    arrays = {name for name in description["arrays"] if "backbone/stem" in name}
    assert arrays == {"model/params/backbone/stem/kernel", "model/ema_params/backbone/stem/kernel"}
