"""What an exported program is run with: its canvases and the facts beside it."""

import types

import pytest

from configs import base
from maskx_jax.export import detection


@pytest.mark.parametrize(
    ("canvas", "expected"),
    [
        ((800, 1344), {"landscape": (800, 1344), "portrait": (1344, 800)}),
        ((64, 64), {"square": (64, 64)}),
    ],
)
def test_there_is_a_canvas_an_orientation_unless_one_is_enough(canvas, expected):
    config = base.get_config()
    config.data.transform.canvas = canvas
    assert detection.canvases(types.SimpleNamespace(config=config)) == expected
