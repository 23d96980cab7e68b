"""Every backend against pycocotools, the authority, over ids, sizes, crowds and empty cases; and LVIS' rules."""

import contextlib
import copy
import functools
import io

import hotcoco
import numpy as np
import pytest
from pycocotools import mask as authority
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskx_jax.coco import rle
from maskx_jax.evaluation import matching, scores
from maskx_jax.evaluation import metrics as coco_metrics
from maskx_jax.evaluation.ground_truth import NumberedGroundTruth

HUGE = 2**63 - 8
# Pairs of neighbours that float64 cannot tell apart, ids with the sign bit set, and ids of more than 64 bits.
IDS = {
    "small": list(range(1, 9)),
    "zero and negative": [-4, -3, -1, 0, 1, 2, 10, 500],
    "beyond float64": [2**53 + i for i in range(8)],
    "64 bits": [HUGE + i for i in range(8)],
    "more bits": [2**70 + i for i in range(8)],
    "random": [-(2**62), 5, 2**31, 2**32 + 1, 2**53, 2**53 + 1, 2**62, 2**63],
}
KINDS = ("bbox", "segm")


def box_and_mask(random, height, width):
    """A box, and an ellipse in it as run lengths; some are empty, some fill the image."""
    x1, x2 = np.sort(random.integers(0, width + 1, 2))
    y1, y2 = np.sort(random.integers(0, height + 1, 2))
    if random.random() < 0.1:
        x1, y1, x2, y2 = 0, 0, width, height
    rows, columns = np.mgrid[:height, :width] + 0.5
    bitmap = ((rows - (y1 + y2) / 2) / max(y2 - y1, 1)) ** 2 + (
        (columns - (x1 + x2) / 2) / max(x2 - x1, 1)
    ) ** 2 <= 0.25
    return [int(x1), int(y1), int(x2 - x1), int(y2 - y1)], bitmap


def encoded(bitmap):
    encoding = authority.encode(np.asfortranarray(bitmap, np.uint8))
    return {"size": list(bitmap.shape), "counts": encoding["counts"].decode()}


def scene(seed, image_ids, category_ids, federated=False):
    """A random ground truth and results: detections are objects, some moved, some of another class, with ties."""
    random = np.random.default_rng(seed)
    images = [
        {"id": i, "height": int(random.integers(1, 150)), "width": int(random.integers(1, 150))} for i in image_ids
    ]
    categories = [{"id": i, "name": f"class {i}", "frequency": "rcf"[n % 3]} for n, i in enumerate(category_ids)]
    annotations, results = [], []
    for image in images:
        for _ in range(random.choice([0, 1, 3, 8])):
            box, bitmap = box_and_mask(random, image["height"], image["width"])
            if not bitmap.any() or not box[2] * box[3]:
                continue
            mask = encoded(bitmap)
            if random.random() < 0.3:
                x, y, w, h = box
                segmentation = [[x, y, x + w, y, x + w, y + h * 0.6, x + w * 0.3, y + h]]
                mask = authority.merge(authority.frPyObjects(segmentation, image["height"], image["width"]))
                if not authority.area(mask):
                    continue
            else:
                segmentation = mask
            crowd = not federated and random.random() < 0.15
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": category_ids[random.integers(len(category_ids))],
                "bbox": box,
                "segmentation": segmentation,
                "area": float(authority.area(mask)),
                "iscrowd": int(crowd),
            }
            annotations.append(annotation)
        own = [annotation for annotation in annotations if annotation["image_id"] == image["id"]]
        for _ in range(random.choice([0, 2, 12, 40])):
            box, bitmap = box_and_mask(random, image["height"], image["width"])
            category_id = category_ids[random.integers(len(category_ids))]
            mask = encoded(bitmap)
            if own and random.random() < 0.6:
                chosen = own[random.integers(len(own))]
                box = [side + int(random.integers(0, 2)) for side in chosen["bbox"]]
                if isinstance(chosen["segmentation"], dict):
                    mask = chosen["segmentation"]
                category_id = chosen["category_id"]
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": category_id,
                    "score": float(random.integers(0, 20)) / 20,
                    "bbox": box,
                    "segmentation": mask,
                }
            )
        if federated:
            classes = list(random.permutation(np.arange(len(category_ids))))
            image["neg_category_ids"] = [category_ids[i] for i in classes[:2]]
            image["not_exhaustive_category_ids"] = [category_ids[i] for i in classes[2:4]]
    return {"images": images, "categories": categories, "annotations": annotations}, results


