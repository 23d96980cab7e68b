import contextlib
import copy
import io
import json

import numpy as np
import pytest
from faster_coco_eval import mask as mask_coder
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskx_jax.evaluation import metrics as coco_metrics
from maskx_jax.evaluation import scores
from tests.reference import boundary_iou as reference

BACKENDS = ["pycocotools", "faster_coco_eval", "hotcoco"]
TWELVE = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def pycocotools_numbers(ground_truth, results, kind, category_ids=None):
    """The twelve numbers of plain pycocotools; category_ids restricts the evaluation."""
    with contextlib.redirect_stdout(io.StringIO()):
        source = COCO()
        source.dataset = copy.deepcopy(ground_truth)
        source.createIndex()
        evaluator = COCOeval(source, source.loadRes(copy.deepcopy(results)), kind)
        if category_ids is not None:
            evaluator.params.catIds = list(category_ids)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


def numbers(metrics, kind, group="all"):
    return [-1 if metrics[kind][group][name] is None else metrics[kind][group][name] for name in TWELVE]


def square(x, y, side=40):
    """A box of `side` pixels and its mask, in the terms of an annotation."""
    return {
        "bbox": [x, y, side, side],
        "area": side * side,
        "segmentation": [[x, y, x + side, y, x + side, y + side, x, y + side]],
    }


def detection(annotation, score, **changes):
    """The annotation as a perfect result."""
    x, y, w, h = annotation["bbox"]
    bitmap = np.zeros((100, 100), np.uint8, order="F")
    bitmap[y : y + h, x : x + w] = 1
    counts = mask_coder.encode(bitmap)["counts"].decode()
    return {
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "bbox": annotation["bbox"],
        "score": score,
        "segmentation": {"size": [100, 100], "counts": counts},
    } | changes


@pytest.fixture
def tiny():
    """Two images, three classes of which the last has no object."""
    return {
        "images": [{"id": 1, "height": 100, "width": 100}, {"id": 2, "height": 100, "width": 100}],
        "categories": [{"id": 5, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 8, "name": "cow"}],
        "annotations": [
            {"id": 11, "image_id": 1, "category_id": 3, "iscrowd": 0, **square(0, 0)},
            {"id": 12, "image_id": 1, "category_id": 5, "iscrowd": 0, **square(50, 50)},
            {"id": 13, "image_id": 2, "category_id": 5, "iscrowd": 0, **square(10, 10)},
        ],
    }


def perfect(ground_truth):
    return [detection(a, 0.9 - 0.1 * i) for i, a in enumerate(ground_truth["annotations"])]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind, expected", [("bbox", (0.505, 0.697, 0.573)), ("segm", (0.320, 0.562, 0.299))])
def test_published_results_get_their_published_scores(fixtures, kind, expected, backend):
    ground_truth = fixtures("instances_val2014_100.json")
    results = fixtures(f"instances_val2014_fake{kind}100_results.json")
    metrics = coco_metrics.score(ground_truth, results, [kind], backend=backend)
    assert tuple(round(metrics[kind]["all"][name], 3) for name in ("AP", "AP50", "AP75")) == expected


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_groups_equal_pycocotools_on_the_group(fixtures, kind):
    ground_truth = fixtures("instances_val2014_100.json")
    results = fixtures(f"instances_val2014_fake{kind}100_results.json")
    ids = [category["id"] for category in ground_truth["categories"]]
    groups = {"A": ids[::3], "B": [i for i in reversed(ids) if i not in ids[::3]], "one": [18]}
    metrics = coco_metrics.score(ground_truth, results, [kind], groups, backend="pycocotools")
    for group, members in {"all": None, **groups}.items():
        # To the last bit: the same numbers, averaged in the same order.
        assert numbers(metrics, kind, group) == list(pycocotools_numbers(ground_truth, results, kind, members)), group


@pytest.mark.parametrize("backend", ["faster_coco_eval", "hotcoco"])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_backends_agree_with_pycocotools(fixtures, kind, backend):
    ground_truth = fixtures("instances_val2014_100.json")
    results = fixtures(f"instances_val2014_fake{kind}100_results.json")
    groups = {"A": [1, 2, 3, 18], "B": [44, 62, 63, 64]}
    ours, theirs = (
        coco_metrics.score(ground_truth, results, [kind], groups, backend=b) for b in ("pycocotools", backend)
    )
    for group in ("all", "A", "B"):
        # Recalls have to be equal. Each precision may differ by 2**-52, which pycocotools adds to a denominator.
        np.testing.assert_allclose(numbers(ours, kind, group), numbers(theirs, kind, group), rtol=0, atol=1e-15)
        assert numbers(ours, kind, group)[6:] == numbers(theirs, kind, group)[6:]


