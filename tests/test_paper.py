"""The experiments of the paper by name, and the tool that runs them."""

import csv
import json
import textwrap

import jax
import jax.numpy as jnp
import pytest

from configs import embedmask, maskx_rcnn, paper
from maskx_jax.models.build import build, initialize
from maskx_jax.structures import Keypoints
from maskx_jax.training.optimizer import split_params
from tests.models.build import shapes_batch
from tools import sweep

# Rows that stand in several tables are one experiment.
DISTINCT = list({str(row): name for name, row in reversed(paper.ROWS.items())}.values())


# The rows that trace the most of the code.
USUAL = (
    "1a/random",
    "2/r101_maskx",
    "beyond/transfer_gt_boxes_hg20_box_losses",
    "beyond/transfer_prior_box_losses",
    "mask_rcnn/2c/roi_pool",
)


@pytest.mark.slow
@pytest.mark.parametrize("row", [pytest.param(row, marks=[] if row in USUAL else pytest.mark.long) for row in DISTINCT])
def test_every_row_traces_at_full_size(row):
    config = paper.get_config(f"row={row}")
    model = build(config.model, 80)
    batch = shapes_batch(1)
    if "keypoints" in model.produces:
        places = jnp.ones((1, 8, 17), bool)
        keypoints = Keypoints(jnp.zeros((1, 8, 17, 2)), places, places)
        batch = batch.replace(ground_truth=batch.ground_truth.replace(keypoints=keypoints))
    variables = jax.eval_shape(lambda: initialize(model, jax.random.key(0)))
    trained, _ = split_params(variables["params"], config.optimizer.untrained)
    total, losses = jax.eval_shape(lambda v: model.apply(v, batch, jax.random.key(0), method="losses"), variables)
    assert ("keypoint" in losses) == ("keypoints" in model.produces)
    assert total.shape == () and ("mask" in losses) == (paper.ROWS[row].predictor != "none")
    for name in ("mask_projection", "mask_pairwise", "mask_background"):
        assert (name in losses) == paper.ROWS[row].box_losses
    modules = set(trained)
    if paper.ROWS[row].stage_wise:
        assert modules == {"mask_head", "mask_weights"}
    else:
        mask_head = {"mask_head"} if "mask" in losses else set()
        assert modules > ({"head", "embed_head"} if paper.ROWS[row].embedmask else {"rpn"} | mask_head)


def test_rows_are_what_their_names_say():
    def model(row, *more):
        return paper.get_config(",".join([f"row={row}", *more])).model.rcnn

    assert model("1a/box").weight_transfer.input == "box"
    transfer = model("1b/3_layer_relu").weight_transfer
    assert (transfer.num_layers, transfer.activation) == (3, "relu")
    assert model("1c/class_agnostic_mlp").mask_head.mlp == "paper"
    assert model("1c/class_agnostic_mlp", "size=tiny").mask_head.mlp == "light"
    assert not model("1d/end_to_end_transfer_flowing").weight_transfer.stop_gradient
    assert model("1d/end_to_end_transfer").weight_transfer.stop_gradient
    assert paper.get_config("row=2/r101_maskx").model.backbone.stage_sizes == (3, 4, 23, 3)
    assert model("beyond/transfer_gt_boxes_deep").mask_head.train_on == "gt_boxes"
    assert model("beyond/transfer_gt_boxes_deep").mask_head.body == "residual"
    supervision = model("beyond/transfer_gt_boxes_deep_box_losses").box_supervision
    assert (
        supervision.enabled
        and supervision.warmup_steps == 10_000
        and not model("beyond/transfer").box_supervision.enabled
    )
    # A ninth of the 600 steps of a stage.
    assert model("beyond/transfer_box_losses", "size=tiny").box_supervision.warmup_steps == 66
    for size in ("full", "tiny", "lite"):
        scales = [
            model(f"beyond/{row}", f"size={size}").weight_transfer.init_scale
            for row in ("transfer", "transfer_small_init", "transfer_small_init_box_losses")
        ]
        assert scales == [1.0, 0.3, 0.3]
    head = model("beyond/class_agnostic_gt_boxes_hg52").mask_head
    assert (head.body, head.train_on, head.resolution) == ("hourglass", "gt_boxes", 32)
    assert head.stage_channels == (128, 128, 192, 192, 192, 256) and head.stage_blocks == (2, 2, 2, 2, 2, 4)
    head = model("beyond/oracle_gt_boxes_hg20", "size=tiny").mask_head
    assert (head.resolution, head.channels, head.stage_channels) == (16, 16, (32, 32, 48))
    prior = model("beyond/transfer_prior_box_losses")
    assert prior.class_prior and prior.box_head.body == "conv" and prior.box_supervision.enabled
    assert not model("beyond/transfer_conv").class_prior and model("beyond/transfer").box_head.body == "mlp"
    assert model("detector").mask_predictor == "none"
    assert model("mask_rcnn/2b/multinomial").mask_predictor == "multinomial"
    mlp = model("mask_rcnn/2e/mlp_3").mask_head
    assert (mlp.body, mlp.num_convs, mlp.channels) == ("mlp", 3, 1024)
    assert model("mask_rcnn/3/faster_rcnn").mask_predictor == "none"
    assert model("mask_rcnn/5/keypoint_mask").keypoint_predictor == "heatmaps"
    for row in ("mask_rcnn/5/faster_rcnn", "mask_rcnn/5/keypoint"):
        assert paper.get_config(f"row={row},size=tiny").data.shapes.keypoints