@functools.cache
def pycocotools_numbers(seed, category_ids, kind, max_detections):
    """What plain pycocotools finds in a scene with small ids."""
    ground_truth, results = scene(seed, IDS["small"], category_ids)
    return pycocotools_means(pycocotools_arrays(ground_truth, results, kind, max_detections), max_detections)


def pycocotools_arrays(ground_truth, results, kind, max_detections):
    """The precisions and recalls of plain pycocotools, by class name."""
    with contextlib.redirect_stdout(io.StringIO()):
        source, found = COCO(), COCO()
        source.dataset, found.dataset = copy.deepcopy(ground_truth), copy.deepcopy(ground_truth)
        found.dataset["annotations"] = []
        for number, result in enumerate(results, start=1):
            area = (
                result["bbox"][2] * result["bbox"][3] if kind == "bbox" else int(authority.area(result["segmentation"]))
            )
            found.dataset["annotations"].append({**copy.deepcopy(result), "id": number, "area": area, "iscrowd": 0})
        source.createIndex()
        found.createIndex()
        evaluator = COCOeval(source, found, kind)
        evaluator.params.maxDets = [1, 10, max_detections]
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def pycocotools_means(evaluator, max_detections):
    """The numbers that pycocotools' summarize prints, with any largest number of detections."""
    params = evaluator.params

    def mean(array, threshold=None, area="all", number=max_detections):
        values = evaluator.eval[array][..., params.areaRngLbl.index(area), params.maxDets.index(number)]
        if threshold is not None:
            values = values[np.isclose(params.iouThrs, threshold)]
        values = values[values > -1]
        return None if not len(values) else values.mean()

    return {
        "AP": mean("precision"),
        "AP50": mean("precision", 0.5),
        "AP75": mean("precision", 0.75),
        **{f"AP{area[0]}": mean("precision", area=area) for area in ("small", "medium", "large")},
        **{f"AR{number}": mean("recall", number=number) for number in (1, 10, max_detections)},
        **{f"AR{area[0]}": mean("recall", area=area) for area in ("small", "medium", "large")},
    }


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        # Precisions differ by 2**-52, which pycocotools adds to a denominator.
        assert actual[name] == (None if value is None else pytest.approx(value, rel=0, abs=1e-14)), name


def renamed(content, images, categories):
    """Return ground truth or results with other ids."""
    return [
        entry | {"image_id": images[entry["image_id"]]} | {"category_id": categories[entry["category_id"]]}
        for entry in content
    ]


def without_frequencies(values):
    return {name: value for name, value in values.items() if name not in ("APr", "APc", "APf")}


@pytest.mark.parametrize("backend", matching.BACKENDS)
@pytest.mark.parametrize("name", IDS)
def test_ids_do_not_matter(name, backend):
    # Plain pycocotools on small ids is what every backend has to find on any.
    seed = 1
    ids = dict(zip(IDS["small"], IDS[name], strict=True))
    ground_truth, results = scene(seed, IDS["small"], tuple(IDS["small"]))
    other = {key: [entry | {"id": ids[entry["id"]]} for entry in ground_truth[key]] for key in ("images", "categories")}
    other["annotations"] = renamed(ground_truth["annotations"], ids, ids)
    metrics = coco_metrics.score(other, renamed(results, ids, ids), backend=backend)
    for kind in KINDS:
        expected = pycocotools_numbers(seed, tuple(IDS["small"]), kind, 100)
        assert_same(without_frequencies(metrics[kind]["all"]), expected)
        assert 0.05 < expected["AP"] < 0.95


@pytest.mark.parametrize(
    ("backend", "kind"),
    [(name, kind) for name in matching.BACKENDS for kind in KINDS] + [("faster_coco_eval", "boundary")],
)
def test_some_classes_at_a_time_give_the_numbers_of_all_at_once(backend, kind):
    # Class 8 has nothing; the last part has fewer classes than the others.
    ids = (3, 5, 7, 8, 9, 90, 91)
    ground_truth, results = scene(3, IDS["small"], ids)
    ground_truth["annotations"] = [entry for entry in ground_truth["annotations"] if entry["category_id"] != 8]
    results = [entry for entry in results if entry["category_id"] != 8]
    datasets = NumberedGroundTruth(ground_truth, with_masks=True).entries(results, kind, federated=False)
    whole = matching.match(datasets, kind, backend, 100)
    assert 0.05 < whole.arrays["precision"][whole.arrays["precision"] > -1].mean() < 0.95
    num_images = len(ground_truth["images"])
    for num_classes in (1, 3):
        parts = matching.match(datasets, kind, backend, 100, most_pairs=num_classes * num_images)
        for name, array in whole.arrays.items():
            np.testing.assert_array_equal(parts.arrays[name], array)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_detections", [5, 100])
