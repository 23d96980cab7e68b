"""Kinds, groups and names of what is scored."""

import numpy as np
import pytest

from maskx_jax.coco.categories import Categories
from maskx_jax.evaluation import scores

CATEGORIES = Categories((3, 5, 8, 2**70), ("dog", "cat", "cow", "emu"))


@pytest.mark.parametrize(
    ("produces", "boundary", "expected"),
    [
        ({"boxes"}, False, ("bbox",)),
        ({"boxes"}, True, ("bbox",)),
        ({"boxes", "masks"}, False, ("bbox", "segm")),
        ({"boxes", "masks"}, True, ("bbox", "segm", "boundary")),
        ({"boxes", "keypoints"}, True, ("bbox", "keypoints")),
        ({"boxes", "masks", "keypoints"}, False, ("bbox", "segm", "keypoints")),
    ],
)
def test_masks_and_keypoints_are_scored_where_the_model_makes_them(produces, boundary, expected):
    assert scores.kinds(produces, boundary) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], ("bbox",)),
        ([{"bbox": []}, {"bbox": [], "segmentation": {}}], ("bbox", "segm")),
        ([{"segmentation": {}}], ("segm",)),
        ([{"bbox": []}, {"bbox": [], "keypoints": []}], ("bbox", "keypoints")),
        ([None, {"image_id": 1}], ("bbox",)),
    ],
)
def test_the_kinds_of_results_are_those_that_any_entry_has(found, expected):
    assert scores.kinds_of(found) == expected


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ([False, True, False, True, False], {"A": [3, 8], "B": [5, 2**70]}),
        ([False, True, True, True, True], {}),
        ([False, False, False, False, False], {}),
    ],
)
def test_classes_with_and_without_masks_are_groups_where_there_are_both(allowed, expected):
    assert scores.mask_groups(CATEGORIES, np.array(allowed)) == expected


def test_mixed_classes_are_a_group_of_their_own_and_unseen_ones_are_in_none():
    assert scores.groups_of_roles(CATEGORIES, np.array(["unseen", "A", "mixed", "unseen", "B"])) == {
        "A": [3],
        "B": [2**70],
        "mixed": [5],
    }
    assert scores.groups_of_roles(CATEGORIES, np.array(["unseen", "mixed", "mixed", "unseen", "mixed"])) == {}


def test_the_names_of_metrics_are_those_of_their_numbers():
    names = scores.metric_names(("bbox", "segm"), ("A", "B"), max_detections=20)
    assert {"bbox/all/AP", "segm/B/AP75", "segm/A/AR20", "segm/harmonic_mean"} <= names
    assert not names & {"segm/mixed/AP", "segm/all/AR100", "segm/all/APr", "boundary/all/AP"}
    assert "segm/all/APr" in scores.metric_names(("segm",), (), 300, has_frequencies=True)
    assert "segm/harmonic_mean" not in scores.metric_names(("segm",), ("A", "mixed"), 20)


def test_numbers_are_flattened_to_their_names():
    measured = {"bbox": {"all": {"AP": 0.5}}, "segm": {"A": {"AP": None}}, "harmonic_mean": {"segm": 0.25}}
    assert scores.flatten(measured | {"per_class": {}, "federated": False}) == {
        "bbox/all/AP": 0.5,
        "segm/A/AP": None,
        "segm/harmonic_mean": 0.25,
    }