def test_rows_of_one_stage_differ_from_those_of_two_by_their_system():
    two, one = (paper.get_config(f"row=one_stage/{name},size=tiny").to_dict() for name in ("maskx", "embedmask_arxiv"))
    system = embedmask.get_config("form=arxiv,size=tiny").to_dict()
    assert one["model"] == system["model"] and one["optimizer"] == two["optimizer"] == system["optimizer"]
    assert one["data"] == two["data"] and one["train"] == two["train"]
    assert one["evaluation"]["mask_classes"] == two["evaluation"]["mask_classes"]
    for name in ("mask_threshold", "picture_score_threshold"):
        assert one["evaluation"][name] == system["evaluation"][name]
    full = paper.get_config("row=one_stage/embedmask_ijcai_transfer")
    assert full.model.dense.embed_head.transfer and not one["model"]["dense"]["embed_head"]["transfer"]
    assert full.optimizer.learning_rate == embedmask.get_config().optimizer.learning_rate


def test_rows_of_mask_rcnn_have_the_masks_of_all_classes_and_score_them_together():
    for row, size in (("mask_rcnn/2c/roi_pool", "full"), ("mask_rcnn/2c/roi_align", "tiny")):
        config = paper.get_config(f"row={row},size={size}")
        assert (config.data.mask_classes, config.evaluation.mask_classes) == ("all", None)
        assert config.model.rcnn.roi_align.operation == row.rpartition("/")[2]
        assert config.model.backbone.kind == "resnet_c4"
    assert paper.tables()["mask_rcnn/2c"][0] == "mask_rcnn/2c/roi_pool"


def test_few_pictures_train_small_heads_on_a_frozen_pretrained_backbone():
    detector = paper.get_config("row=detector,size=lite,masks=nonvoc")
    assert detector.optimizer.untrained == ("backbone/.*",) and detector.data.source == "prepared"
    assert (detector.data.mask_classes, detector.evaluation.mask_classes) == ("nonvoc", "nonvoc")
    deep = paper.get_config("row=beyond/transfer_gt_boxes_hg20_box_losses,size=lite")
    assert deep.optimizer.untrained == ("(backbone|fpn|rpn|box_head)/.*",)
    assert (deep.train.num_steps, deep.model.rcnn.box_supervision.warmup_steps) == (600, 66)
    assert (deep.model.rcnn.mask_head.resolution, deep.model.rcnn.mask_head.stage_channels) == (16, (32, 32, 48))
    model, batch = build(deep.model, 80), shapes_batch(1)
    variables = jax.eval_shape(lambda: initialize(model, jax.random.key(0)))
    total, _ = jax.eval_shape(lambda v: model.apply(v, batch, jax.random.key(0), method="losses"), variables)
    assert total.shape == ()
    for row in ("mask_rcnn/2c/roi_pool", "one_stage/embedmask_ijcai"):
        with pytest.raises(ValueError, match=r"^got size=lite for a row of EmbedMask"):
            paper.get_config(f"row={row},size=lite")
    assert paper.same_experiment("mask_rcnn/3/mask_rcnn", "lite") == "mask_rcnn/2a/r50"
    with pytest.raises(ValueError, match=r"^variants size=lite and backbone=r50 exclude"):
        maskx_rcnn.get_config("size=lite,backbone=r50")


def test_a_number_of_the_paper_is_that_of_the_masks_chosen():
    row = paper.ROWS["1a/cls"]
    assert (row.published(""), row.published("voc"), row.published("nonvoc")) == (18.1, 18.1, 25.2)
    assert row.published("random(1,20)") is None
    assert paper.ROWS["mask_rcnn/2c/roi_pool"].published("") == 26.9
    assert paper.ROWS["one_stage/embedmask_ijcai"].published("") is None


