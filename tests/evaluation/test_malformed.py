"""Results and annotations that are malformed in any way are answered by one line that names the file."""

import copy
import json
import math

import numpy as np
import pytest
from pycocotools import mask as authority

from maskx_jax import errors
from maskx_jax.evaluation import matching
from maskx_jax.evaluation.scores import score_file

DEEP = json.loads("[" * 400 + "]" * 400)


def annotations():
    """Two images, three objects: polygons, run lengths, compressed run lengths."""
    square = {"bbox": [2, 3, 10, 8], "area": 80, "iscrowd": 0}
    polygon = [[2, 3, 12, 3, 12, 11, 2, 11]]
    return {
        "images": [{"id": 7, "height": 20, "width": 30}, {"id": 9, "height": 20, "width": 30}],
        "categories": [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "segmentation": polygon, **square},
            {"id": 2, "image_id": 7, "category_id": 90, "segmentation": uncompressed(), **square},
            {"id": 3, "image_id": 9, "category_id": 90, "segmentation": compressed(), **square},
        ],
    }


def uncompressed():
    return {"size": [20, 30], "counts": [43, *[8, 12] * 9, 8, 369]}


def compressed():
    encoded = authority.frPyObjects(uncompressed(), 20, 30)
    return {"size": [20, 30], "counts": encoded["counts"].decode()}


def results():
    return [
        {"image_id": i, "category_id": 90, "score": 0.5, "bbox": [2, 3, 10, 8], "segmentation": compressed()}
        for i in (7, 9)
    ]


def changed(content, path, value):
    """Return the content with another value at a path; ... removes it."""
    *parents, last = path
    place = content
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return content


def write(folder, name, content):
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(json.dumps(content))
    return path


def score(folder, found, truth, backend="hotcoco"):
    return score_file(write(folder, "r.json", found), write(folder, "a.json", truth), backend=backend)


@pytest.mark.parametrize("backend", matching.BACKENDS)
def test_what_is_sound_is_scored(tmp_path, backend):
    metrics = score(tmp_path, results(), annotations(), backend)
    assert metrics["per_class"]["toothbrush"]["segm"] == metrics["per_class"]["toothbrush"]["bbox"]
    assert metrics["per_class"]["toothbrush"]["bbox"] == pytest.approx(1, abs=1e-12)
    assert metrics["num_ignored_without_mask"] == metrics["num_areas_replaced"] == 0


