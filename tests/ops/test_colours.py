import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.ops.colours import rgb_to_lab, sample_colours
from tests.ops.collectives import collectives
from tests.reference import colours as reference

sample_6 = jax.jit(functools.partial(sample_colours, size=6))


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ],
)
def test_lab_of_known_colours(rgb, lab):
    np.testing.assert_allclose(rgb_to_lab(jnp.array(rgb, jnp.float32)), lab, atol=0.02)


def test_lab_equals_the_reference_and_opencv():
    rng = np.random.default_rng(0)
    # The dark ones lie where both curves are straight.
    rgb = np.concatenate([rng.uniform(0, 255, (300, 3)), rng.uniform(0, 12, (100, 3))]).astype(np.float32)
    found = jax.jit(rgb_to_lab)(rgb)
    np.testing.assert_allclose(found, [reference.rgb_to_lab(*c) for c in rgb.tolist()], atol=0.02)
    # OpenCV's primaries and curves are rounded.
    np.testing.assert_allclose(found, cv2.cvtColor(rgb[None] / 255, cv2.COLOR_RGB2Lab)[0], atol=0.6)


def scene():
    """Return a canvas whose image is smaller than it, and regions inside, across its borders, outside and tiny."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    boxes = [[2, 3, 14, 9], [-4, -2, 10, 30], [11.5, 7.25, 29, 24], [3, 3, 3.5, 3.25], [40, 40, 50, 50], [5, 5, 5, 5]]
    return image, np.array([19, 27], np.float32), np.array(boxes, np.float32)


def test_colours_of_cells_equal_the_reference():
    image, size, boxes = scene()
    found = sample_6(image, size, boxes)
    expected = [reference.sample_colours(image, size.tolist(), box, 6) for box in boxes.tolist()]
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_cells_of_two_by_two_pixels_have_their_mean_colour():
    image, _, _ = scene()
    found = sample_6(image, jnp.array([24.0, 32.0]), jnp.array([[4.0, 6.0, 16.0, 18.0]]))[0]
    np.testing.assert_allclose(found, image[6:18, 4:16].reshape(6, 2, 6, 2, 3).mean(axis=(1, 3)), atol=0.01)


def test_what_stands_in_the_padding_changes_nothing():
    image, size, boxes = scene()
    other = image.copy()
    other[19:], other[:, 27:] = 255 - other[19:], 255 - other[:, 27:]
    np.testing.assert_array_equal(sample_6(other, size, boxes), sample_6(image, size, boxes))


def test_a_batch_split_over_devices_sends_nothing():
    batch = jnp.zeros((8, 16, 16, 3), jnp.uint8), jnp.full((8, 2), 16.0), jnp.ones((8, 5, 4))
    assert not collectives(jax.vmap(functools.partial(sample_colours, size=6)), *batch)
