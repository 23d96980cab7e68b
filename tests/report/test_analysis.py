"""What is said of detections: each against small cases made by hand, and hotcoco's own numbers of the same."""

import json

import numpy as np
import pytest

from maskx_jax.report import tide
from maskx_jax.report.analysis import analyse, class_names, confusion, curves, difference, label_groups
from maskx_jax.report.bootstrap import draws
from maskx_jax.report.inputs import Dataset, Model, open_files
from maskx_jax.report.matches import IGNORED, OUTCOMES, Prepared, outcomes, read_matches
from tests.report.made import boxes, results, truth

BOX, NEAR, HALF, FAR = [10, 10, 20, 20], [10, 10, 20, 19], [20, 10, 20, 20], [70, 10, 20, 20]
# By case: objects, detections, what each detection is, and TIDE's number of each error.
CASES = {
    "correct": ([(1, 1, BOX, 0)], [(1, 1, NEAR, 0.9)], ["correct"], {}),
    "another class": ([(1, 2, BOX, 0)], [(1, 1, BOX, 0.9)], ["class"], {"Cls": 1}),
    "another place": ([(1, 1, BOX, 0)], [(1, 1, HALF, 0.9)], ["location"], {"Loc": 1}),
    "both": ([(1, 2, BOX, 0)], [(1, 1, HALF, 0.9)], ["both"], {"Both": 1, "Miss": 1}),
    "found twice": ([(1, 1, BOX, 0)], [(1, 1, BOX, 0.9), (1, 1, NEAR, 0.8)], ["correct", "duplicate"], {"Dupe": 1}),
    "nothing there": ([(1, 2, BOX, 0)], [(1, 1, FAR, 0.9)], ["background"], {"Bkg": 1, "Miss": 1}),
    "no object at all": ([(1, 1, BOX, 1)], [(1, 2, FAR, 0.9)], ["background"], {"Bkg": 1}),
    "in a crowd": ([(1, 1, [0, 0, 60, 60], 1)], [(1, 1, BOX, 0.9)], ["ignored"], {}),
    "in a crowd of another class": ([(1, 2, [0, 0, 60, 60], 1)], [(1, 1, BOX, 0.9)], ["background"], {"Bkg": 1}),
}


def matched(objects, found):
    prepared = Prepared(truth(objects), ("bbox",), 100)
    scored = prepared.scored(boxes(found))
    datasets = prepared.datasets(scored, "bbox")
    evaluator = prepared.evaluator(datasets, "bbox")
    matches, ids = read_matches(evaluator, datasets, range(len(scored)))
    return evaluator, datasets, ids, outcomes(matches, datasets, ids, "bbox")[0]


@pytest.mark.parametrize("case", CASES)
def test_a_detection_is_what_tide_says(case):
    objects, found, expected, counts = CASES[case]
    evaluator, _, ids, kinds = matched(objects, found)
    assert {i: OUTCOMES[kind] for i, kind in zip(ids.tolist(), kinds, strict=True)} == dict(enumerate(expected, 1))
    assert {name: number for name, number in evaluator.tide_errors()["counts"].items() if number} == counts


def test_tide_says_how_much_ap_an_error_costs():
    # One of two classes is perfect; of the other the only detection has the wrong place.
    evaluator, *_ = matched([(1, 1, BOX, 0), (1, 2, FAR, 0)], [(1, 1, BOX, 0.9), (1, 2, [80, 10, 20, 20], 0.8)])
    found = evaluator.tide_errors()
    assert found["ap_base"] == pytest.approx(0.5)
    assert found["delta_ap"]["Loc"] == pytest.approx(0.5) and found["delta_ap"]["Cls"] == 0


NAMES = {"Cls": "class", "Loc": "location", "Both": "both", "Dupe": "duplicate", "Bkg": "background", "Miss": "missed"}


@pytest.mark.parametrize(("seed", "found"), [(0, 0.8), (1, 0.9), (2, 0.4)])
def test_ap_lost_by_class_has_the_mean_that_tide_has(shapes_truth, seed, found):
    made = results(shapes_truth, seed=seed, found=found)
    prepared = Prepared(shapes_truth, ("segm",), 100)
    datasets = prepared.datasets(made, "segm")
    evaluator = prepared.evaluator(datasets, "segm")
    expected = evaluator.tide_errors()["delta_ap"]
    matches, ids = read_matches(evaluator, datasets, range(len(made)))
    lost = tide.lost(matches, *outcomes(matches, datasets, ids, "segm"))
    for short, name in NAMES.items():
        assert np.nanmean(lost[name]) == pytest.approx(expected[short], abs=1e-12), name


def test_an_error_of_class_costs_the_class_of_its_object():
    # The object of class 2 is found as class 1, behind what is right of class 1: AP of class 1 loses nothing.
    objects, found = [(1, 1, FAR, 0), (1, 2, BOX, 0)], [(1, 1, FAR, 0.9), (1, 1, BOX, 0.8)]
    prepared = Prepared(truth(objects), ("bbox",), 100)
    datasets = prepared.datasets(boxes(found), "bbox")
    matches, ids = read_matches(prepared.evaluator(datasets, "bbox"), datasets, range(2))
    lost = tide.lost(matches, *outcomes(matches, datasets, ids, "bbox"))
    assert lost["class"].tolist() == [0.0, 1.0] and lost["missed"].tolist() == [0.0, 0.0]


