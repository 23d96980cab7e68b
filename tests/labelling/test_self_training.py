"""Rounds of labelling and training: what each is made of, and what of it is done again."""

import json
import os
import pathlib
import signal

import pytest

from maskx_jax.cli import self_train as command
from maskx_jax.coco import rle
from maskx_jax.distributed.interruption import InterruptedRun
from maskx_jax.labelling import self_training
from maskx_jax.labelling.self_training import config_of_rounds, self_train, table
from maskx_jax.runs import evaluation, loading
from maskx_jax.runs.workdir import read_config, write_config
from tests.labelling.scenes import loaded, make_unknown_and_outside, write_scenes


class Killed(BaseException):
    pass


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """Write pictures and a run on them whose model takes what is bright for the object; return a call of it."""
    monkeypatch.chdir(tmp_path)
    trained = []

    def train(config, workdir, parts):
        write_config(workdir, config)
        trained.append(workdir)
        values = {"bbox/all/AP": 0.25, "segm/all/AP": 0.1 * len(trained), "segm/B/AP": None}
        (pathlib.Path(workdir) / "metrics.jsonl").write_text(
            json.dumps({"step": config.train.num_steps} | values) + "\n"
        )
        return {}

    monkeypatch.setattr(self_training, "train", train)
    monkeypatch.setattr(loading, "load", lambda workdir, step: loaded())
    content, masks = write_scenes(tmp_path)
    config = loaded().config
    config.data.mask_classes = "annotated"
    config.optimizer.update(decay_steps=(600, 800), warmup_steps=100)
    config.train.num_steps = 1000
    # Tests have eight devices.
    config.evaluation.batch_size = 8
    write_config("RUN", config)
    pathlib.Path("RUN/data.json").write_text(json.dumps({"groups": {"A": ["sun"], "mixed": ["moon"]}}))
    for name in ("train", "val"):
        only_drawn = {
            **content,
            "annotations": [a for a in content["annotations"] if a["segmentation"] or name == "train"],
        }
        pathlib.Path(f"{name}.json").write_text(json.dumps(only_drawn))
    splits = {name: (f"{name}.json", "images") for name in ("train", "val")}

    def call(**options):
        return self_train("ROUNDS", **({"workdir": "RUN", "splits": splits} | options))

    return call, trained, masks


def annotations(path):
    return {a["id"]: a for a in json.loads(pathlib.Path(path).read_text())["annotations"]}


def test_each_round_labels_by_the_last_run_and_trains_from_it(scene):
    call, trained, masks = scene
    rounds = call(rounds=3)
    here = pathlib.Path.cwd()
    assert trained == [f"{here}/ROUNDS/{number}/run" for number in (1, 2, 3)]
    for number, before in ((1, f"{here}/RUN"), (2, f"{here}/ROUNDS/1/run"), (3, f"{here}/ROUNDS/2/run")):
        config, labelled = read_config(f"ROUNDS/{number}/run"), annotations(f"ROUNDS/{number}/train.json")
        assert config.initialize.path == before
        assert config.data.directory == f"{here}/ROUNDS/{number}/data" and config.data.mask_classes == "annotated"
        assert {labelled[i]["predicted_mask"]["source"] for i in (111, 120, 131)} == {f"{before}, step 30"}
        assert (pathlib.Path(config.data.directory) / "index_val.npz").exists()
    assert [(one.num_masks, one.num_boxes_only) for one in rounds] == [(None, None), (3, 3), (3, 3), (3, 3)]
    assert rounds[0].metrics == {} and [one.metrics["segm/all/AP"] for one in rounds[1:]] == pytest.approx(
        [0.1, 0.2, 0.3]
    )
    assert rounds[1].mean_quality == pytest.approx(
        sum(labelled[i]["predicted_mask"]["quality"] for i in (111, 120, 131)) / 3, abs=1e-4
    )
    assert rle.decode(labelled[120]["segmentation"]).sum() == pytest.approx(masks[120].sum(), rel=0.05)


def test_a_round_is_a_quarter_of_the_run_with_its_groups_unless_told_otherwise(scene):
    config = config_of_rounds("RUN")
    assert (config.train.num_steps, config.optimizer.decay_steps, config.optimizer.warmup_steps) == (
        250,
        (150, 200),
        25,
    )
    # A quarter of 10,000.
    assert config.model.rcnn.box_supervision.warmup_steps == 2500
    # Not those that the masks of a round would make.
    assert config.evaluation.mask_classes.to_dict() == {"A": ("sun",), "mixed": ("moon",)}
    categories = loaded().categories
    assert evaluation.scored_groups(categories, config) == {"A": [1], "mixed": [5]}
    pathlib.Path("RUN/data.json").write_text(json.dumps({"groups": {}}))
    assert evaluation.scored_groups(categories, config_of_rounds("RUN")) == {}
    assert config_of_rounds("RUN", 2000).optimizer.decay_steps == (1200, 1600)