def test_the_oracle_learns_all_masks_and_is_scored_on_the_classes_without():
    config = paper.get_config("row=2/r50_oracle,masks=nonvoc")
    assert (config.data.mask_classes, config.evaluation.mask_classes) == ("all", "nonvoc")
    config = paper.get_config("row=2/r50_maskx,masks=nonvoc")
    assert (config.data.mask_classes, config.evaluation.mask_classes) == ("nonvoc", "nonvoc")


def test_boxes_alone_have_no_masks_whatever_is_scored_as_a(output):
    config = paper.get_config("row=beyond/transfer_boxes_alone,masks=nonvoc")
    assert (config.data.mask_classes, config.evaluation.mask_classes) == ("none", "nonvoc")
    supervision = config.model.rcnn.box_supervision
    assert supervision.enabled and supervision.widening == 1.6 and supervision.background_weight == 0.1
    assert paper.get_config("row=beyond/transfer_box_losses").model.rcnn.box_supervision.widening == 1.2
    sweep.main(["--row=beyond/transfer_boxes_alone", "--size=tiny", "--masks=random(2,50)", f"--output={output}"])
    options = calls(output)[-1]
    assert options["config.evaluation.mask_classes"] == "random(2,50)" and "config.data.mask_classes" not in options


def test_r101_is_trained_with_8_images_a_step_for_twice_as_long():
    config = paper.get_config("row=2/r101_maskx")
    assert (config.train.batch_size, config.train.num_steps, config.optimizer.learning_rate) == (8, 180_000, 0.01)


FAKE_TRAIN = """
    import json, pathlib, sys
    options = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[1:])
    workdir = pathlib.Path(options["workdir"])
    with (workdir.parent / "calls").open("a") as calls:
        calls.write(json.dumps(options) + "\\n")
    if (workdir.parent / "fail").exists():
        sys.exit(3)
    value = float(options["config.seed"]) / 10
    metrics = {"step": 7, "bbox/all/AP": 0.5, "segm/all/AP": 0.3}
    if "mask_rcnn/" not in options["config"]:
        metrics |= {"segm/A/AP": 0.4, "segm/B/AP": 0.2 + value}
    (workdir / "config.json").write_text(json.dumps({"train": {"num_steps": 7}}))
    lines = [json.dumps({"step": 4, "train/total": 1}), json.dumps(metrics)]
    (workdir / "metrics.jsonl").write_text("\\n".join(lines) + "\\n")
"""