def test_boundaries_are_matched_as_by_faster_coco_eval(seed, max_detections):
    ground_truth, results = scene(seed, IDS["small"], (3, 5, 7, 9))
    random = np.random.default_rng(seed)
    for result in results:
        # Near to an object: the boundary decides.
        moved = np.roll(rle.decode(result["segmentation"]), random.integers(-2, 3, 2), (0, 1))
        result["segmentation"] = rle.encode(moved)
    datasets = NumberedGroundTruth(ground_truth, with_masks=True).entries(results, "boundary", federated=False)
    before = copy.deepcopy(datasets)
    found = matching.match(datasets, "boundary", "faster_coco_eval", max_detections)
    assert datasets == before
    # It finds all boundaries, in whole images.
    evaluator = matching._evaluator(datasets, "boundary", "faster_coco_eval")
    evaluator.params.maxDets = matching.detection_counts(max_detections)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
    for name, array in found.arrays.items():
        np.testing.assert_array_equal(array, evaluator.eval[name])
    masks = matching.match(datasets, "segm", "hotcoco", max_detections)
    recall = matching.Metric("recall", None, "all", max_detections)
    assert 0.05 < found.mean(range(4), recall) < masks.mean(range(4), recall) - 0.02


@pytest.mark.parametrize("backend", matching.BACKENDS)
@pytest.mark.parametrize("max_detections", [11, 100])
def test_random_scenes(backend, max_detections):
    num_between = 0
    for seed in range(10, 20):
        category_ids = (3, 5, 90)[: 1 + seed % 3]
        ground_truth, results = scene(seed, IDS["small"], category_ids)
        before = copy.deepcopy((ground_truth, results))
        metrics = coco_metrics.score(ground_truth, results, backend=backend, max_detections=max_detections)
        assert (ground_truth, results) == before
        for kind in KINDS:
            expected = pycocotools_numbers(seed, category_ids, kind, max_detections)
            assert_same(without_frequencies(metrics[kind]["all"]), expected)
            num_between += 0.05 < (expected["AP"] or 0) < 0.95
    assert num_between > 8


def lvis_numbers(ground_truth, results, kind):
    """What hotcoco's own LVIS mode finds: lvis-api's numbers, but that lvis-api leaves out results without area."""
    field = {"bbox": "bbox", "segm": "segmentation"}[kind]
    # LVIS takes the area of a mask's result from its box, if it has one.
    area = {"bbox": lambda r: r["bbox"][2] * r["bbox"][3], "segm": lambda r: authority.area(r["segmentation"])}[kind]
    results = [{key: r[key] for key in ("image_id", "category_id", "score", field)} for r in results if area(r)]
    truth = hotcoco.COCO(copy.deepcopy(ground_truth))
    evaluator = hotcoco.COCOeval(truth, hotcoco.LVISResults(truth, results), kind, lvis_style=True)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.run()
    return evaluator.get_results()


def assert_as_lvis(ground_truth, results, backend):
    metrics = coco_metrics.score(ground_truth, results, backend=backend)
    assert metrics["max_detections"] == 300 and metrics["federated"]
    for kind in KINDS:
        found, expected = metrics[kind]["all"], lvis_numbers(ground_truth, results, kind)
        for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR300", "ARs", "ARm", "ARl"):
            value = expected[{"AR300": "AR@300"}.get(name, name + "@300" * name.startswith("AR"))]
            assert (-1 if found[name] is None else found[name]) == pytest.approx(value, rel=0, abs=1e-12), (kind, name)
    return metrics


