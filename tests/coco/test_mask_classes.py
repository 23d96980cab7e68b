"""Which labels keep their masks."""

import pathlib
import re

import numpy as np
import pytest

from maskx_jax.coco.categories import VOC_NAMES, Categories
from maskx_jax.coco.mask_classes import mask_labels, random_labels

FOLDER = pathlib.Path(__file__).parent
COCO_LINES = [line.split(" ", 1) for line in (FOLDER / "coco_categories.txt").read_text().splitlines()]
COCO_NAMES = tuple(name for _, name in COCO_LINES)
COCO = Categories(tuple(int(category_id) for category_id, _ in COCO_LINES), COCO_NAMES)
VOC_LABELS = [1, 2, 3, 4, 5, 6, 7, 9, 15, 16, 17, 18, 19, 20, 40, 57, 58, 59, 61, 63]
VOC_IDS = [1, 2, 3, 4, 5, 6, 7, 9, 16, 17, 18, 19, 20, 21, 44, 62, 63, 64, 67, 72]


def test_voc_is_the_twenty_classes_of_the_paper():
    allowed = mask_labels("voc", COCO)
    assert allowed.dtype == bool and allowed.shape == (81,)
    assert np.flatnonzero(allowed).tolist() == VOC_LABELS
    assert COCO.id_of_label()[allowed].tolist() == VOC_IDS


def test_nonvoc_is_all_others():
    allowed = mask_labels("nonvoc", COCO)
    assert not allowed[0] and allowed.sum() == 60
    assert not (allowed & mask_labels("voc", COCO)).any()


def test_voc_goes_by_name_in_a_subset_in_another_order():
    subset = Categories((7, 3, 9), ("tv", "zebra", "person"))
    assert mask_labels("voc", subset).tolist() == [False, True, False, True]
    assert mask_labels("nonvoc", subset).tolist() == [False, False, True, False]


@pytest.mark.parametrize("chosen", ["all", "annotated"])
def test_all_excludes_background_alone(chosen):
    assert mask_labels(chosen, COCO).tolist() == [False] + [True] * 80


def test_none_is_no_class():
    assert not mask_labels("none", COCO).any()


def test_random_choices_are_those_of_the_paper():
    lines = (FOLDER / "random_mask_classes.txt").read_text().splitlines()
    assert len(lines) == 25
    for line in lines:
        match = re.fullmatch(r"E(\d)_A(\d+)B(\d+): ([\d,]+)", line)
        assert match is not None
        expected = [int(index) + 1 for index in match[4].split(",")]
        assert len(expected) == int(match[2]) == 80 - int(match[3])
        allowed = mask_labels(f"random({match[1]}, {match[2]})", COCO)
        assert np.flatnonzero(allowed).tolist() == expected, line


def test_random_choices_of_other_sizes_are_fixed_and_independent():
    first = random_labels(1, 30, 60)
    assert first.tolist() == random_labels(1, 30, 60).tolist()
    assert first.tolist() != random_labels(2, 30, 60).tolist()
    assert len(np.unique(first)) == 30 and first.min() >= 1 and first.max() <= 60
    assert len(random_labels(6, 20, 80)) == 20 and len(random_labels(1, 33, 80)) == 33


def test_names_from_a_list_and_from_a_file(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("\ufeffzebra\r\n\n  hot dog \n", encoding="utf-8")
    expected = [COCO_NAMES.index("zebra") + 1, COCO_NAMES.index("hot dog") + 1]
    assert np.flatnonzero(mask_labels(str(path), COCO)).tolist() == expected
    assert np.flatnonzero(mask_labels(["hot dog", "zebra"], COCO)).tolist() == expected


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("vok", "unknown mask classes 'vok'; did you mean 'voc'"),
        ("randm(1, 20)", "did you mean 'random"),
        ("random(1)", "malformed; expected random"),
        ("random(one, 20)", "malformed"),
        ("random(0, 20)", "trial is 0"),
        ("random(1, 80)", "num_classes is 80; expected 1 to 79"),
        ("random(1, 0)", "num_classes is 0"),
        (["zebra", "zebr"], "list of class names: unknown category name 'zebr'.*zebra"),
        ([], "is empty"),
    ],
)
def test_bad_choices_are_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        mask_labels(chosen, COCO)


def test_errors_of_a_file_name_it(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("persn\n")
    with pytest.raises(ValueError, match=r"classes\.txt.*'persn'.*person"):
        mask_labels(str(path), COCO)
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"classes\.txt is empty"):
        mask_labels(str(path), COCO)
    with pytest.raises(FileNotFoundError):
        mask_labels(str(tmp_path / "none.txt"), COCO)


def test_voc_of_a_dataset_without_such_classes_is_refused():
    with pytest.raises(ValueError, match="none of the 1 categories"):
        mask_labels("voc", Categories((1,), ("red solid",)))
    with pytest.raises(ValueError, match="leaves no class"):
        mask_labels("nonvoc", Categories(tuple(range(20)), VOC_NAMES))
