"""Keypoints are scored by OKS: the published numbers, a slow reference, and what a ground truth must say."""

import copy
import json

import numpy as np
import pytest

from maskx_jax.coco.keypoints import PERSON
from maskx_jax.evaluation import matching, metrics, results, scores
from tests.reference import oks as reference

PUBLISHED = {
    "AP": 0.5048844884,
    "AP50": 0.7227722772,
    "AP75": 0.6336633663,
    "APm": 0.4663366337,
    "APl": 0.7504950495,
    "AR": 0.5181818182,
    "AR50": 0.7272727273,
    "AR75": 0.6363636364,
    "ARm": 0.4666666667,
    "ARl": 0.75,
}
SIGMAS = [0.1, 0.05, 0.3]
CLASSES = {
    4: {"keypoints": ["top", "left_end", "right_end"], "skeleton": [[1, 2], [1, 3]], "keypoint_sigmas": SIGMAS},
    7: {},
}
CLASSES[9] = CLASSES[4]


@pytest.fixture
def published(fixtures):
    return fixtures("keypoints_dataset_gt_dataset.json"), fixtures("keypoints_dataset_dt_dataset.json")


@pytest.mark.parametrize("backend", matching.BACKENDS)
def test_published_keypoints_get_their_published_scores(published, backend):
    measured = metrics.score(*published, ["keypoints"], backend=backend)
    assert list(measured["keypoints"]) == ["all"]
    assert measured["keypoints"]["all"] == pytest.approx(PUBLISHED, rel=0, abs=1e-10)
    assert list(measured["keypoints"]["all"]) == list(PUBLISHED)
    assert measured["per_class"]["person"]["keypoints"] == measured["keypoints"]["all"]["AP"]


def scene(seed):
    """Objects of two classes with three keypoints and one without, detected more or less well, with ties."""
    random = np.random.default_rng(seed)
    truths, found = [], []

    def points(center, spread):
        return np.round(center + random.normal(0, spread, (3, 2)), 1)

    def entry(image, category_id, places, flags):
        return {
            "image_id": image,
            "category_id": category_id,
            "keypoints": np.concatenate([places, np.array(flags)[:, None]], axis=1).reshape(-1).tolist(),
        }

    for image in (1, 2, 3):
        for _ in range(random.integers(0, 6)):
            category_id = int(random.choice([4, 4, 9, 7]))
            center, side = random.uniform(20, 180, 2), float(random.choice([20, 60, 150]))
            places, flags = points(center, side / 4), random.choice([0, 1, 2], 3, p=[0.4, 0.2, 0.4])
            if random.random() < 0.2:
                flags[:] = 0
            truth = entry(image, category_id, places * (flags > 0)[:, None], flags)
            box = [*np.round(center - side / 2, 1).tolist(), side, side]
            truth |= {"id": len(truths), "bbox": box, "area": 0.6 * side * side, "iscrowd": int(random.random() < 0.15)}
            truths.append(truth)
            for _ in range(random.integers(0, 4)):
                moved = points(places, random.choice([0, side / 15, side / 4]))
                found.append(entry(image, category_id, moved, [0.5] * 3) | {"score": int(random.integers(1, 6)) / 8})
        for _ in range(random.integers(0, 25)):
            wrong = points(random.uniform(0, 200, 2), 20)
            found.append(entry(image, int(random.choice([4, 9])), wrong, [0.5] * 3) | {"score": 0.25})
    ground_truth = {
        "images": [{"id": image, "height": 200, "width": 200} for image in (1, 2, 3)],
        "categories": [{"id": category_id, "name": str(category_id), **said} for category_id, said in CLASSES.items()],
        "annotations": truths,
    }
    return ground_truth, found


def test_random_scenes_equal_the_reference():
    seen = []
    for seed in range(8):
        ground_truth, found = scene(seed)
        expected = reference.numbers((1, 2, 3), ground_truth["annotations"], found, (4, 9), SIGMAS)
        seen.append(expected)
        # What no class with keypoints has, nothing reads; and no keypoints are the same as none with a place.
        for entry in (*ground_truth["annotations"], *found):
            if entry["category_id"] == 7 or ("area" in entry and not any(entry["keypoints"][2::3])):
                del entry["keypoints"]
        for annotation in ground_truth["annotations"][::2]:
            annotation["ignore"] = annotation.pop("iscrowd")
        before = copy.deepcopy((ground_truth, found))
        for backend in matching.BACKENDS:
            measured = metrics.score(ground_truth, found, ["keypoints"], {"A": [4], "B": [9]}, backend)
            assert {name for name, value in expected.items() if value is None} == {
                name for name, value in measured["keypoints"]["all"].items() if value is None
            }
            for name, value in measured["keypoints"]["all"].items():
                assert (value or 0) == pytest.approx(expected[name] or 0, rel=0, abs=1e-12), (seed, backend, name)
            assert list(measured["keypoints"]) == ["all"]
            assert measured["per_class"]["7"]["keypoints"] is None
            assert "harmonic_mean" not in measured
        assert (ground_truth, found) == before
        assert measured["num_ignored_without_keypoints"] == sum(
            annotation["category_id"] != 7 and "keypoints" not in annotation
            for annotation in ground_truth["annotations"]
        )
    assert sum(0.05 < values["AP"] < 0.95 for values in seen if values["AP"] is not None) >= 4