def test_what_is_finished_is_not_done_again_and_more_rounds_go_on(scene, monkeypatch):
    call, trained, _ = scene
    first = call(rounds=1)
    assert call(rounds=1) == first and len(trained) == 1
    # Killed in training: the round goes on with the masks and the data that are there.
    train = self_training.train

    def killed(*_, **__):
        raise Killed

    monkeypatch.setattr(self_training, "train", killed)
    with pytest.raises(Killed):
        call(rounds=2)
    monkeypatch.setattr(self_training, "train", train)
    for name in ("label", "prepare"):
        monkeypatch.setattr(self_training, name, killed)
    rounds = call(rounds=2)
    assert rounds[:2] == first and [pathlib.Path(workdir).parent.name for workdir in trained] == ["1", "2"]
    assert call(rounds=1) == first


def test_other_arguments_and_configs_are_refused(scene, monkeypatch):
    call, trained, _ = scene

    def killed(*_, **__):
        raise Killed

    # Already in the first round, whose masks another call would take for its own.
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(self_training, "train", killed)
        call(rounds=1)
    folder = pathlib.Path.cwd() / "ROUNDS"
    with pytest.raises(ValueError, match=rf"^{folder} was begun with other arguments: threshold: 0\.5 -> 0\.7; take"):
        call(threshold=0.7)
    config = config_of_rounds("RUN")
    config.optimizer.learning_rate *= 2
    with pytest.raises(ValueError, match=r"other arguments: config: .*'optimizer\.learning_rate': 0\.002"):
        call(config=config)
    # Fields that decide nothing are free, and so is how a path is written.
    config = config_of_rounds("RUN")
    config.train.log_every = 7
    call(rounds=1, config=config, workdir=pathlib.Path.cwd() / "RUN")
    assert len(trained) == 1
    pathlib.Path("ROUNDS/rounds.json").write_text("[]")
    with pytest.raises(ValueError, match=r"ROUNDS/rounds\.json: .*; expected what an earlier call has written"):
        call()


def test_a_bad_image_can_be_skipped_by_the_next_call(scene):
    call, trained, _ = scene
    bad = next(pathlib.Path("images").iterdir())
    bad.write_bytes(bad.read_bytes()[:50])
    with pytest.raises(ValueError, match="skip_bad_images"):
        call(rounds=1)
    call(rounds=1, skip_bad_images=True)
    assert len(trained) == 1


def test_what_is_wrong_is_said_before_anything_is_labelled(scene):
    call, trained, _ = scene
    with pytest.raises(ValueError, match=r"^config\.train\.num_steps is 0; expected 1 or more"):
        call(config=config_of_rounds("RUN", num_steps=0))
    with pytest.raises(ValueError, match="rounds is 0; expected at least 1"):
        call(rounds=0)
    with pytest.raises(ValueError, match=r"got the splits train; expected those that the run .*: train, val"):
        call(splits={"train": ("train.json", "images")})
    config = config_of_rounds("RUN")
    config.data.eval_split = "train"
    with pytest.raises(ValueError, match=r"trains and evaluates on 'train'; expected a split of its own to score on"):
        call(config=config, splits={"train": ("train.json", "images")})
    pathlib.Path("val.json").write_text("{}")
    with pytest.raises(ValueError, match=r"val\.json: .*'images'"):
        call()
    assert not trained and not pathlib.Path("ROUNDS").exists()


def test_nothing_is_scored_against_a_predicted_mask(scene):
    call, trained, _ = scene
    call(rounds=1)
    with pytest.raises(ValueError, match=r"ROUNDS/1/train\.json: the masks of annotations 111, 120, 131 are predicted"):
        call(splits={"train": ("train.json", "images"), "val": ("ROUNDS/1/train.json", "images")})
    assert len(trained) == 1


def test_the_run_of_a_round_does_not_begin_other_rounds(scene):
    call, *_ = scene
    call(rounds=1)
    with pytest.raises(
        ValueError, match=r"1/run is a round's run; expected the run that labelled first: to continue, g"
    ):
        self_train("OTHER", workdir="ROUNDS/1/run", splits={})


