import numpy as np
import pytest

from maskx_jax.coco.keypoints import PERSON, Skeleton, flip_by_name, skeletons_of, to_annotation


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


def test_flips_are_given_where_the_names_do_not_say_them():
    named = {"keypoints": ["port", "starboard", "mast"], "skeleton": [[1, 3], [2, 3]]}
    assert Skeleton.from_coco(named).flip == (0, 1, 2)
    given = Skeleton.from_coco(named | {"keypoint_flip": [[1, 2]]})
    assert given.flip == (1, 0, 2) and Skeleton.from_coco(given.to_coco()) == given
    assert given.to_coco()["keypoint_flip"] == [[1, 2]] and "keypoint_flip" not in PERSON.to_coco()
    # Also that there is nothing to exchange.
    fixed = Skeleton.from_coco({"keypoints": ["left", "right"], "keypoint_flip": []})
    assert fixed.flip == (0, 1) and Skeleton.from_coco(fixed.to_coco()) == fixed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keypoints": 3}, "'keypoints' is 3; expected a list of names"),
        ({"keypoints": ["a", 3]}, "expected a list of names"),
        ({"keypoints": ["a", "a"]}, "each once"),
        ({"skeleton": [[1, 3]]}, r"'skeleton' has \[1, 3\]; expected pairs of numbers from 1 to 2"),
        ({"skeleton": [1, 2]}, "'skeleton' has 1;"),
        ({"skeleton": 1.5}, "'skeleton' has 1.5;"),
        ({"keypoint_flip": [[1, True]]}, r"'keypoint_flip' has \[1, True\];"),
        ({"keypoint_sigmas": [0.1]}, "expected 2 positive numbers"),
        ({"keypoint_sigmas": [0.1, "x"]}, "'keypoint_sigmas' is .*expected a list of numbers"),
        ({"keypoint_sigmas": [0.1, float("nan")]}, "expected 2 positive numbers"),
    ],
)
def test_a_malformed_category_is_refused(fields, message):
    category = {"id": 1, "name": "cat", "keypoints": ["a", "b"]} | fields
    with pytest.raises(ValueError, match=message):
        Skeleton.from_coco(category)
    with pytest.raises(ValueError, match=f"category 'cat': .*{message}"):
        skeletons_of([category])


def test_the_categories_of_a_dataset_have_the_same_skeleton_or_none():
    cat = {"id": 4, "name": "cat", "keypoints": ["nose", "tail"], "skeleton": [[1, 2]]}
    skeleton = Skeleton.from_coco(cat)
    categories = [{"id": 1, "name": "car"}, cat, cat | {"id": 9, "name": "dog"}]
    assert skeletons_of(categories) == {4: skeleton, 9: skeleton}
    assert skeletons_of(categories[:1]) == {}
    for other in ({"keypoints": ["tail", "nose"]}, {"skeleton": []}, {"keypoint_sigmas": [0.1, 0.1]}):
        with pytest.raises(ValueError, match="the categories 'cat' and 'dog' have different keypoints or skeletons"):
            skeletons_of([*categories[:2], categories[2] | other])


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
