"""What a training set has of each class."""

import numpy as np

from maskx_jax.coco.categories import Categories
from maskx_jax.coco.mask_classes import mask_labels
from maskx_jax.data.roles import ROLES, class_roles


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