@pytest.fixture
def output(tmp_path, monkeypatch):
    """Return the folder of a sweep whose train.py writes metrics and trains nothing."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/train.py").write_text(textwrap.dedent(FAKE_TRAIN))
    monkeypatch.setattr(sweep, "TRAIN", tmp_path / "code/train.py")
    (tmp_path / "sweep").mkdir()
    return tmp_path / "sweep"


def calls(output):
    file = output / "calls"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_sweep_runs_every_row_and_seed_once_and_tells_mean_and_deviation(output, capsys):
    arguments = ["--row=1d/end_to_end_transfer", "--row=2/r50_oracle", "--seeds=0,2", f"--output={output}"]
    assert sweep.main([*arguments, "--masks=nonvoc", "--", "--config.train.num_steps=7"]) == 0
    first = calls(output)
    assert [call["config.seed"] for call in first] == ["0", "2", "0", "2"]
    assert all(
        call["config.train.num_steps"] == "7" and call["config.evaluation.mask_classes"] == "nonvoc" for call in first
    )
    # The oracle keeps all masks.
    assert [call.get("config.data.mask_classes") for call in first] == ["nonvoc", "nonvoc", None, None]
    table = (output / "table.md").read_text()
    assert table in capsys.readouterr().out
    row = next(line for line in table.splitlines() if "end_to_end" in line)
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:3] == ["1d/end_to_end_transfer", "nonvoc", "2"]
    assert cells[3:] == ["50.0 ± 0.0", "30.0 ± 0.0", "40.0 ± 0.0", "30.0 ± 14.1", "-", "-", "100 %", "27.6"]
    with (output / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["row"], row["seed"], row["segm/B/AP"]) for row in rows[:2]] == [
        ("1d/end_to_end_transfer", "0", "0.2"),
        ("1d/end_to_end_transfer", "2", "0.4"),
    ]
    # Given again, it runs nothing.
    assert sweep.main([*arguments, "--masks=nonvoc"]) == 0
    assert calls(output) == first


def test_an_oracle_is_of_the_same_detector_and_if_there_is_one_of_the_same_mask_head():
    names = ["beyond/oracle", "beyond/oracle_gt_boxes_hg20", "2/r50_oracle", "2/r101_oracle", "beyond/transfer"]
    names += ["beyond/oracle_conv", "beyond/oracle_prior"]
    for row, oracle in (
        ("beyond/transfer_gt_boxes_hg20", "beyond/oracle_gt_boxes_hg20"),
        ("beyond/transfer_gt_boxes_hg52", "beyond/oracle"),
        ("beyond/transfer_deep", "beyond/oracle"),
        ("1c/transfer_mlp", "beyond/oracle"),
        ("2/r101_maskx", "2/r101_oracle"),
        ("one_stage/embedmask_ijcai", "2/r50_oracle"),
        ("2/r50_oracle", "2/r50_oracle"),
        ("beyond/transfer_prior", "beyond/oracle_prior"),
        ("beyond/class_agnostic_deep_prior", "beyond/oracle_conv"),
    ):
        assert paper.ROWS[row].oracles(names) == [oracle], row
    assert paper.ROWS["mask_rcnn/2c/roi_pool"].oracles(names) == []


def test_each_row_of_a_table_is_a_fraction_of_its_own_oracle(output):
    arguments = ["--row=2/r50_oracle", "--row=2/r101_oracle", "--row=2/r101_maskx", "--seeds=0", f"--output={output}"]
    assert sweep.main(arguments) == 0
    # Another oracle's number counts for nothing.
    other = output / "2_r50_oracle-seed0/metrics.jsonl"
    other.write_text(other.read_text().replace('"segm/B/AP": 0.2', '"segm/B/AP": 0.8'))
    assert sweep.main(arguments) == 0
    rows = [line.split("|") for line in (output / "table.md").read_text().splitlines()[2:]]
    assert [(row[1].strip(), row[7].strip(), row[10].strip()) for row in rows] == [
        ("2/r50_oracle", "80.0", "100 %"),
        ("2/r101_oracle", "20.0", "100 %"),
        ("2/r101_maskx", "20.0", "100 %"),
    ]


def test_rows_whose_classes_all_have_masks_have_a_table_without_a_and_b(output):
    assert sweep.main(["--row=mask_rcnn/2c/roi_pool", "--size=tiny", "--seeds=0,1", f"--output={output}"]) == 0
    row = (output / "table.md").read_text().splitlines()[-1]
    cells = ["mask_rcnn/2c/roi_pool", "own", "2", "50.0 ± 0.0", "30.0 ± 0.0", *["-"] * 6]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == cells


def test_stage_wise_rows_start_from_a_detector_of_their_seed(output):
    sweep.main(["--row=1a/cls", "--row=1a/box", "--seeds=5", "--size=tiny", f"--output={output}"])
    sweep.main(["--row=1a/cls", "--size=lite", f"--output={output / 'lite'}", "--", "--config.initialize.path=LITE0"])
    lite = calls(output / "lite")
    assert [call["config.initialize.path"] for call in lite] == ["LITE0", str(output / "lite/detector-seed0")]
    configs = [call["config"].split("row=")[1] for call in calls(output)]
    assert configs == ["detector,size=tiny", "1a/cls,size=tiny", "1a/box,size=tiny"]
    detector = calls(output)[0]["workdir"]
    assert [call.get("config.initialize.path") for call in calls(output)] == [None, detector, detector]


def test_a_row_of_several_tables_is_one_experiment():
    assert paper.same_experiment("1c/transfer", "full") == paper.same_experiment("beyond/transfer", "full")
    assert paper.same_experiment("1c/transfer", "full") == "1a/cls+box"
    # The tiny set's T sees the class weights alone.
    assert paper.same_experiment("1c/transfer", "tiny") == "1a/cls"
    assert paper.same_experiment("2/r50_maskx", "full") == "2/r50_maskx"


def test_a_sweep_runs_a_row_of_several_tables_once(output):
    sweep.main(["--row=1d/end_to_end_class_agnostic", "--row=2/r50_class_agnostic", f"--output={output}"])
    assert len(calls(output)) == 1


def test_a_run_that_fails_is_told_and_tried_again(output, capsys):
    (output / "fail").touch()
    arguments = ["--row=2/r50_maskx", f"--output={output}"]
    assert sweep.main(arguments) == 1
    assert "failed: Run(row='2/r50_maskx'" in capsys.readouterr().err
    (output / "fail").unlink()
    assert sweep.main(arguments) == 0
    assert len(calls(output)) == 2


def test_a_run_that_stopped_before_its_last_step_is_not_finished(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"train": {"num_steps": 9}}))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 7, "bbox/all/AP": 0.5}) + "\n")
    assert sweep.final_metrics(tmp_path) is None
    # Killed while it wrote its last line: it goes on from its checkpoint.
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 9, "bbox/all/')
    assert sweep.final_metrics(tmp_path) is None
