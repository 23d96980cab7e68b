"""Detecting over a source, without a config."""

import jax
import numpy as np

from maskx_jax import inference
from maskx_jax.data.transforms import Transform
from maskx_jax.distributed.mesh import make_mesh
from tests.runs.test_evaluation import NUM_IMAGES, Source, one_box_step


def test_every_image_comes_once_with_its_own_detections_and_no_ground_truth_is_read():
    class Unlabelled(Source):
        def coco_ground_truth(self):
            raise AssertionError

    mesh, source = make_mesh(), Unlabelled()
    transform = Transform(canvas=(64, 64), short_sides=(32,), max_long_side=64)
    batches = list(inference.detect(one_box_step(mesh), {}, source, transform, mesh, batch_size=8))
    assert [len(batch) for batch in batches] == [8, NUM_IMAGES - 8]
    images = [image for batch in batches for image in batch]
    assert [image.image_id for image in images] == source.image_ids.tolist()
    assert all(image.size == (64, 64) and image.scale == 0.5 for image in images)
    assert all(isinstance(array, np.ndarray) for array in jax.tree.leaves(images[0].found))
    # In pixels of the canvas, without the axis of the batch.
    assert all(image.found.boxes.tolist() == [[0, 0, 32, 32]] for image in images)
    brightness = [record.image.mean() for record in map(source.__getitem__, range(NUM_IMAGES))]
    assert np.argsort([image.found.scores[0] for image in images]).tolist() == np.argsort(brightness).tolist()
