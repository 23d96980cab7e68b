"""Pictures of any size and order in, predictions in their own pixels out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from maskx_jax.prediction.pictures import Picture, pictures_of
from maskx_jax.prediction.predictor import Options
from tests.prediction.finder import Finder, picture, predictor

# Of both orientations, of the canvas' own size, smaller and larger than it.
SIZES = [(64, 96), (96, 64), (32, 48), (128, 100), (200, 300), (64, 64), (1, 1), (300, 20)]


@pytest.fixture(scope="module")
def model():
    return predictor()


def predict(model, given, **options):
    return list(model.predict(pictures_of(given), Options(batch_size=jax.local_device_count(), **options)))


def test_pictures_come_back_in_order_with_objects_in_their_own_pixels(model):
    boxes = [(0.25 * w, 0.25 * h, 0.75 * w, 0.5 * h) for h, w in SIZES]
    rectangles = [tuple(round(v) for v in box) for box in boxes]
    given = [picture(size, red=box) for size, box in zip(SIZES, rectangles, strict=True)]
    found = predict(model, given * 2, threshold=0.0)
    for one, size, expected in zip(found, SIZES * 2, rectangles * 2, strict=True):
        assert one.predictions.size == size
        if min(expected[2] - expected[0], expected[3] - expected[1]) < 1:
            continue
        np.testing.assert_allclose(one.predictions.boxes, [expected], atol=max(size) / 64 + 1)
        assert one.predictions.names == ["red"] and one.predictions.category_ids.tolist() == [3]
        assert one.predictions.masks[0].shape == size


def test_a_lower_score_than_the_threshold_is_left_out(model):
    image = picture((64, 96), red=(10, 10, 30, 30), green=(50, 10, 80, 50))
    for threshold, names in ((0.5, ["red", "green"]), (0.8, ["red"]), (0.95, [])):
        (found,) = predict(model, image, threshold=threshold)
        assert found.predictions.names == names
        assert len(found.predictions.to_coco()) == len(names)


def test_a_picture_that_cannot_be_read_is_an_error_in_its_place(model, tmp_path):
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    for name in ("a.png", "c.png"):
        Image.fromarray(picture((64, 96), red=(10, 10, 30, 30))).save(tmp_path / name)
    found = predict(model, tmp_path)
    assert [one.picture.name for one in found] == ["a.png", "b.jpg", "c.png"]
    assert [one.error is None for one in found] == [True, False, True]
    assert "b.jpg: cannot be read as an image" in str(found[1].error)


def test_small_objects_of_a_large_picture_are_found_in_its_tiles_and_large_ones_in_the_whole(model):
    # On the canvas of the whole picture the red one has a sixth of a pixel; the green one is larger than a tile.
    image = picture((640, 960), red=(700, 300, 703, 303), green=(100, 50, 500, 400))
    (whole,) = predict(model, image)
    assert whole.predictions.names == ["green"]
    (tiled,) = predict(model, image, tile=96)
    assert tiled.predictions.names == ["red", "green"]
    np.testing.assert_allclose(tiled.predictions.boxes, [[700, 300, 703, 303], [100, 50, 500, 400]], atol=12)
    # A tile sees every pixel of it.
    assert tiled.predictions.masks[0][301, 701] and tiled.predictions.masks[0].sum() < 20


class Pointing(Finder):
    """Finds a keypoint too: in the second cell of the first row, of 4 x 4 cells."""

    def detect(self, images, image_sizes):
        found = super().detect(images, image_sizes)
        maps = jnp.zeros((*found.scores.shape, 1, 4, 4)).at[..., 0, 1].set(9.0)
        return dataclasses.replace(found, keypoint_maps=maps)


def test_keypoints_lie_in_the_picture_found_whole_or_in_tiles(model):
    image = picture((128, 192), red=(20, 20, 40, 60), green=(100, 40, 180, 80))
    pointing = dataclasses.replace(model, model=Pointing())
    canvas = dataclasses.replace(pointing, keypoint_grid="canvas")
    (on_image,), (on_canvas,), (tiled,) = (
        predict(pointing, image),
        predict(canvas, image),
        predict(canvas, image, tile=96),
    )
    middles = [[27.5, 25], [130, 45]]
    for found, most in ((on_image, 2), (on_canvas, 3), (tiled, 2)):
        assert found.predictions.keypoints.shape == (2, 1, 3)
        # By half a cell of the map, in x of the first one 2.5 pixels.
        assert np.abs(found.predictions.keypoints[:, 0, :2] - middles)[0, 0] <= most
    # On the canvas a pixel is two of the picture.
    assert (on_image.predictions.keypoints != on_canvas.predictions.keypoints).any()
    assert on_canvas.predictions.to_coco()[0].keys() >= {"keypoints", "segmentation"}


def test_a_rare_orientation_does_not_keep_what_comes_after_it(model):
    read = []

    def numbered():
        for number in range(40 * jax.local_device_count()):
            size = (96, 64) if number == 1 else (64, 96)
            pixels = picture(size, red=(10, 10, 30, 30))
            yield Picture(str(number), lambda number=number, pixels=pixels: read.append(number) or pixels)

    found = model.predict(numbered(), Options(batch_size=jax.local_device_count(), num_workers=1))
    next(found), next(found)
    assert len(read) <= 8 * jax.local_device_count()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": -1}, "^got a batch of -1; expected a multiple of the"),
        ({"tile": 0}, "^got tiles of 0 pixels with an overlap of"),
        ({"tile": 10, "overlap": 1.0}, "^got tiles of 10 pixels with an overlap of 1.0; expected"),
    ],
)
def test_an_option_that_is_out_of_range_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        next(model.predict(pictures_of(picture((8, 8))), Options(**options)))