RESULTS = [
    ({"annotations": []}, r"got a dict with keys \['annotations'\]; expected a list"),
    ("text", "got a str; expected a list"),
    (None, "got a NoneType; expected a list"),
    ([1, 2, 3], r"results\[0\]: got a int; expected a dict"),
    ([[1, 2, 3, 4, 5, 6, 7]], r"results\[0\]: got a list; expected a dict"),
    (changed(results(), (1, "image_id"), [7]), r"results\[1\]: image_id \[7\] is not in the ground truth"),
    (changed(results(), (0, "image_id"), {"id": 7}), r"image_id {'id': 7} is not in the ground truth"),
    (changed(results(), (0, "image_id"), 10**4000), r"image_id 1000\S*0000 is not in"),
    (changed(results(), (0, "image_id"), 7.5), r"image_id 7.5 is not in"),
    (changed(results(), (0, "image_id"), math.nan), r"image_id nan is not in"),
    (changed(results(), (0, "image_id"), DEEP), r"image_id \[+\.\.\.\]+ is not in"),
    (changed(results(), (0, "category_id"), [1]), r"category_id \[1\] is not in"),
    (changed(results(), (0, "category_id"), ...), r"missing \['category_id'\]"),
    (changed(results(), (0, "score"), 10**400), r"score 1000\S*0000; expected a finite number"),
    (changed(results(), (0, "score"), math.inf), "score inf; expected a finite number"),
    (changed(results(), (0, "score"), None), "score None; expected a finite number"),
    (changed(results(), (0, "bbox"), [0, 0, 10**300, 10**300]), r"bbox .*; expected \[x, y, width, height\]"),
    (changed(results(), (0, "bbox"), [0, 0, 1e200, 1e200]), r"bbox .*; expected \[x, y, width, height\]"),
    (changed(results(), (0, "bbox"), [0, 0, -1, 5]), "sides >= 0"),
    (changed(results(), (0, "bbox"), DEEP), r"expected \[x, y, width, height\]"),
    (changed(results(), (0, "bbox"), ...), r"missing \['bbox'\]"),
    (changed(results(), (0, "segmentation"), [[1, 2, 3, 4, 5, 6]]), "expected a compressed RLE"),
    (
        changed(results(), (0, "segmentation", "size"), [30, 20]),
        r"of size \[30, 20\]; expected the image's .* \[20, 30\]",
    ),
    (changed(results(), (0, "segmentation", "size"), 600), r"of size 600; expected"),
    (changed(results(), (0, "segmentation", "size"), [2**40, 2**40]), r"of size .*; expected"),
    (changed(results(), (0, "segmentation", "counts"), "abc"), "results.0.: .*corrupt"),
    (changed(results(), (0, "segmentation", "counts"), "o" * 50), "corrupt"),
    (changed(results(), (0, "segmentation", "counts"), compressed()["counts"][:-3]), "add up to 223 pixels"),
    (changed(results(), (0, "segmentation", "counts"), "Oib0"), "negative"),
    (changed(results(), (0, "segmentation", "counts"), uncompressed()["counts"]), "expected a compressed RLE"),
    (b"", "not JSON"),
    (b"[{", "not JSON"),
    (b"\x80\x03]q\x00.", "not JSON"),
    (b"[" * 10**6, "nested too deep"),
    (b"[" + b"9" * 10**5 + b"]", "Exceeds the limit"),
]
TRUTH = [
    ([1, 2, 3], "got a list; expected a COCO instances dict"),
    ({}, "images is None; expected a list"),
    (changed(annotations(), ("annotations",), ...), "annotations is None; expected a list"),
    (changed(annotations(), ("images", 1), 9), r"images\[1\]: got 9; expected a dict"),
    (changed(annotations(), ("images", 1, "id"), [9]), r"images\[1\]: id \[9\]; expected a whole number"),
    (changed(annotations(), ("images", 1, "id"), 7), r"1 ids of images are repeated, the first \[7\]"),
    (changed(annotations(), ("images", 1, "height"), 0), r"images\[1\]: height 0 and width 30; expected whole"),
    (changed(annotations(), ("images", 1, "height"), 2**31), "fewer than 2"),
    (changed(annotations(), ("images", 1, "width"), "30"), "width '30'; expected whole"),
    (changed(annotations(), ("images", 1, "neg_category_ids"), 5), "neg_category_ids 5; expected a list of ids"),
    (changed(annotations(), ("categories", 0, "name"), ["a"]), r"categories\[0\]: name \['a'\]; expected text"),
    (changed(annotations(), ("categories", 0, "name"), "toothbrush"), "1 names of categories are repeated"),
    (changed(annotations(), ("categories", 0, "id"), None), r"categories\[0\]: id None; expected a whole number"),
    (changed(annotations(), ("annotations", 0, "image_id"), [7]), r"annotations\[0\], id 1: image_id \[7\] or"),
    (changed(annotations(), ("annotations", 0, "category_id"), {}), "category_id {} is unknown"),
    (changed(annotations(), ("annotations", 0, "bbox"), [1, 2, math.nan, 4]), r"bbox \[1, 2, nan, 4\]; expected"),
    (changed(annotations(), ("annotations", 0, "bbox"), [10**400] * 4), "bbox .*; expected"),
    (changed(annotations(), ("annotations", 0, "iscrowd"), [1]), r"iscrowd \[1\]; expected 0 or 1"),
    (
        changed(annotations(), ("annotations", 0, "segmentation"), [1, 2, 3, 4, 5, 6]),
        "expected a list of polygons, each",
    ),
    (changed(annotations(), ("annotations", 0, "segmentation"), "polygon"), "expected a list of polygons or run"),
    (changed(annotations(), ("annotations", 0, "segmentation", 0, 3), math.nan), "polygon .*; expected finite numbers"),
    (changed(annotations(), ("annotations", 0, "segmentation", 0, 3), 10**400), "polygon .*; expected finite numbers"),
    (changed(annotations(), ("annotations", 0, "segmentation", 0, 3), [1]), "polygon .*; expected finite numbers"),
    (changed(annotations(), ("annotations", 0, "segmentation", 0), [1, 2, 3, 4, 5, 6, 7]), "a polygon of 7 numbers"),
    (changed(annotations(), ("annotations", 0, "segmentation"), DEEP), "polygon .*; expected"),
    (
        changed(annotations(), ("annotations", 1, "segmentation", "counts"), [600, -8, 8]),
        "expected text or whole numbers",
    ),
    (changed(annotations(), ("annotations", 1, "segmentation", "counts"), [10**30]), "add up to 10000"),
    (
        changed(annotations(), ("annotations", 1, "segmentation", "counts"), [0.5, 599.5]),
        "expected text or whole numbers",
    ),
    (changed(annotations(), ("annotations", 2, "segmentation", "counts"), "Oib0"), r"annotations\[2\]: .*negative"),
    (
        changed(annotations(), ("annotations", 2, "segmentation", "counts"), "zzzzzz"),
        "are corrupt; expected 20 x 30 = 600",
    ),
    (changed(annotations(), ("annotations", 2, "segmentation", "size"), None), "of size None; expected the image's"),
    (b"PK\x03\x04", "not JSON"),
]


def assert_is_one_line_about(caught, folder, message):
    # What `errors.run` shows as one line, and not as a defect of ours.
    assert isinstance(caught.value, errors.EXPECTED) and not isinstance(caught.value, RecursionError)
    text = errors.one_line(caught.value)
    assert str(folder) in text and len(text) < 600, text
    caught.match(message)


