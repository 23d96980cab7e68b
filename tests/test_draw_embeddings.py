"""Pictures of embeddings, made by a model that says known ones."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import embedmask, fcos
from maskx_jax.data.shapes.source import ShapesSource
from maskx_jax.models.build import build
from maskx_jax.models.dense.embed_head import Embeddings, EmbedMaskHead
from maskx_jax.runs.loading import Loaded
from maskx_jax.structures import Detections
from tools.draw_embeddings import draw, principal_colors


def test_pixels_of_one_embedding_have_one_colour_and_others_another():
    rng = np.random.default_rng(0)
    kinds, vectors = rng.integers(0, 5, (12, 20)), rng.normal(0, 1, (5, 8))
    colors = principal_colors(vectors[kinds])
    assert colors.shape == (12, 20, 3) and colors.dtype == np.uint8
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) == 5
    assert all(len(np.unique(colors[kinds == kind], axis=0)) == 1 for kind in range(5))
    # The first component is the one that varies most; where nothing varies, nothing is divided by 0.
    line = np.linspace(-3, 3, 100)[:, None, None] * np.array([0.0, 2.0, 0.0, 0.0])
    red = principal_colors(line)[..., 0].ravel().astype(int)
    assert (np.diff(red) >= 0).all() and np.ptp(red) > 200
    assert (principal_colors(np.ones((2, 2, 4))) == 128).all()


class Known:
    """Finds a box, and embeds all pixels of the left half of the canvas alike, and those of the right half."""

    embed_head = EmbedMaskHead()

    def apply(self, variables, images, image_sizes, method):
        one = jnp.ones((1, 1))
        if method == "detect":
            boxes = jnp.array([[[0.0, 0.0, 32.0, 32.0]]])
            return Detections(boxes, one, one.astype(int), one[..., None, None], one > 0)
        left = jnp.arange(16) < 8
        pixels = jnp.where(left[None, None, :, None], jnp.arange(5.0), -jnp.arange(5.0))
        return Embeddings(jnp.broadcast_to(pixels, (1, 16, 16, 5)), one, one)


@pytest.fixture
def config():
    config = embedmask.get_config("size=tiny,data=shapes")
    config.data.shapes.update(num_eval=2, image_size=64, num_hues=3, num_textures=2)
    config.data.transform.update(canvas=(64, 64), short_sides=(64,), max_long_side=64)
    return config


def test_a_picture_has_ground_truth_predictions_and_embeddings_side_by_side(config, tmp_path):
    run = Loaded(config, Known(), {}, ShapesSource(1, 0, num_hues=3, num_textures=2).categories, 1)
    # There are no more images.
    assert draw(run, tmp_path) == 2
    picture = cv2.imread(str(tmp_path / "1.png"))
    assert picture.shape[1] == 4 * 640 + 3 * 8
    for start in (2 * 648, 3 * 648):
        panel = picture[-640:, start : start + 640]
        left, right = panel[:, :320], panel[:, 320:]
        assert (left == left[0, 0]).all() and (right == right[0, 0]).all() and (left != right).any()


def test_a_model_without_embeddings_is_refused(config, tmp_path):
    model = build(fcos.get_config("size=tiny").model, 6)
    with pytest.raises(ValueError, match=r"the run's model has no embeddings; expected EmbedMask"):
        draw(Loaded(config, model, {}, None, 1), tmp_path)
    with pytest.raises(ValueError, match="without a mask branch has no embeddings"):
        images, sizes = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8), jax.ShapeDtypeStruct((1, 2), jnp.float32)
        jax.eval_shape(lambda *arguments: model.init(jax.random.key(0), *arguments, method="embeddings"), images, sizes)