def test_other_kinds_are_scored_beside_keypoints(published):
    ground_truth, found = published
    both = metrics.score(ground_truth, found, ["bbox", "keypoints"])
    assert both["bbox"]["all"] == metrics.score(ground_truth, found, ["bbox"])["bbox"]["all"]
    table = scores.format_table(both).splitlines()
    assert table[0].split()[:4] == ["AP", "AP50", "AP75", "APs"] and table[2].split()[-4:] == [
        "AR50",
        "AR75",
        "ARm",
        "ARl",
    ]
    assert table[3].split()[:3] == ["pose", "all", "50.5"]
    assert "objects without keypoints, ignored for pose AP: 3" in "\n".join(table)
    assert "pose AP" in scores.format_class_table(both)
    flat = scores.flatten(both)
    assert set(flat) == scores.metric_names(("bbox", "keypoints"), (), 100)
    assert flat["keypoints/all/AP"] == pytest.approx(PUBLISHED["AP"], abs=1e-10)
    assert "keypoints/A/AP" not in scores.metric_names(("keypoints",), ("A", "B"), 100)


def test_a_file_of_keypoints_is_scored(published, tmp_path):
    ground_truth, found = published
    (tmp_path / "truth.json").write_text(json.dumps(ground_truth))
    for entry in found:
        del entry["bbox"]
    results.write_results(tmp_path / "results.json", found)
    measured = scores.score_file(tmp_path / "results.json", tmp_path / "truth.json")
    assert "bbox" not in measured
    assert measured["keypoints"]["all"]["AP"] == pytest.approx(PUBLISHED["AP"], abs=1e-10)


def test_boxes_are_scored_on_annotations_without_keypoints(published, tmp_path, caplog):
    ground_truth, found = published
    del ground_truth["categories"][0]["keypoints"]
    (tmp_path / "truth.json").write_text(json.dumps(ground_truth))
    results.write_results(tmp_path / "results.json", found)
    measured = scores.score_file(tmp_path / "results.json", tmp_path / "truth.json")
    assert "bbox" in measured and "keypoints" not in measured
    assert "the annotations have no keypoints: those of the results are not scored" in caplog.text


@pytest.mark.parametrize("backend", matching.BACKENDS)
def test_perfect_keypoints_score_one_and_none_score_zero(backend):
    ground_truth, _ = scene(1)
    labelled = [a for a in ground_truth["annotations"] if a["category_id"] != 7 and any(a["keypoints"][2::3])]
    found = [{key: a[key] for key in ("image_id", "category_id", "keypoints")} | {"score": 0.5} for a in labelled]
    assert metrics.score(ground_truth, found, ["keypoints"], backend=backend)["keypoints"]["all"][
        "AP"
    ] == pytest.approx(1)
    assert metrics.score(ground_truth, [], ["keypoints"], backend=backend)["keypoints"]["all"]["AP"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoint_sigmas": None}, "keypoints 'top', ... have no sigmas.* expected 3 numbers as 'keypoint_sigmas' of"),
        ({"keypoint_sigmas": [0.1, 0.2]}, r"category '4': got sigmas \(0.1, 0.2\); expected 3 positive numbers"),
        ({"skeleton": [[1, 9]]}, r"category '4': 'skeleton' has \[1, 9\]; expected pairs of numbers from 1 to 3"),
        ({"skeleton": [1, 2]}, "category '4': 'skeleton' has 1; expected pairs"),
        ({"keypoints": ["a", "a", "b"]}, "category '4': .* expected one or more names, each once"),
    ],
)
def test_wrong_categories(change, message):
    ground_truth, found = scene(1)
    for category in (ground_truth["categories"][0], ground_truth["categories"][2]):
        category |= change
    with pytest.raises(ValueError, match=message) as caught:
        metrics.score(ground_truth, found, ["keypoints"])
    assert "\n" not in str(caught.value)
    assert metrics.score(ground_truth, [], ["bbox"])["bbox"]["all"]["AP"] == 0


def test_a_ground_truth_without_keypoints_cannot_be_scored_by_them():
    ground_truth, found = scene(1)
    ground_truth["categories"] = [{"id": i, "name": str(i)} for i in CLASSES]
    with pytest.raises(ValueError, match="no category has keypoints; expected the names of one's under 'keypoints'"):
        metrics.score(ground_truth, found, ["keypoints"])


@pytest.mark.parametrize("wrong", [[1, 2, 3], [0.0] * 8 + [float("nan")], "012345678", [None] * 9])
def test_wrong_keypoints_are_named(wrong):
    ground_truth, found = scene(1)
    index = next(i for i, entry in enumerate(found) if entry["category_id"] == 4)
    with pytest.raises(ValueError, match=rf"results\[{index}\]: keypoints .*; expected 9 finite numbers \[x1, y1, v1"):
        metrics.score(ground_truth, [*found[:index], found[index] | {"keypoints": wrong}], ["keypoints"])
    index = next(i for i, entry in enumerate(ground_truth["annotations"]) if entry["category_id"] == 4)
    ground_truth["annotations"][index]["keypoints"] = wrong
    with pytest.raises(
        ValueError, match=rf"annotations\[{index}\], id {index}: keypoints .*; expected 9 finite numbers"
    ):
        metrics.score(ground_truth, found, ["keypoints"])


def test_a_person_is_known_by_its_names(published):
    ground_truth, found = published
    shuffled = copy.deepcopy(ground_truth)
    shuffled["categories"][0]["keypoint_sigmas"] = list(PERSON.sigmas)
    assert metrics.score(shuffled, found, ["keypoints"]) == metrics.score(ground_truth, found, ["keypoints"])