@pytest.mark.parametrize("backend", matching.BACKENDS)
def test_lvis_rules_in_random_scenes(backend):
    plain = []
    for seed in range(30, 36):
        ground_truth, results = scene(seed, IDS["small"], (3, 5, 7, 9, 90, 91, 92), federated=True)
        metrics = assert_as_lvis(ground_truth, results, backend)
        for image in ground_truth["images"]:
            del image["neg_category_ids"], image["not_exhaustive_category_ids"]
        other = coco_metrics.score(ground_truth, results, backend=backend, max_detections=300)
        plain.append(other["segm"]["all"]["AP"] == metrics["segm"]["all"]["AP"])
    # The rules decide something.
    assert sum(plain) <= 1


@pytest.mark.parametrize("backend", ["hotcoco", "faster_coco_eval"])
def test_lvis_annotations(fixtures, backend):
    # Objects moved by a few pixels, with false ones of other classes, most of which nobody looked for.
    ground_truth = fixtures("lvis_dataset_lvis_val_100.json")
    random = np.random.default_rng(0)
    ids = [category["id"] for category in ground_truth["categories"]]
    size_of_image = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    results = []
    for annotation in ground_truth["annotations"]:
        if annotation["image_id"] % 3:
            continue
        height, width = size_of_image[annotation["image_id"]]
        for category_id in (annotation["category_id"], random.choice(ids)):
            moved = [(np.array(p) + random.normal(0, 2)).tolist() for p in annotation["segmentation"]]
            mask = authority.merge(authority.frPyObjects(moved, height, width))
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": int(category_id),
                    "score": float(np.float32(random.random())),
                    "bbox": [side + 1 for side in annotation["bbox"]],
                    "segmentation": {"size": mask["size"], "counts": mask["counts"].decode()},
                }
            )
    metrics = assert_as_lvis(ground_truth, results, backend)
    table = scores.format_table(metrics)
    assert table.startswith("LVIS: ") and "APr    APc    APf    AR1   AR10  AR300" in table
    assert metrics["num_areas_replaced"] == 0


def test_only_the_best_300_of_an_image_count_in_lvis():
    ground_truth, _ = scene(0, [1], (3,), federated=True)
    ground_truth["images"][0].update(height=50, width=50, neg_category_ids=[], not_exhaustive_category_ids=[])
    box = {"bbox": [5, 5, 20, 20]}
    ground_truth["annotations"] = [{"id": 1, "image_id": 1, "category_id": 3, "area": 400, **box}]
    wrong = {"image_id": 1, "category_id": 3, "bbox": [30, 30, 9, 9], "score": 0.9}
    right = {"image_id": 1, "category_id": 3, "score": 0.5, **box}
    for num_wrong, recall in ((299, 1.0), (300, 0.0)):
        metrics = coco_metrics.score(ground_truth, [right] + [wrong] * num_wrong, ["bbox"])
        assert metrics["bbox"]["all"]["AR300"] == recall


@pytest.mark.parametrize("backend", matching.BACKENDS)
def test_two_hundred_perfect_detections_score_one_where_200_count(backend):
    boxes = [[4 * (i % 20), 4 * (i // 20), 3, 3] for i in range(200)]
    shared = {"image_id": 1, "category_id": 1}
    ground_truth = {
        "images": [{"id": 1, "height": 80, "width": 80}],
        "categories": [{"id": 1, "name": "dot"}],
        "annotations": [{**shared, "bbox": box, "area": 9} for box in boxes],
    }
    results = [{**shared, "bbox": box, "score": 0.5} for box in boxes]
    for most, score in ((100, 0.505), (200, 1.0)):
        metrics = coco_metrics.score(ground_truth, results, ["bbox"], backend=backend, max_detections=most)
        assert metrics["bbox"]["all"]["AP"] == pytest.approx(score, abs=1e-3)
        table = scores.format_table(metrics)
        assert ("detections an image count" in table) == (most != 100) and f"AR{most}" in table


@pytest.mark.parametrize("name", ["keypoints"])
def test_hotcoco_scores_keypoints_as_published(fixtures, name):
    truth = hotcoco.COCO(fixtures("keypoints_dataset_gt_dataset.json"))
    evaluator = hotcoco.COCOeval(truth, truth.load_res(fixtures("keypoints_dataset_dt_dataset.json")), name)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.run()
    published = [0.5048844884, 0.7227722772, 0.6336633663, 0.4663366337, 0.7504950495]
    published += [0.5181818182, 0.7272727273, 0.6363636364, 0.4666666667, 0.75]
    np.testing.assert_allclose(evaluator.stats, published, rtol=0, atol=1e-10)