@pytest.mark.parametrize("backend", ["faster_coco_eval", "hotcoco"])
def test_crowds_and_ignored_objects_agree(fixtures, backend):
    ground_truth = fixtures("dataset_gt_ignore_test.json")
    results = fixtures("dataset_dt_ignore_test.json")
    ours, theirs = (coco_metrics.score(ground_truth, results, ["bbox"], backend=b) for b in ("pycocotools", backend))
    np.testing.assert_allclose(numbers(ours, "bbox"), numbers(theirs, "bbox"), rtol=0, atol=1e-15)
    # Plain pycocotools cannot take the file's image id "2299", a string.
    for entry in ground_truth["images"]:
        entry["id"] = int(entry["id"])
    for entry in ground_truth["annotations"]:
        entry["image_id"] = int(entry["image_id"])
    assert numbers(ours, "bbox") == list(pycocotools_numbers(ground_truth, results, "bbox"))
    assert 0.1 < ours["bbox"]["all"]["AP"] < 0.9


@pytest.mark.parametrize("backend", BACKENDS)
def test_perfect_detections_score_one(tiny, backend):
    metrics = coco_metrics.score(tiny, perfect(tiny), groups={"A": [3], "B": [5, 8]}, backend=backend)
    for kind in ("bbox", "segm"):
        for group in ("all", "A", "B"):
            values = metrics[kind][group]
            assert [values[name] for name in ("AP", "AP50", "APm", "AR100", "ARm")] == pytest.approx([1] * 5, abs=1e-12)
            # No object is that small or that large.
            assert values["APs"] is values["APl"] is values["ARs"] is values["ARl"] is None
        assert metrics["harmonic_mean"][kind] == pytest.approx(1, abs=1e-12)
    assert metrics["per_class"]["dog"]["groups"] == ["A"]
    assert metrics["per_class"]["cow"] == {"groups": ["B"], "bbox": None, "segm": None}
    assert metrics["num_ignored_without_mask"] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_missed_class_scores_zero(tiny, backend):
    results = [result for result in perfect(tiny) if result["category_id"] != 3]
    metrics = coco_metrics.score(tiny, results, groups={"A": [3], "B": [5]}, backend=backend)
    for kind in ("bbox", "segm"):
        assert metrics[kind]["A"]["AP"] == 0 and metrics[kind]["B"]["AP"] == pytest.approx(1, abs=1e-12)
        assert metrics[kind]["all"]["AP"] == pytest.approx(0.5, abs=1e-12)
        assert metrics["harmonic_mean"][kind] == 0
        assert metrics["per_class"]["dog"][kind] == 0


def test_harmonic_mean(tiny):
    # Of cat, one of two is found: precision 1 at the 51 of 101 recalls up to one half.
    metrics = coco_metrics.score(tiny, perfect(tiny)[:2], groups={"A": [3], "B": [5]})
    ap = 51 / 101
    assert metrics["bbox"]["B"]["AP"] == pytest.approx(ap)
    assert metrics["harmonic_mean"]["bbox"] == pytest.approx(2 * ap / (1 + ap))
    assert "harmonic_mean" not in coco_metrics.score(tiny, [], groups={"A": [3]})
    assert coco_metrics.score(tiny, [], groups={"A": [3], "B": [8]})["harmonic_mean"]["bbox"] is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_results_score_zero(tiny, backend):
    metrics = coco_metrics.score(tiny, [], backend=backend)
    assert metrics["bbox"]["all"]["AP"] == metrics["segm"]["all"]["AP"] == metrics["segm"]["all"]["AR100"] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_ground_truth_scores_nothing(tiny, backend):
    results = perfect(tiny)
    tiny["annotations"] = []
    metrics = coco_metrics.score(tiny, results, groups={"A": [3]}, backend=backend)
    assert set(numbers(metrics, "segm", "A")) == {-1}
    assert set(metrics["bbox"]["all"].values()) == {None}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "absent",
    [
        *([], None, "missing", [[]], [[1, 2, 3, 4]], {"size": [100, 100], "counts": []}),
        # Without a pixel, as a polygon and as run lengths.
        *([[50, 50, 90, 50, 70, 50]], {"size": [100, 100], "counts": [10_000]}),
    ],
)
def test_objects_without_a_mask_are_ignored_for_segm(tiny, absent, backend):
    if absent == "missing":
        del tiny["annotations"][1]["segmentation"]
    else:
        tiny["annotations"][1]["segmentation"] = absent
    # Two detections on it, better than the one on the other cat; and none on it.
    on_it = [detection({"image_id": 1, "category_id": 5, **square(52, 52, 30)}, score) for score in (0.99, 0.98)]
    others = [perfect(tiny)[0], perfect(tiny)[2]]
    for results in (on_it + others, others):
        metrics = coco_metrics.score(tiny, results, backend=backend)
        assert metrics["num_ignored_without_mask"] == 1
        assert metrics["per_class"]["cat"]["segm"] == pytest.approx(1, abs=1e-12)
        assert metrics["per_class"]["cat"]["bbox"] < 0.6
    # Elsewhere in the same image a detection is still wrong.
    wrong = detection({"image_id": 1, "category_id": 5, **square(5, 5, 30)}, 0.99)
    metrics = coco_metrics.score(tiny, [wrong, *others], backend=backend)
    assert metrics["per_class"]["cat"]["segm"] == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_class_without_any_mask_has_no_mask_score(tiny, backend):
    for annotation in tiny["annotations"]:
        if annotation["category_id"] == 5:
            annotation["segmentation"] = []
    metrics = coco_metrics.score(tiny, perfect(tiny), groups={"A": [3], "B": [5]}, backend=backend)
    assert metrics["segm"]["B"]["AP"] is None and metrics["bbox"]["B"]["AP"] == pytest.approx(1, abs=1e-12)
    assert metrics["harmonic_mean"]["segm"] is None
    assert metrics["num_ignored_without_mask"] == 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ids", [(0, 1, 2), (4, 4, 4), (None, None, None)])
