"""The two programs end to end, on the synthetic set."""

import dataclasses
import functools
import gc
import json
import os
import pathlib
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import maskx_jax
from benchmarks.parameters import make_parameter, parameter_shapes
from configs import embedmask, fcos, keypoint_rcnn, maskx_rcnn
from configs.families import rcnn
from maskx_jax.data.shapes.source import ShapesSource
from maskx_jax.data.sources import open_source
from maskx_jax.distributed.mesh import make_mesh, replicated
from maskx_jax.inference import make_detect_step
from maskx_jax.labelling.self_training import config_of_rounds, self_train
from maskx_jax.models.build import build
from maskx_jax.runs import evaluation
from maskx_jax.runs.workdir import read_config
from maskx_jax.training import loop
from maskx_jax.training.steps import make_train_step
from tests.cluster import small_config as smaller
from tests.compilation import optimized
from tests.models.build import tiny_config
from tests.processes import ENVIRONMENT, ROOT
from tools.write_shapes import main as write_shapes_main


def small_config(system=None, **train_fields):
    config = tiny_config() if system is None else system.get_config("size=tiny,data=shapes")
    config.data.mask_classes = "random(1,4)"
    config.data.shapes.update(num_train=16, num_eval=10, image_size=64, num_hues=3, num_textures=2)
    config.data.transform.update(canvas=(64, 64), short_sides=(64,), max_long_side=64)
    config.data.loader = "threads"
    config.train.update(num_steps=4, log_every=2, eval_every=0, checkpoint_every=2)
    config.train.update(**train_fields)
    return config


# Compiled steps of the last training, by what decides on them.
_steps: dict[tuple, object] = {}


def train(config, workdir, **parts):
    """Train with the compiled steps of the last training where they are the same."""
    return loop.train(config, str(workdir), parts=sharing_steps(config, **parts))


def sharing_steps(config, **parts):
    """Return parts with the compiled steps of the last training; if others are needed, their memory is given back."""

    def sharing(make):
        def make_or_share(model, *arguments, **options):
            end = config.train.num_steps if config.optimizer.schedule == "cosine" else None
            key = (make, repr(model), config.optimizer.to_json(), end, config.train.state_sharding, config.seed)
            if key not in _steps:
                if make is make_train_step:
                    forget_steps()
                _steps[key] = make(model, *arguments, **options)
            return _steps[key]

        return make_or_share

    shared = {"make_train_step": sharing(make_train_step), "make_detect_step": sharing(make_detect_step)}
    return loop.Parts(**(shared | parts))


def forget_steps():
    _steps.clear()
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module", autouse=True)
def _no_steps_after_the_module():
    yield
    forget_steps()