def test_masks_that_the_run_may_not_use_stay_unused(scene):
    call, *_ = scene
    # The discs of one picture are of the class that keeps its masks.
    content = json.loads(pathlib.Path("train.json").read_text())
    for entry in content["annotations"]:
        entry["category_id"] = 7 if entry["image_id"] == 13 else 3
    pathlib.Path("train.json").write_text(json.dumps(content))
    pathlib.Path("moon.txt").write_text("moon\n")
    config = read_config("RUN")
    config.data.mask_classes = "moon.txt"
    write_config("RUN", config)
    # Of the others one is good enough, two are not; what people drew is in none of them.
    _, first = call(rounds=1, threshold=0.8)
    labelled, given = annotations("ROUNDS/1/train.json"), annotations("train.json")
    assert given[110]["segmentation"] and labelled[110]["segmentation"] == []
    assert labelled[130] == given[130] and given[130]["segmentation"]
    taken = {i for i, a in labelled.items() if a["segmentation"]} - {130}
    assert taken == {i for i, a in labelled.items() if "predicted_mask" in a} == {120}
    assert (first.num_masks, first.num_boxes_only) == (1, 4)
    assert json.loads(pathlib.Path("ROUNDS/1/train.report.json").read_text())["num_hidden"] == 1


def test_the_command_says_what_came_of_the_rounds(scene, capsys):
    arguments = ["--workdir=RUN", "--output=ROUNDS", "--split=train=train.json,images", "--split=val=val.json,images"]
    assert command.main([*arguments, "--rounds=2", "--num_steps=7", "--config.optimizer.momentum=0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"round 1 of 2: {pathlib.Path.cwd()}/ROUNDS/1" and "3  masks predicted" in lines[2]
    assert [line.split() for line in lines[-4:]] == [
        ["round", "masks", "quality", "box", "AP", "mask", "AP"],
        ["0", "-", "-", "-", "-"],
        ["1", "3", "of", "3", "0.79", "25.0", "10.0"],
        ["2", "3", "of", "3", "0.79", "25.0", "20.0"],
    ]
    config = read_config("ROUNDS/2/run")
    assert (config.train.num_steps, config.optimizer.momentum) == (7, 0.5)
    with pytest.raises(
        ValueError, match=r"got --config\.train\.num_steps=3; the rounds set .* \(--num_steps is how many"
    ):
        command.main([*arguments, "--config.train.num_steps=3"])
    with pytest.raises(ValueError, match="names no field: 'nothing'"):
        command.main([*arguments, "--config.model.nothing=3"])


def test_what_an_error_names_as_the_remedy_is_a_flag(scene, capsys):
    make_unknown_and_outside(pathlib.Path())
    # Nothing is scored against predicted masks, and what is scored against has the same faults.
    pathlib.Path("val.json").write_bytes(pathlib.Path("train.json").read_bytes())
    arguments = ["--workdir=RUN", "--output=ROUNDS", "--split=train=train.json,images", "--split=val=val.json,images"]
    with pytest.raises(ValueError, match="Use allow_outside"):
        command.main(arguments)
    with pytest.raises(ValueError, match="Use drop_unknown"):
        command.main([*arguments, "--allow_outside"])
    assert command.main([*arguments, "--allow_outside", "--drop_unknown", "--rounds=1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:4] == ["1", "3", "of", "3"]


def test_the_command_answers_a_signal_in_training_as_train_does(scene, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise InterruptedRun("asked to leave after step 3, which is saved")

    monkeypatch.setattr(self_training, "train", interrupted)
    arguments = ["--workdir=RUN", "--output=ROUNDS", "--split=train=train.json,images", "--split=val=val.json,images"]
    before = signal.getsignal(signal.SIGTERM)
    assert command.main(arguments) == 75
    assert capsys.readouterr().err.splitlines()[-1] == "asked to leave after step 3, which is saved"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_while_it_labels_ends_the_command_with_the_same_code(scene, monkeypatch):
    def label(*_, **__):
        signal.raise_signal(signal.SIGTERM)
        raise Killed

    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(self_training, "label", label)
    with pytest.raises(Killed):
        command.main(["--workdir=RUN", "--output=R", "--split=train=train.json,images", "--split=val=val.json,images"])
    assert ended == [75]


def test_a_table_shows_what_was_measured():
    rounds = [
        self_training.Round({"bbox/all/AP": 0.5}),
        self_training.Round({"bbox/all/AP": None, "segm/B/AP": 0.125}, 9, 4, 0.625),
    ]
    assert table(rounds).splitlines() == [
        "round   masks  quality  box AP  mask AP on B",
        "    0       -        -    50.0             -",
        "    1  4 of 9     0.62       -          12.5",
    ]