def test_annotation_ids_do_not_matter(tiny, ids, backend):
    for annotation, annotation_id in zip(tiny["annotations"], ids, strict=True):
        annotation["id"] = annotation_id
    metrics = coco_metrics.score(tiny, perfect(tiny), backend=backend)
    assert metrics["segm"]["all"]["AP"] == metrics["bbox"]["all"]["AP"] == pytest.approx(1, abs=1e-12)


def test_the_area_of_a_mask_result_is_the_masks(tiny):
    # A wrong cat with a small mask in a medium box: its mask's area keeps it out of APm.
    wrong = detection({"image_id": 2, "category_id": 5, **square(60, 60, 20)}, 0.99, bbox=[55, 55, 40, 40])
    metrics = coco_metrics.score(tiny, [wrong, *perfect(tiny)])
    assert metrics["segm"]["all"]["APm"] == pytest.approx(1, abs=1e-12)
    assert metrics["segm"]["all"]["AP"] < 0.9 and metrics["bbox"]["all"]["APm"] < 0.9


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("area", [0, 10_000, None, float("nan"), -5, "1600", 1600.5])
def test_an_area_that_cannot_be_right_is_replaced_and_counted(tiny, area, backend):
    tiny["annotations"][1]["area"] = area
    metrics = coco_metrics.score(tiny, perfect(tiny), backend=backend)
    for kind in ("bbox", "segm"):
        assert metrics[kind]["all"]["APm"] == pytest.approx(1, abs=1e-12)
        assert metrics[kind]["all"]["APs"] is metrics[kind]["all"]["APl"] is None
    assert metrics["num_areas_replaced"] == (area != 1600.5)
    assert ("areas that cannot be right, replaced: 1" in scores.format_table(metrics)) == (area != 1600.5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_an_annotation_to_ignore_is_as_a_crowd(tiny, key, backend):
    # Neither missed, nor are detections on it wrong.
    tiny["annotations"][1] |= {key: 1, "area": 0}
    for results in (perfect(tiny), [perfect(tiny)[i] for i in (0, 2)], [perfect(tiny)[i] for i in (0, 1, 1, 2)]):
        metrics = coco_metrics.score(tiny, results, backend=backend)
        assert metrics["bbox"]["all"]["AP"] == metrics["segm"]["all"]["AP"] == pytest.approx(1, abs=1e-12)
        assert metrics["num_areas_replaced"] == 0


def test_areas_of_published_annotations_are_believed(fixtures):
    for name in ("instances_val2014_100.json", "lvis_dataset_lvis_val_100.json"):
        assert coco_metrics.score(fixtures(name), [])["num_areas_replaced"] == 0


def test_more_than_255_masks(tiny):
    results = perfect(tiny) + [detection(tiny["annotations"][0], 0.1) for _ in range(300)]
    assert coco_metrics.score(tiny, results, ["segm"])["segm"]["all"]["AP"] == pytest.approx(1, abs=1e-12)


def test_results_may_come_one_by_one(tiny):
    metrics = coco_metrics.score(tiny, iter(perfect(tiny)))
    assert metrics == coco_metrics.score(tiny, perfect(tiny)) and metrics["segm"]["all"]["AP"] > 0.9


@pytest.mark.parametrize("backend", BACKENDS)
def test_arguments_are_not_changed_and_nothing_is_printed(tiny, backend, capfd):
    tiny["images"][0]["id"] = "1"
    tiny["annotations"][0]["segmentation"] = {"size": [100, 100], "counts": [0, 3000, 7000]}
    tiny["annotations"][1]["segmentation"] = []
    tiny["annotations"][2]["segmentation"] = perfect(tiny)[2]["segmentation"]
    results = perfect(tiny)
    before = copy.deepcopy((tiny, results))
    metrics = coco_metrics.score(tiny, results, groups={"A": (3,)}, backend=backend)
    assert (tiny, results) == before
    assert capfd.readouterr() == ("", "")
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"backend": "coco"}, "unknown backend 'coco'; expected one of"),
        ({"kinds": []}, "got no kinds"),
        ({"groups": {"all": [3]}}, "group named 'all'"),
        ({"groups": {"A": [3, 44]}}, r"group 'A': 1 category ids are not in the ground truth's 3, the first \[44\]"),
        ({"results": [{"image_id": 1}]}, r"results\[0\]: missing"),
    ],
)
def test_wrong_arguments(tiny, arguments, message):
    with pytest.raises(ValueError, match=message):
        coco_metrics.score(**({"ground_truth": tiny, "results": []} | arguments))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bbox": None}, r"ground truth, annotations\[1\], id 12: bbox None; expected"),
        ({"category_id": 99}, r"annotations\[1\], id 12: image_id 1 or category_id 99 is unknown"),
        ({"segmentation": {"size": [50, 50], "counts": "a"}}, r"of size \[50, 50\]; expected the image's \[100, 100\]"),
    ],
)
def test_wrong_ground_truth(tiny, change, message):
    tiny["annotations"][1] |= change
    with pytest.raises(ValueError, match=message):
        coco_metrics.score(tiny, [])