def read_metrics(workdir):
    return [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the work directory of a run of four steps, with its evaluation's metrics."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train(small_config(eval_every=4), workdir)


@pytest.mark.slow
def test_run_leaves_config_environment_losses_and_metrics(run):
    workdir, metrics = run
    assert json.loads((workdir / "config.json").read_text())["data"]["mask_classes"] == "random(1,4)"
    assert json.loads((workdir / "environment.json").read_text())["packages"]["jax"] == jax.__version__
    lines = read_metrics(workdir)
    assert [line["step"] for line in lines] == [2, 4, 4]
    # Every step is in one average: the epoch counts them, the rates are over as many.
    assert [line["train/epoch"] for line in lines[:2]] == [1.0, 2.0]
    assert {"train/total", "train/mask", "train/learning_rate", "train/images_per_second"} <= set(lines[0])
    assert all(0 <= line["train/waiting_for_data"] <= 1 for line in lines if "train/total" in line)
    assert lines[2]["segm/all/AP"] == metrics["segm"]["all"]["AP"]
    assert set(metrics["segm"]) == {"all", "A", "B"}
    assert any((workdir / "tensorboard").iterdir())


@pytest.mark.long
def test_a_run_trains_itself_in_rounds_on_masks_that_it_predicts(run, tmp_path):
    workdir, _ = run
    write_shapes = ["--num_images=16", "--num_hues=3", "--num_textures=2", "--image_size=64", "--hide=0"]
    for seed, name in enumerate(("train", "val")):
        assert write_shapes_main([f"--output={tmp_path / name}", f"--seed={seed}", *write_shapes]) == 0
    splits = {name: (tmp_path / name / "all.json", tmp_path / name / "images") for name in ("train", "val")}
    config = config_of_rounds(workdir, num_steps=4)
    assert config.optimizer.to_dict() == small_config(eval_every=4).optimizer.to_dict()
    options = {"workdir": workdir, "splits": splits, "config": config, "threshold": 0.0}
    rounds = self_train(tmp_path / "rounds", **options, parts=sharing_steps(config))
    assert {"step": 4, **rounds[0].metrics} == read_metrics(workdir)[-1]
    assert [bool(one.num_masks) for one in rounds] == [False, True, True]
    # Of the classes that the run had masks of all stay as people drew them; those of the others are predicted, although
    # the file has them.
    groups = json.loads((workdir / "data.json").read_text())["groups"]
    content = json.loads((tmp_path / "rounds/2/train.json").read_text())
    drawn = {a["id"]: a["segmentation"] for a in json.loads(splits["train"][0].read_text())["annotations"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    objects = [a for a in content["annotations"] if not a["iscrowd"]]
    for entry in objects:
        if names[entry["category_id"]] in groups["A"]:
            assert entry["segmentation"] == drawn[entry["id"]] and "predicted_mask" not in entry
        elif entry["segmentation"]:
            assert "rounds/1/run, step 4" in entry["predicted_mask"]["source"]
    assert sum("predicted_mask" in a for a in objects) == rounds[2].num_masks
    for number in (1, 2):
        assert json.loads((tmp_path / f"rounds/{number}/run/data.json").read_text())["groups"] == groups
        assert rounds[number].metrics.keys() == rounds[0].metrics.keys() and "segm/B/AP" in rounds[number].metrics
    assert read_config(tmp_path / "rounds/2/run").initialize.path == str(tmp_path / "rounds/1/run")
    assert self_train(tmp_path / "rounds", **options, parts=loop.Parts(build=pytest.fail)) == rounds


@pytest.mark.slow
def test_a_run_goes_on_past_broken_records_and_says_how_many(tmp_path, monkeypatch, capsys):
    config = small_config()
    config.data.max_broken_records = 1
    whole = ShapesSource.__getitem__
    monkeypatch.setattr(
        ShapesSource,
        "__getitem__",
        lambda source, i: dataclasses.replace(whole(source, i), image=b"") if i == 3 else whole(source, i),
    )
    train(config, tmp_path)
    assert "broken records skipped: 1\n" in capsys.readouterr().out


@pytest.mark.slow
def test_load_returns_a_model_ready_to_apply(run):
    loaded = maskx_jax.load(run[0])
    image = ShapesSource(1, seed=5, image_size=64)[0].image
    # In one program: what is compiled for each operation apart takes more memory.
    apply = jax.jit(functools.partial(loaded.model.apply, method="detect"))
    detections = apply(loaded.variables, jnp.asarray(image[None]), jnp.array([[64.0, 64.0]]))
    assert detections.boxes.shape == (1, 20, 4) and detections.masks.shape == (1, 20, 28, 28)
    assert loaded.step == 4 and len(loaded.categories) == 6
    assert loaded.categories == ShapesSource(1, 0, num_hues=3, num_textures=2).categories


@pytest.mark.long
def test_an_hourglass_trains_and_is_loaded_with_masks_of_its_own_side(tmp_path):
    config = small_config(num_steps=2)
    small = {"channels": 8, "stage_channels": (8, 12), "stage_blocks": (1, 1), "resolution": 10}
    config.model.rcnn.mask_head.update(body="hourglass", train_on="gt_boxes", mlp="none", remat=True, **small)
    # So that this short training finds something.
    config.model.rcnn.box_head.score_threshold = 0.0
    train(config, tmp_path)
    assert all(np.isfinite(line["train/mask"]) for line in read_metrics(tmp_path) if "train/mask" in line)
    loaded = maskx_jax.load(tmp_path)
    image = ShapesSource(1, seed=5, image_size=64)[0].image
    inputs = (loaded.variables, jnp.asarray(image[None]), jnp.array([[64.0, 64.0]]))
    found = jax.eval_shape(functools.partial(loaded.model.apply, method="detect"), *inputs)
    assert found.masks.shape == (1, 20, 20, 20)
    predictions = loaded.predict(image, threshold=0.0)
    assert len(predictions) and predictions.masks[0].shape == (64, 64)


@pytest.mark.slow
def test_each_image_is_detected_once_whatever_the_batch_size(run):
    loaded = maskx_jax.load(run[0])
    config = loaded.config
    # So that this short training finds something.
    config.model.rcnn.box_head.score_threshold = 0.0
    model = build(config.model, 6)
    mesh = make_mesh()
    variables = jax.device_put(loaded.variables, replicated(mesh))
    source = ShapesSource(10, seed=1, image_size=64, num_hues=3, num_textures=2)
    results = []
    for batch_size in (8, 16):
        config.evaluation.batch_size = batch_size
        results.append(evaluation.detect(make_detect_step(model, mesh), variables, source, config, mesh))
    assert {result["image_id"] for result in results[0]} == set(range(1, 11))
    for first, second in zip(*results, strict=True):
        assert (first["image_id"], first["category_id"]) == (second["image_id"], second["category_id"])
        np.testing.assert_allclose(first["bbox"], second["bbox"], atol=0.01)
        np.testing.assert_allclose(first["score"], second["score"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "system",
    [None, fcos, *(pytest.param(config, marks=pytest.mark.long) for config in (embedmask, keypoint_rcnn))],
    ids=["maskx_rcnn", "fcos", "embedmask", "keypoint_rcnn"],
)
def test_resumed_run_ends_bit_equal_to_an_uninterrupted_one(system, tmp_path):
    config = small_config(system)
    config.optimizer.schedule = "step"  # Of the step alone, so that a shorter run is the beginning of the longer one.
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, whole)
    config.train.num_steps = 2
    train(config, parts)
    config.train.num_steps = 4
    train(config, parts)
    first, second = maskx_jax.load(whole), maskx_jax.load(parts)
    assert first.step == second.step == 4
    jax.tree.map(np.testing.assert_array_equal, first.variables, second.variables)


@pytest.mark.slow
def test_a_run_may_split_its_state_and_resume_with_a_replicated_one(tmp_path):
    config = small_config(num_steps=2, eval_every=2, state_sharding="fsdp")
    config.optimizer.schedule = "step"  # Of the step alone, so that the run may be made longer.
    config.optimizer.ema_decay = 0.5
    metrics = train(config, tmp_path)
    assert set(metrics["segm"]) == {"all", "A", "B"}
    config.train.update(num_steps=3, eval_every=0, state_sharding="replicated")
    train(config, tmp_path)
    assert maskx_jax.load(tmp_path).step == 3


@pytest.mark.slow
def test_a_step_is_compiled_once_a_canvas_and_waits_for_no_transfer(tmp_path):
    steps = {}

    def guarding(name, make):
        def make_guarded(*arguments, **options):
            steps[name] = step = make(*arguments, **options)

            def guarded(*arguments):
                with jax.transfer_guard("disallow"):
                    return step(*arguments)

            return guarded

        return make_guarded

    parts = {
        "make_train_step": guarding("train", make_train_step),
        "make_detect_step": guarding("detect", make_detect_step),
    }
    config = small_config(num_steps=6, eval_every=6)
    with config.data.shapes.ignore_type():
        config.data.shapes.image_size = (64, 96)
    config.data.transform.update(canvas=(64, 96), short_sides=(64,), max_long_side=96)
    forget_steps()
    train(config, tmp_path, **parts)
    # Landscape and portrait; an evaluation has both too.
    assert {name: step._cache_size() for name, step in steps.items()} == {"train": 2, "detect": 2}


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_config_unless_told_to(run):
    config = small_config(num_steps=6)
    config.optimizer.learning_rate = 0.5
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate: .* -> 0\.5"):
        train(config, run[0])
    # Refused before anything of the run was changed.
    assert maskx_jax.load(run[0]).config.optimizer.learning_rate != 0.5


@pytest.mark.slow
def test_stage_wise_training_starts_from_another_run_and_changes_its_masks_alone(run, tmp_path):
    config = small_config(num_steps=1)
    config.initialize.path = str(run[0])
    config.optimizer.untrained = ("(backbone|fpn|rpn|box_head)/.*",)
    train(config, tmp_path)
    before, after = maskx_jax.load(run[0]).variables["params"], maskx_jax.load(tmp_path).variables["params"]
    for module in ("backbone", "fpn", "rpn", "box_head"):
        jax.tree.map(np.testing.assert_array_equal, before[module], after[module])
    assert (before["mask_weights"]["fc1"]["kernel"] != after["mask_weights"]["fc1"]["kernel"]).any()


@pytest.mark.slow
def test_training_starts_from_a_file_of_weights_and_their_conventions(tmp_path):
    # A ResNet classifier as torchvision names it, as small as the tiny model's.
    config = small_config(num_steps=1)
    config.optimizer.schedule = "step"  # Of the step alone, so that the run may be made longer.
    shapes = parameter_shapes(stage_sizes=(1, 1, 1, 1), width=16)
    arrays = {name: make_parameter(name, shape) for name, shape in shapes.items()}
    classifier = {n.removeprefix("backbone.body."): a for n, a in arrays.items() if n.startswith("backbone.body.")}
    save_file(classifier, tmp_path / "resnet.safetensors")
    config.initialize.path = str(tmp_path / "resnet.safetensors")
    config.model.pixels.update(channel_order="bgr", mean=(1.0, 2.0, 3.0))
    config.optimizer.untrained = ("backbone/.*",)
    train(config, tmp_path / "run")
    run = maskx_jax.load(tmp_path / "run")
    # What was trained on is what the run says of itself, and what it is loaded with.
    assert run.model.pixels.channel_order == "rgb" and run.config.model.backbone.norm == "frozen_batch"
    assert run.model.pixels.mean == (123.675, 116.28, 103.53)
    kernel = run.variables["params"]["backbone"]["stem"]["kernel"]
    np.testing.assert_array_equal(kernel, classifier["conv1.weight"].transpose(2, 3, 1, 0))
    # The run goes on from its own checkpoint, whatever has become of the file and of the flag.
    (tmp_path / "resnet.safetensors").unlink()
    config = small_config(num_steps=2)
    config.optimizer.update(schedule="step", untrained=("backbone/.*",))
    train(config, tmp_path / "run")
    run = maskx_jax.load(tmp_path / "run")
    assert run.step == 2 and run.model.pixels.mean == (123.675, 116.28, 103.53)
    assert run.config.model.backbone.norm == "frozen_batch"
    # Missing parts are named before anything of the run is written.
    config.initialize.path = str(tmp_path / "resnet.safetensors")
    del classifier["layer3.0.conv2.weight"]
    save_file(classifier, tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match=r"1 missing, such as backbone/res4_block0/conv2/kernel"):
        train(config, tmp_path / "other")
    assert not (tmp_path / "other/config.json").exists()


@pytest.mark.slow
def test_a_run_with_other_classes_gives_all_but_the_rows_of_new_ones(run, tmp_path, capsys):
    config = small_config(num_steps=1)
    config.data.shapes.update(num_hues=2, num_textures=3)
    config.initialize.path = str(run[0])
    train(config, tmp_path / "run")
    assert "found by name (named in the run); new, with fresh rows: " in capsys.readouterr().out


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(tmp_path):
    config = small_config(checkpoint_every=100)
    config.optimizer.update(name="sgd", learning_rate=1e30, clip_norm=0.0, warmup_steps=0)
    with pytest.raises(FloatingPointError, match=r"step [23]: not finite: .*(nan|inf)"):
        train(config, tmp_path)
    # Nothing broken was saved.
    with pytest.raises(FileNotFoundError, match=r"expected any checkpoint"):
        maskx_jax.load(tmp_path)


def run_program(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True)


def assert_same_entries(found, expected):
    """Check that COCO results entries agree to rounding, whatever the order of their images."""
    for entries in (found, expected):
        entries.sort(key=lambda entry: entry["image_id"])
    assert [e["image_id"] for e in found] == [e["image_id"] for e in expected]
    assert [e["category_id"] for e in found] == [e["category_id"] for e in expected]
    for name in ("bbox", "score"):
        np.testing.assert_allclose([e[name] for e in found], [e[name] for e in expected], atol=1e-3, rtol=1e-4)
    same = [e["segmentation"] == f["segmentation"] for e, f in zip(found, expected, strict=True)]
    assert np.mean(same) > 0.99


@pytest.mark.slow
def test_programs_run_through_their_flags_and_stored_results_score_the_same(tmp_path):
    done = run_program(
        "train.py",
        "--config=configs/maskx_rcnn.py:size=tiny,data=shapes,mlp=light",
        "--config.data.mask_classes=random(1,4)",
        "--config.data.shapes.num_hues=3",
        "--config.data.shapes.num_textures=2",
        "--config.data.shapes.num_eval=10",
        "--config.train.num_steps=2",
        "--config.train.eval_every=0",
        # So that this short training finds something.
        "--config.model.rcnn.box_head.score_threshold=0.0",
        "--config.evaluation.num_pictures=1",
        f"--workdir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    assert "4 A, 2 B" in done.stdout + done.stderr
    (tmp_path / "none.json").write_text("[]")
    others = ("--boundary", f"--compare=another={tmp_path}/none.json")
    # By other processes, two images at a time.
    others += ("--config.evaluation.num_processes=2", "--config.evaluation.batch_size=2")
    done = run_program("eval.py", f"--workdir={tmp_path}", f"--output={tmp_path}/scores", *others)
    assert done.returncode == 0, done.stderr
    assert "mask B" in done.stdout and "edge B" in done.stdout
    (picture,) = (tmp_path / "scores/pictures").glob("*.png")
    # Ground truth, predictions, and those of the other.
    assert cv2.imread(str(picture)).shape[1] == 3 * 640 + 2 * 8
    results = json.loads((tmp_path / "scores/results.json").read_text())
    assert {"image_id", "category_id", "bbox", "score", "segmentation"} == set(results[0])

    # The same pictures as files: what is predicted is what was scored.
    source = ShapesSource(10, seed=1, num_hues=3, num_textures=2)
    for record in map(source.__getitem__, range(10)):
        cv2.imwrite(str(tmp_path / f"{record.image_id}.png"), record.image[..., ::-1])
    given = (f"--input={tmp_path}/*.png", "--threshold=0", "--nopictures", f"--output={tmp_path}/predictions")
    done = run_program("-m", "maskx_jax", "predict", f"--workdir={tmp_path}", *given)
    assert done.returncode == 0, done.stderr
    images = json.loads((tmp_path / "predictions/images.json").read_text())["images"]
    id_of_number = {image["id"]: int(image["file_name"].removesuffix(".png")) for image in images}
    predicted = json.loads((tmp_path / "predictions/results.json").read_text())
    for entry in predicted:
        entry["image_id"] = id_of_number[entry["image_id"]]
    assert_same_entries(predicted, results)

    ground_truth = source.coco_ground_truth()
    (tmp_path / "gt.json").write_text(json.dumps(ground_truth))
    done = run_program(
        "eval.py",
        f"--results={tmp_path}/scores/results.json",
        f"--annotations={tmp_path}/gt.json",
        "--mask_classes=random(1,4)",
        "--max_detections=20",
        "--boundary",
        f"--output={tmp_path}/again",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again/metrics.json").read_text() == (tmp_path / "scores/metrics.json").read_text()


@pytest.mark.slow
def test_two_images_are_learned_by_heart(tmp_path):
    # Smaller than size=tiny: 200 steps of it would take minutes.
    config = smaller.get_config()
    config.data.loader = "threads"
    config.data.mask_classes = "all"
    config.data.transform.flip_probability = 0.0
    config.data.shapes.update(num_train=2, num_eval=2, crowd_fraction=0.0, empty_fraction=0.0)
    config.train.update(batch_size=8, num_steps=200, eval_every=200, log_every=50, checkpoint_every=200)
    config.evaluation.batch_size = 8
    config.optimizer.learning_rate = 4e-3

    def open_training_images(data, *, training, seed):
        return open_source(data, training=True, seed=seed)

    with optimized():
        metrics = train(config, tmp_path, open_source=open_training_images)
    assert metrics["bbox"]["all"]["AP50"] > 0.99
    assert metrics["segm"]["all"]["AP50"] > 0.99


def test_a_misspelt_config_key_is_refused_with_a_suggestion():
    done = run_program("train.py", "--config=configs/mask_rcnn.py", "--config.train.batchsize=3", "--workdir=/nowhere")
    assert done.returncode != 0
    assert "batch_size" in done.stderr


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("masks=vok", "unknown choice of 'masks' 'vok'; did you mean 'voc'"),
        ("maskss=voc", "unknown variant 'maskss'; did you mean 'masks'"),
        ("masks=voc,masks=all", "given twice"),
    ],
)
def test_an_unknown_variant_is_refused_with_the_nearest_one(argument, message):
    with pytest.raises(ValueError, match=message):
        maskx_rcnn.get_config(argument)


def test_variants_change_what_they_say_and_leave_the_rest():
    config = maskx_rcnn.get_config("backbone=r101,schedule=1x,masks=nonvoc")
    assert config.data.mask_classes == "nonvoc" and config.model.backbone.stage_sizes == (3, 4, 23, 3)
    # Batch 8, half the rate, twice the steps (SPEC 2.6).
    assert (config.train.batch_size, config.optimizer.learning_rate, config.train.num_steps) == (8, 0.01, 180_000)
    assert config.optimizer.decay_steps == (120_000, 160_000)
    assert config.model.rcnn.rpn.to_dict() == rcnn.get_config().model.rcnn.rpn.to_dict()
