"""What a training set has of each class."""

import numpy as np

from maskx_jax.coco.categories import Categories
from maskx_jax.coco.mask_classes import mask_labels
from maskx_jax.data.roles import ROLES, class_roles, class_summary, class_table


def test_roles_follow_from_what_the_training_set_has():
    class Index:
        categories = Categories((1, 2, 3, 4, 5), ("a", "b", "c", "d", "e"))
        image_labels = (np.array([1, 1, 2]), np.zeros(0, int), np.array([3, 3, 5]))
        image_has_mask = (np.array([True, True, False]), np.zeros(0, bool), np.array([True, False, True]))

    roles = class_roles(Index(), mask_labels("annotated", Index.categories))
    assert roles.tolist() == ["unseen", "A", "B", "mixed", "unseen", "A"] and set(roles) == set(ROLES)
    # A split that takes masks away makes B of A.
    assert class_roles(Index(), mask_labels(["a", "c"], Index.categories)).tolist()[1:] == list(
        ("A", "B", "mixed", "unseen", "B")
    )
    Index.image_labels = Index.image_has_mask = ()
    assert class_roles(Index(), np.ones(6, bool)).tolist() == ["unseen"] * 6


def test_class_table_says_the_role_of_each_class():
    class Table:
        categories = Categories((1, 2, 3, 4, 5), ("a", "b", "c", "d", "e"))
        image_labels = (np.array([1, 1, 2]), np.zeros(0, int), np.array([3, 3, 4]))
        image_has_mask = (np.array([True, True, True]), np.zeros(0, bool), np.array([True, False, False]))

    lines = [
        [cell.strip() for cell in line.split("|")]
        for line in class_table(Table(), mask_labels(["a", "c", "e"], Table.categories)).splitlines()
    ]
    assert lines == [
        ["class", "boxes", "masks", "role"],
        ["a", "2", "2", "A"],
        ["b", "1", "0", "B"],
        ["c", "2", "1", "mixed"],
        ["d", "1", "0", "B"],
        ["e", "0", "0", "unseen"],
        ["total", "6", "3", "1 A, 2 B, 1 mixed, 1 unseen"],
    ]


def test_class_summary_has_the_totals_of_the_table_and_its_ends():
    class Index:
        categories = Categories((1, 2, 3, 4), ("a", "b", "c", "d"))
        image_labels = (np.array([2, 2, 2, 3]), np.zeros(0, int), np.array([1, 1, 3]))
        image_has_mask = (np.array([True, True, True, False]), np.zeros(0, bool), np.array([True, False, False]))

    assert class_summary(Index(), np.ones(5, bool), num_named=2).splitlines() == [
        "4 classes: 1 A, 1 B, 1 mixed, 1 unseen; 7 boxes, 4 masks",
        "most boxes: b 3, a 2",
        "fewest boxes: d 0, a 2",
    ]