def test_repeated_category_names_are_refused(tiny):
    tiny["categories"][2]["name"] = "cat"
    with pytest.raises(ValueError, match=r"1 names of categories are repeated, the first \['cat'\]"):
        coco_metrics.score(tiny, [])


def test_table(tiny):
    tiny["annotations"][1]["segmentation"] = []
    metrics = coco_metrics.score(tiny, perfect(tiny)[:1], groups={"A": [3], "B": [5, 8]})
    lines = scores.format_table(metrics).splitlines()
    assert lines[0].split() == TWELVE
    rows = [line.split() for line in lines]
    assert rows[1][:3] == ["box", "all", "50.0"] and rows[5][:3] == ["mask", "A", "100.0"]
    assert rows[6] == ["mask", "B", "0.0", "0.0", "0.0", "-", "0.0", "-", "0.0", "0.0", "0.0", "-", "0.0", "-"]
    assert lines[7] == "harmonic mean of AP of A and B: box 0.0, mask 0.0"
    assert lines[8] == "ground-truth objects without a mask, ignored for mask AP: 1"
    rows = [line.split() for line in scores.format_class_table(metrics).splitlines()]
    assert rows[1:] == [["dog", "A", "100.0", "100.0"], ["cat", "B", "0.0", "0.0"], ["cow", "B", "-", "-"]]


@pytest.mark.parametrize("margin", [0, 1, 2, 4])
def test_boundary_ap_counts_the_smaller_of_mask_iou_and_border_iou(margin):
    truth, found = np.zeros((2, 100, 100), bool)
    truth[20:80, 20:80] = True
    found[20 + margin : 80 - margin, 20 + margin : 80 - margin] = True
    ground_truth = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "square"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **square(20, 20, 60)}],
    }
    mask = mask_coder.encode(np.asfortranarray(found, np.uint8))
    result = {"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [20, 20, 60, 60], "segmentation": mask}

    # 2 % of the diagonal of 100 x 100 pixels is 2.8: three pixels.
    overlaps = {"segm": reference.iou(truth, found), "boundary": reference.smaller_iou(truth, found, 3)}
    metrics = coco_metrics.score(ground_truth, [result], kinds=("segm", "boundary"))
    for kind, overlap in overlaps.items():
        thresholds = np.arange(0.5, 0.96, 0.05)
        assert metrics[kind]["all"]["AP"] == pytest.approx((overlap >= thresholds - 1e-9).mean()), kind
    assert "edge all" in scores.format_table(metrics)