@pytest.mark.parametrize("found, message", RESULTS)
def test_malformed_results(tmp_path, found, message):
    with pytest.raises(Exception) as caught:
        score(tmp_path, found, annotations())
    assert_is_one_line_about(caught, tmp_path / "r.json", message)


@pytest.mark.parametrize("truth, message", TRUTH)
def test_malformed_annotations(tmp_path, truth, message):
    with pytest.raises(Exception) as caught:
        score(tmp_path, results(), truth)
    assert_is_one_line_about(caught, tmp_path, message)


JUNK = [
    ...,
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**70),
    10**400,
    0.5,
    1e300,
    math.nan,
    math.inf,
    "",
    "1",
    "é\x00",
    b"",
]
JUNK += [[], [1], [[1, 2]], [math.nan] * 6, {}, {"size": [20, 30]}, DEEP]


def paths_of(content, path=()):
    """Yield the path of every value in nested lists and dicts."""
    pairs = enumerate(content) if isinstance(content, list) else content.items() if isinstance(content, dict) else ()
    for key, value in pairs:
        yield (*path, key)
        yield from paths_of(value, (*path, key))


@pytest.mark.parametrize("backend", matching.BACKENDS)
def test_junk_anywhere_is_scored_or_refused(tmp_path, backend):
    random = np.random.default_rng(0)
    num_scored = 0
    for make, name in ((annotations, "truth"), (results, "found")):
        paths = [path for path in paths_of(make())]
        for number in random.choice(len(paths), 80):
            junk = JUNK[random.integers(len(JUNK))]
            if isinstance(junk, bytes):
                continue
            content = {"truth": annotations(), "found": results(), name: changed(make(), paths[number], junk)}
            try:
                metrics = score(tmp_path, content["found"], content["truth"], backend)
            except ValueError as error:
                assert len(errors.one_line(error)) < 600
            else:
                num_scored += 1
                values = [
                    value for kind in ("bbox", "segm") for value in metrics.get(kind, {"all": {}})["all"].values()
                ]
                assert all(value is None or 0 <= value <= 1 for value in values)
    assert 20 < num_scored < 120


def poses():
    """Three objects with two keypoints each: one seen, one half seen, and a crowd."""
    category = {
        "id": 1,
        "name": "bone",
        "keypoints": ["left", "right"],
        "skeleton": [[1, 2]],
        "keypoint_sigmas": [1, 2],
    }
    shared = {"image_id": 7, "category_id": 1, "bbox": [2, 3, 10, 8]}
    return {
        "images": [{"id": 7, "height": 20, "width": 30}],
        "categories": [category],
        "annotations": [
            {"id": 1, "keypoints": [3, 3, 2, 11, 9, 1], "num_keypoints": 2, "area": 50, "iscrowd": 0, **shared},
            {"id": 2, "keypoints": [5, 4, 2, 0, 0, 0], "num_keypoints": 1, "area": 60, "iscrowd": 0, **shared},
            {"id": 3, "keypoints": [0, 0, 0, 0, 0, 0], "num_keypoints": 0, "area": 70, "iscrowd": 1, **shared},
        ],
    }


@pytest.mark.parametrize("backend", matching.BACKENDS)
def test_junk_among_keypoints_is_scored_or_refused(tmp_path, backend):
    random = np.random.default_rng(0)
    num_scored = 0
    found = [
        {"image_id": 7, "category_id": 1, "keypoints": [x, 4, 0.5, 9, 9, 0.1], "score": 0.1 * x} for x in range(2, 6)
    ]
    for number, name in enumerate(["truth"] * 60 + ["found"] * 40):
        content = {"truth": poses(), "found": copy.deepcopy(found)}
        paths = list(paths_of(content[name]))
        junk = JUNK[random.integers(len(JUNK))]
        if isinstance(junk, bytes):
            continue
        content[name] = changed(content[name], paths[random.integers(len(paths))], junk)
        try:
            metrics = score(tmp_path, content["found"], content["truth"], backend)
        except ValueError as error:
            assert len(errors.one_line(error)) < 600, number
        else:
            num_scored += 1
            values = metrics.get("keypoints", {"all": {}})["all"].values()
            assert all(value is None or 0 <= value <= 1 for value in values)
    assert 10 < num_scored < 90


@pytest.mark.parametrize("backend", matching.BACKENDS)
@pytest.mark.parametrize("value", [1e14, -1e14, 1e15])
def test_keypoints_far_away(tmp_path, backend, value):
    found = [{"image_id": 7, "category_id": 1, "keypoints": [value, 4, 0.5, -value, 4, 0.1], "score": 0.5}]
    if abs(value) < 1e15:
        assert score(tmp_path, found, poses(), backend)["keypoints"]["all"]["AP"] == 0
    else:
        with pytest.raises(ValueError, match="expected 6 finite numbers"):
            score(tmp_path, found, poses(), backend)
