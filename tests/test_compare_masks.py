import json

import numpy as np
import pytest

from maskx_jax.coco import rle
from maskx_jax.data.coco.predicted import FIELD
from tools import compare_masks


def rectangle(x, y, width, height):
    return rle.encode(compare_masks.box_mask((x, y, width, height), (10, 20)))


@pytest.fixture
def contents():
    """Return the truth, the same without three masks, and with masks for two of these."""
    boxes = {1: (0, 0, 4, 4), 2: (5, 0, 4, 8), 3: (10, 2, 2, 2), 4: (0, 6, 2, 2)}
    labels = {1: 7, 2: 7, 3: 9, 4: 9}
    annotations = [
        {"id": i, "image_id": 1, "category_id": labels[i], "iscrowd": 0, "bbox": box, "segmentation": rectangle(*box)}
        for i, box in boxes.items()
    ]
    truth = {
        "images": [{"id": 1, "height": 10, "width": 20}],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": annotations,
    }
    # The true mask of object 2 is the upper half of its box.
    annotations[1]["segmentation"] = rectangle(5, 0, 4, 4)
    hidden = truth | {"annotations": [a | ({} if a["id"] == 4 else {"segmentation": []}) for a in annotations]}
    masks = {2: (rectangle(5, 0, 4, 3), 0.8), 3: (rectangle(10, 2, 2, 2), 0.4)}
    made = truth | {
        "annotations": [
            a | {"segmentation": masks[a["id"]][0], FIELD: {"quality": masks[a["id"]][1]}} if a["id"] in masks else a
            for a in hidden["annotations"]
        ]
    }
    return truth, hidden, made


def test_overlaps_are_of_the_hidden_objects_alone(contents):
    truth, hidden, made = contents
    assert compare_masks.overlaps(truth, hidden, made) == {1: 0.0, 2: 0.75, 3: 1.0}
    assert compare_masks.overlaps(truth, hidden, None) == {1: 1.0, 2: 0.5, 3: 1.0}
    truth["annotations"][0]["iscrowd"] = 1
    assert compare_masks.overlaps(truth, None, made) == {2: 0.75, 3: 1.0, 4: 1.0}


@pytest.mark.parametrize("nothing", [None, [], [[]], [[1.0, 2.0]], {"size": [10, 20], "counts": ""}])
def test_a_segmentation_that_draws_nothing_is_hidden(contents, nothing):
    truth, hidden, made = contents
    hidden["annotations"][0]["segmentation"] = nothing
    assert compare_masks.overlaps(truth, hidden, made) == {1: 0.0, 2: 0.75, 3: 1.0}


def test_a_box_covers_the_middles_of_pixels():
    assert np.argwhere(compare_masks.box_mask((1.4, 0.6, 2, 1), (4, 6))).tolist() == [[1, 1], [1, 2]]


def test_the_tables_have_groups_and_qualities(tmp_path, contents, capsys):
    paths = []
    for name, content in zip(("truth", "hidden", "made"), contents, strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        paths.append(tmp_path / f"{name}.json")
    (tmp_path / "classes.txt").write_text("cat\n")
    files = [f"--truth={paths[0]}", f"--hidden={paths[1]}", f"--keep={tmp_path / 'classes.txt'}"]
    assert compare_masks.main([*files, f"--masks=ours={paths[2]}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| masks | all (3) | A (2) | B (1) | ≥ 0.5 | ≥ 0.75 |"
    assert lines[2:4] == [
        "| box | 0.833 (0.833 to 0.833) | 0.750 (0.750 to 0.750) | 1.000 (1.000 to 1.000) | 100 % | 67 % |",
        "| ours | 0.583 (0.583 to 0.583) | 0.375 (0.375 to 0.375) | 1.000 (1.000 to 1.000) | 67 % | 67 % |",
    ]
    assert "| ≥ 0.4 | 67 % | 0.875 | 0.750 | 1.000 |" in lines
    assert "| ≥ 0.5 | 33 % | 0.750 | 0.750 | nan |" in lines and lines[-1] == "| ≥ 0.8 | 33 % | 0.750 | 0.750 | nan |"
    with pytest.raises(ValueError, match=r"--masks: got 'x\.json'; expected TITLE=JSON"):
        compare_masks.main([*files, "--masks=x.json"])


def test_intervals_are_those_of_means_over_images_drawn_anew():
    # Forty images with one object each of IoU 0 or 1, and one with a hundred objects.
    found = {i: float(i % 2) for i in range(40)} | {100 + i: 1.0 for i in range(100)}
    images = {i: min(i, 100) for i in found}
    text = compare_masks.table({"ours": found}, {"all": set(found), "A": set(range(40)), "B": set()}, images)
    whole, few, none = text.splitlines()[2].split(" | ")[1:4]
    assert whole.startswith("0.857 (") and few.startswith("0.500 (0.3") and none == "nan (nan to nan)"
    low, high = (float(word) for word in few[7:-1].split(" to "))
    # 1.96 standard deviations of the mean of 40 draws.
    assert (high - low) / 2 == pytest.approx(1.96 * 0.5 / 40**0.5, rel=0.15)
    # A third of the draws lack the image of a hundred objects.
    assert float(whole[7:-1].split(" to ")[0]) < 0.5