def test_confusion_counts_each_object_once_and_leaves_out_crowds():
    objects = [(1, 1, BOX, 0), (1, 2, FAR, 0), (1, 1, [40, 40, 50, 50], 1)]
    # Of class 1 as 2; of class 2 missed; inside of the crowd; and too low a score.
    found = [(1, 2, BOX, 0.9), (1, 1, [45, 45, 20, 20], 0.8), (1, 2, FAR, 0.1)]
    _, datasets, ids, kinds = matched(objects, found)
    tables = confusion(datasets, ids[kinds == IGNORED], "bbox", 100)
    cells = {table["score"]: sorted(map(tuple, table["cells"])) for table in tables}
    assert cells[0.5] == [(0, 1, 1), (1, 2, 1)]
    assert cells[0.05] == [(0, 1, 1), (1, 1, 1)]


def test_calibration_compares_scores_with_what_is_right():
    objects = [(image, 1, BOX, 0) for image in range(1, 5)]
    # Of four detections with a score of 0.85 three are right, and of two with 0.15 none.
    found = [(image, 1, BOX if image < 4 else FAR, 0.85) for image in range(1, 5)]
    found += [(image, 1, FAR, 0.15) for image in (1, 2)]
    calibration = matched(objects, found)[0].calibration(n_bins=10, iou_threshold=0.5)
    filled = {round(b["avg_confidence"], 2): (b["avg_accuracy"], b["count"]) for b in calibration["bins"] if b["count"]}
    assert filled == {0.85: (0.75, 4), 0.15: (0.0, 2)}
    assert calibration["ece"] == pytest.approx((4 * 0.1 + 2 * 0.15) / 6)


def test_curves_are_coco_s_and_none_without_objects():
    evaluator, *_ = matched([(1, 1, BOX, 0), (2, 1, BOX, 0)], [(1, 1, BOX, 0.9), (2, 1, FAR, 0.95)])
    found = curves(evaluator)
    # Half of the objects, behind a wrong detection with a higher score.
    assert found["AP50"][0] == [500] * 51 + [0] * 50
    assert found["AP50"][1] is None


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_numbers_agree_with_the_scores_and_with_tide_on_real_images(kind, eval_fixtures):
    dataset, (model,) = open_files(
        {"model": eval_fixtures / f"instances_val2014_fake{kind}100_results.json"},
        eval_fixtures / "instances_val2014_100.json",
        with_masks="voc",
    )
    found = analyse(dataset, model, Prepared(dataset.ground_truth, dataset.kinds, 100), draws(100, 20))
    measured = found.draws[kind][:, 0]
    assert np.nanmean(measured) == pytest.approx(found.measured[kind]["all"]["AP"], abs=1e-12)
    per_class = [found.measured["per_class"][name][kind] for name in class_names(dataset)]
    known = np.array([np.nan if value is None else value for value in per_class])
    np.testing.assert_allclose(measured.mean(axis=0), known, atol=1e-12)
    groups = label_groups(dataset)
    assert np.nanmean(measured[:, groups["B"]]) == pytest.approx(found.measured[kind]["B"]["AP"], abs=1e-12)
    counts, total = found.kinds[kind]["outcomes"]["all"], found.kinds[kind]["errors"]["counts"]
    wrong = [short for short in NAMES if short != "Miss"]
    assert {short: counts[NAMES[short]] for short in wrong} == {short: total[short] for short in wrong}
    assert counts["correct"] + counts["missed"] == counts["objects"] == 830


def test_a_better_model_has_an_interval_above_zero():
    objects = [(image, label, BOX, 0) for image in range(1, 41) for label in (1, 2)]
    ground_truth = truth(objects)
    rng = np.random.default_rng(0)
    good = [(image, label, BOX, rng.random()) for image, label, *_ in objects if rng.random() < 0.9]
    poor = [(image, label, BOX, rng.random()) for image, label, *_ in objects if rng.random() < 0.5]
    dataset = Dataset(ground_truth, {"A": [1], "B": [2]}, ("bbox",))
    prepared, weights = Prepared(ground_truth, ("bbox",), 100), draws(40, 100)
    first, second = (
        analyse(dataset, Model(t, boxes(f)), prepared, weights) for t, f in (("poor", poor), ("good", good))
    )
    found = difference(second, first, "bbox", label_groups(dataset))
    gained = second.measured["bbox"]["B"]["AP"] - first.measured["bbox"]["B"]["AP"]
    low, high = found["B"]["AP"]
    assert 0 < low < gained < high
    assert difference(first, first, "bbox", label_groups(dataset))["all"]["AP"] == [0.0, 0.0]


def test_results_with_every_kind_of_error_have_each(shapes_truth):
    dataset = Dataset(shapes_truth, {}, ("bbox", "segm"))
    found = analyse(
        dataset, Model("made", results(shapes_truth)), Prepared(shapes_truth, dataset.kinds, 100), draws(60, 2)
    )
    assert all(found.kinds["segm"]["outcomes"]["all"][name] for name in OUTCOMES if name != "ignored")


def test_a_report_is_of_boxes_and_masks_and_says_so(eval_fixtures, tmp_path, caplog):
    truth_path = eval_fixtures / "keypoints_dataset_gt_dataset.json"
    results_path = eval_fixtures / "keypoints_dataset_dt_dataset.json"
    dataset, _ = open_files({"poses": results_path}, truth_path)
    assert dataset.kinds == ("bbox",)
    assert "keypoints are not in a report" in caplog.text
    alone = [{k: v for k, v in entry.items() if k != "bbox"} for entry in json.loads(results_path.read_text())]
    (tmp_path / "alone.json").write_text(json.dumps(alone))
    with pytest.raises(
        ValueError, match=r"got results with keypoints; expected boxes \(bbox\) in all of them, or masks"
    ):
        open_files({"poses": tmp_path / "alone.json"}, truth_path)
