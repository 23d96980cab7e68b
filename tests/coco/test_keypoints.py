import numpy as np
import pytest

from maskx_jax.coco.keypoints import PERSON, Skeleton, flip_by_name, to_annotation


def test_left_and_right_of_a_person_are_exchanged():
    # The permutation of COCO's 17 keypoints as every code base has it.
    assert PERSON.flip == (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
    assert len(PERSON.edges) == 19


def test_a_skeleton_comes_back_from_its_category():
    assert Skeleton.from_coco(PERSON.to_coco()) == PERSON
    own = Skeleton(("top", "left_arm", "right_arm"), ((0, 1), (0, 2)), (0, 2, 1), (0.1, 0.2, 0.2))
    assert Skeleton.from_coco(own.to_coco()) == own
    assert Skeleton.from_coco({"id": 1, "name": "car"}) is None


def test_sigmas_are_known_for_a_person_only():
    category = {"keypoints": list(PERSON.names[::-1])}
    assert Skeleton.from_coco(category).sigmas == PERSON.sigmas[::-1]
    assert Skeleton.from_coco({"keypoints": ["nose", "tail"]}).sigmas is None


def test_a_name_without_a_partner_stays_where_it_is():
    assert flip_by_name(["left_wing", "tail", "right_fin"]) == (0, 1, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": ("a", "a"), "flip": (0, 1)}, "each once"),
        ({"names": ("a", "b"), "flip": (0, 1), "edges": ((0, 2),)}, "expected 0 to 1"),
        ({"names": ("a", "b", "c"), "flip": (1, 2, 0)}, "in pairs"),
        ({"names": ("a",), "flip": (0,), "sigmas": (0.0,)}, "positive"),
    ],
)
def test_a_wrong_skeleton_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Skeleton(**{"edges": (), **fields})


def test_an_annotation_counts_pixels_from_their_centres_and_has_zeros_where_nothing_is_labelled():
    points = np.array([[10.5, 20.25], [np.nan, 3], [0.5, 7.0]], np.float32)
    written = to_annotation(points, np.array([True, False, True]), np.array([True, False, False]))
    assert written == {"keypoints": [10, 19.75, 2, 0, 0, 0, 0, 6.5, 1], "num_keypoints": 2}
