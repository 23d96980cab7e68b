"""Rounds of labelling and training: what each is made of, and what of it is done again."""

import json
import pathlib

import pytest

from maskx_jax.cli import self_train as command
from maskx_jax.coco import rle
from maskx_jax.labelling import self_training
from maskx_jax.labelling.self_training import config_of_rounds, self_train, table
from maskx_jax.runs import loading
from maskx_jax.runs.workdir import read_config, write_config
from tests.labelling.scenes import loaded, write_scenes


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
    assert trained == [f"ROUNDS/{number}/run" for number in (1, 2, 3)]
    for number, before in ((1, "RUN"), (2, "ROUNDS/1/run"), (3, "ROUNDS/2/run")):
        config, labelled = read_config(f"ROUNDS/{number}/run"), annotations(f"ROUNDS/{number}/train.json")
        assert config.initialize.path == before
        assert config.data.directory == f"ROUNDS/{number}/data" and config.data.mask_classes == "annotated"
        assert {labelled[i]["predicted_mask"]["source"] for i in (111, 120, 131)} == {f"{before}, step 30"}
        assert (pathlib.Path(config.data.directory) / "index_val.npz").exists()
    assert [(one.num_masks, one.num_boxes_only) for one in rounds] == [(0, 0), (3, 3), (3, 3), (3, 3)]
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
    # The mixed class had masks for some: with predicted ones it is scored among those that had not all.
    assert config.evaluation.mask_classes == ("sun",)
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
    assert rounds[:2] == first and trained == ["ROUNDS/1/run", "ROUNDS/2/run"]
    assert call(rounds=1) == first


def test_other_arguments_and_configs_are_refused(scene):
    call, *_ = scene
    call(rounds=1)
    with pytest.raises(
        ValueError, match=r"^ROUNDS was begun with other arguments: threshold: 0\.5 -> 0\.7; take another"
    ):
        call(threshold=0.7)
    config = config_of_rounds("RUN")
    config.optimizer.learning_rate *= 2
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate: 0\.\d+ -> 0\.\d+"):
        call(config=config)
    with pytest.raises(ValueError, match=r"^config\.train\.num_steps is 0; expected 1 or more"):
        call(config=config_of_rounds("RUN", num_steps=0))
    with pytest.raises(ValueError, match="rounds is 0; expected at least 1"):
        call(rounds=0)
    with pytest.raises(ValueError, match=r"got the splits train; expected those that the run .*: train, val"):
        call(splits={"train": ("train.json", "images")})
    pathlib.Path("ROUNDS/rounds.json").write_text("[]")
    with pytest.raises(ValueError, match=r"ROUNDS/rounds\.json: .*; expected what an earlier call has written"):
        call()


def test_nothing_is_scored_against_a_predicted_mask(scene):
    call, trained, _ = scene
    call(rounds=1)
    with pytest.raises(
        ValueError, match=r"^ROUNDS/1/train\.json: the masks of annotations 111, 120, 131 are predicted"
    ):
        call(splits={"train": ("train.json", "images"), "val": ("ROUNDS/1/train.json", "images")})
    assert len(trained) == 1


def test_masks_that_the_run_may_not_use_stay_unused(scene):
    call, *_ = scene
    config = read_config("RUN")
    pathlib.Path("moon.txt").write_text("moon\n")
    config.data.mask_classes = "moon.txt"
    write_config("RUN", config)
    # One is good enough, the others are not; what people drew is in none of them.
    _, first = call(rounds=1, threshold=0.8)
    labelled, given = annotations("ROUNDS/1/train.json"), annotations("train.json")
    assert given[110]["segmentation"] and given[130]["segmentation"]
    taken = {i for i, a in labelled.items() if a["segmentation"]}
    assert taken == {i for i, a in labelled.items() if "predicted_mask" in a}
    assert 0 < len(taken) == first.num_masks < first.num_boxes_only == 5
    assert json.loads(pathlib.Path("ROUNDS/1/train.report.json").read_text())["num_hidden"] == 2


def test_the_command_says_what_came_of_the_rounds(scene, capsys):
    arguments = ["--workdir=RUN", "--output=ROUNDS", "--split=train=train.json,images", "--split=val=val.json,images"]
    assert command.main([*arguments, "--rounds=2", "--num_steps=7", "--config.optimizer.momentum=0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "round 1 of 2: ROUNDS/1" and "3  masks predicted" in lines[2]
    assert [line.split() for line in lines[-4:]] == [
        ["round", "masks", "quality", "box", "AP", "mask", "AP"],
        ["0", "-", "-", "-", "-"],
        ["1", "3", "of", "3", "0.79", "25.0", "10.0"],
        ["2", "3", "of", "3", "0.79", "25.0", "20.0"],
    ]
    config = read_config("ROUNDS/2/run")
    assert (config.train.num_steps, config.optimizer.momentum) == (7, 0.5)
    with pytest.raises(
        ValueError, match=r"got --config\.train\.num_steps=3; expected another field: the rounds set init"
    ):
        command.main([*arguments, "--config.train.num_steps=3"])
    with pytest.raises(ValueError, match="names no field: 'nothing'"):
        command.main([*arguments, "--config.model.nothing=3"])


def test_a_table_shows_what_was_measured():
    rounds = [
        self_training.Round(0, 0, None, {"bbox/all/AP": 0.5}),
        self_training.Round(9, 4, 0.625, {"bbox/all/AP": None, "segm/B/AP": 0.125}),
    ]
    assert table(rounds).splitlines() == [
        "round   masks  quality  box AP  mask AP on B",
        "    0       -        -    50.0             -",
        "    1  4 of 9     0.62       -          12.5",
    ]
