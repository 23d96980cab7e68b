import json
import pathlib

import numpy as np
import pytest

from maskx_jax.coco.categories import COCO_IDS, VOC_NAMES, Categories, same_classes
from maskx_jax.coco.keypoints import PERSON

COCO = [
    {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
    {"id": 1, "name": "person"},
    {"id": 13, "name": "stop sign"},
]


def test_labels_follow_ascending_ids_whatever_the_order_of_the_file():
    categories = Categories.from_coco(COCO)
    assert categories.ids == (1, 13, 90)
    assert categories.names == ("person", "stop sign", "toothbrush")
    assert Categories.from_coco(COCO[::-1]) == categories
    assert len(categories) == 3


def test_labels_and_ids_are_a_bijection_and_background_is_label_zero():
    categories = Categories.from_coco(COCO)
    label_of_id, id_of_label = categories.label_of_id(), categories.id_of_label()
    assert label_of_id == {1: 1, 13: 2, 90: 3}
    assert id_of_label.dtype == np.int64 and id_of_label.tolist() == [0, 1, 13, 90]
    assert all(id_of_label[label] == category_id for category_id, label in label_of_id.items())


def test_an_id_of_zero_is_not_background():
    assert Categories((0, 1), ("a", "b")).label_of_id() == {0: 1, 1: 2}


def test_from_coco_undoes_to_coco():
    categories = Categories.from_coco(COCO)
    assert Categories.from_coco(categories.to_coco()) == categories
    assert categories.to_coco()[1] == {"id": 13, "name": "stop sign"}


def test_labels_keep_their_order_whatever_their_ids():
    categories = Categories((7, 3, 9), ("tv", "zebra", "person"))
    assert Categories.in_label_order(categories.to_coco()) == categories


def test_a_skeleton_goes_where_the_classes_go():
    with_skeleton = Categories((7, 3), ("person", "dog"), PERSON)
    listed = with_skeleton.to_coco()
    assert listed[1] == {"id": 3, "name": "dog", **PERSON.to_coco()}
    assert Categories.in_label_order(json.loads(json.dumps(listed))) == with_skeleton
    # A config has tuples where JSON has lists.
    tuples = [{key: tuple(value) if isinstance(value, list) else value for key, value in c.items()} for c in listed]
    assert Categories.in_label_order(tuples) == with_skeleton
    assert Categories.from_coco(listed).skeleton is None


def test_names_become_labels_in_the_order_asked_for():
    assert Categories.from_coco(COCO).labels_of_names(["toothbrush", "person"]) == [3, 1]
    assert Categories.from_coco(COCO).labels_of_names([]) == []


def test_an_unknown_name_is_an_error_that_names_the_nearest():
    with pytest.raises(ValueError, match=r"'tothbrush'.*3 known.*'toothbrush'"):
        Categories.from_coco(COCO).labels_of_names(["person", "tothbrush"])


@pytest.mark.parametrize(
    ("ids", "names", "message"),
    [
        ((1, 2, 1), ("a", "b", "c"), r"ids must be unique; repeated: \[1\]"),
        ((1, 2, 3), ("a", "b", "a"), r"names must be unique; repeated: \['a'\]"),
        ((1, 2), ("a",), "2 category ids and 1 names"),
    ],
)
def test_repeated_or_missing_entries_are_an_error(ids, names, message):
    with pytest.raises(ValueError, match=message):
        Categories(ids, names)


def test_equal_categories_are_equal_and_hashable():
    assert len({Categories.from_coco(COCO), Categories.from_coco(COCO[::-1])}) == 1


def test_cocos_ids_and_names_are_those_of_its_files():
    lines = (pathlib.Path(__file__).parent / "coco_categories.txt").read_text().splitlines()
    assert [f"{category_id} {name}" for name, category_id in COCO_IDS.items()] == lines
    assert set(VOC_NAMES) < set(COCO_IDS) and len(VOC_NAMES) == 20


def test_the_same_classes_may_have_other_ids():
    some, others = Categories((1, 2), ("cat", "dog")), Categories((1, 18), ("cat", "dog"))
    same_classes(some, others, "train and val")
    with pytest.raises(ValueError, match=r"the first difference is label 2: 'dog' \(id 2\) and 'dog' \(id 18\)$"):
        same_classes(some, others, "train and val", same_ids=True)


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (("cat", "bird", "cow"), "3 and 3; the first difference is label 2: 'bird' and 'dog'"),
        (("cat", "cow", "dog"), "3 and 3; the first difference is label 2: 'cow' and 'dog'"),
        (("cat", "dog"), "2 and 3; the first difference is label 3: no class and 'cow'"),
        (("cat", "dog", "cow", "emu"), "4 and 3; the first difference is label 4: 'emu' and no class"),
    ],
)
def test_other_classes_are_refused_by_the_first_that_differs(names, difference):
    found = Categories(tuple(range(len(names))), names)
    expected = Categories((1, 2, 3), ("cat", "dog", "cow"))
    with pytest.raises(ValueError, match=f"^the dataset and the checkpoint differ in their classes: {difference}$"):
        same_classes(found, expected, "the dataset and the checkpoint")
