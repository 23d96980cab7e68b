"""Keypoints lie where their marks are painted, and say what is hidden."""

import json

import numpy as np
import pytest

from maskx_jax.coco.keypoints import Skeleton
from maskx_jax.data.records import check_record
from maskx_jax.data.shapes.marks import SKELETON, locate
from maskx_jax.data.shapes.source import ShapesSource

NUM_IMAGES = 60


@pytest.fixture(scope="module")
def marked():
    source = ShapesSource(NUM_IMAGES, 11, keypoints=True)
    return source, [source[index] for index in range(NUM_IMAGES)]


def test_nothing_but_the_marks_differs_from_the_set_without(marked):
    source, records = marked
    plain = ShapesSource(NUM_IMAGES, 11)
    assert source.skeleton is SKELETON and plain.skeleton is None
    assert source.identity != plain.identity
    for index, record in enumerate(records):
        other = plain[index]
        check_record(record, 60, SKELETON)
        assert other.keypoints is None
        for name in ("boxes", "labels", "masks", "mask_frames", "is_crowd"):
            np.testing.assert_array_equal(getattr(record, name), getattr(other, name))
        changed = (record.image != other.image).any(axis=2)
        rows, columns = np.nonzero(changed)
        if not len(rows):
            assert record.is_crowd.all()
            continue
        # A mark reaches as far as its radius of 128 / 45 pixels, and into the pixel there.
        points = record.keypoints.points[record.keypoints.labelled]
        centres = np.stack([columns, rows], axis=1) + 0.5
        assert np.linalg.norm(centres[:, None] - points, axis=2).min(axis=1).max() < 128 / 45 + 1.1


def test_a_visible_keypoint_has_the_colour_of_its_mark(marked):
    # Where another mark of the object lies over it, or near, the colour is that one's.
    expected = {"left_tip": 255, "right_tip": 255, "top": 0, "bottom": 0}
    errors = []
    for record in marked[1]:
        for slot, keypoint in np.argwhere(record.keypoints.visible).tolist():
            distances = np.linalg.norm(record.keypoints.points - record.keypoints.points[slot, keypoint], axis=2)
            name = SKELETON.names[keypoint]
            if name in expected and np.sort(distances[record.keypoints.labelled])[1] > 6:
                x, y = np.floor(record.keypoints.points[slot, keypoint]).astype(int)
                errors.append(abs(record.image[y, x].astype(float).mean() - expected[name]))
    assert len(errors) > 200 and np.mean(np.array(errors) < 80) > 0.97


def test_the_tips_are_where_their_names_say(marked):
    for record in marked[1]:
        for slot in np.flatnonzero(~record.is_crowd):
            left, right, top, bottom, core = record.keypoints.points[slot].tolist()
            assert left[0] == min(left[0], right[0], top[0], bottom[0], core[0])
            assert right[0] == max(left[0], right[0], top[0], bottom[0], core[0])
            assert top[1] == min(left[1], right[1], top[1], bottom[1], core[1])
            assert bottom[1] == max(left[1], right[1], top[1], bottom[1], core[1])


def test_what_a_later_object_hides_is_labelled_and_not_visible(marked):
    source, records = marked
    hidden = 0
    for index, record in enumerate(records):
        scene = source._scene(index)
        assert (record.keypoints.labelled == ~record.is_crowd[:, None]).all()
        for slot, keypoint in np.argwhere(record.keypoints.labelled).tolist():
            column, row = (record.keypoints.points[slot, keypoint] * 2 - 0.5).astype(int)
            assert scene.whole[slot][row, column]
            covered = any(whole[row, column] for whole in scene.whole[slot + 1 :])
            assert record.keypoints.visible[slot, keypoint] == (not covered)
            hidden += covered
    total = sum(record.keypoints.labelled.sum() for record in records)
    assert 0.03 < hidden / total < 0.25


def test_a_mirrored_outline_exchanges_left_and_right(marked):
    source, _ = marked
    for index in range(20):
        scene = source._scene(index)
        points = locate(scene).points
        scene.whole[:] = [np.ascontiguousarray(whole[:, ::-1]) for whole in scene.whole]
        mirrored = locate(scene).points[:, SKELETON.flip]
        for slot in np.flatnonzero(~np.array(scene.is_crowd, bool)):
            # The tips to the left and the right differ by their height only, where several pixels are outermost.
            np.testing.assert_allclose(mirrored[slot, :2, 0], 128 - points[slot, :2, 0], atol=1e-4)
            np.testing.assert_allclose(mirrored[slot, 2:4, 1], points[slot, 2:4, 1], atol=1e-4)


def test_the_ground_truth_says_the_same_in_the_form_of_coco(marked):
    source, records = marked
    ground_truth = json.loads(json.dumps(source.coco_ground_truth()))
    assert all(Skeleton.from_coco(category) == SKELETON for category in ground_truth["categories"])
    of_image = {record.image_id: [] for record in records}
    for annotation in ground_truth["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    for record in records:
        for slot, annotation in enumerate(of_image[record.image_id]):
            points = np.array(annotation["keypoints"]).reshape(-1, 3)
            labelled = points[:, 2] > 0
            assert annotation["num_keypoints"] == labelled.sum()
            np.testing.assert_array_equal(labelled, record.keypoints.labelled[slot])
            np.testing.assert_array_equal(points[:, 2] == 2, record.keypoints.visible[slot])
            np.testing.assert_array_equal(points[labelled, :2] + 0.5, record.keypoints.points[slot][labelled])
    assert "keypoints" not in ShapesSource(2, 11).coco_ground_truth()["annotations"][0]
