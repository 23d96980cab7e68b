"""What is predicted is on disk, whatever ends the program."""

import json

import jax
import pytest

from maskx_jax.prediction.pictures import pictures_of
from maskx_jax.prediction.predictor import Options
from maskx_jax.prediction.writing import Writer
from tests.prediction.finder import CATEGORIES, picture, predictor


def test_after_an_interruption_what_is_done_is_written(tmp_path):
    given = [picture((64, 96), red=(10, 10, 30, 30))] * 8
    found = list(predictor().predict(pictures_of(given), Options(batch_size=jax.local_device_count())))
    writer = Writer(tmp_path, CATEGORIES, pictures=False, masks=False, num_workers=1)
    with pytest.raises(KeyboardInterrupt), writer:
        for one in found:
            writer.add(one)
        raise KeyboardInterrupt
    ids = [image["id"] for image in json.loads((tmp_path / "images.json").read_text())["images"]]
    assert ids == list(range(1, len(ids) + 1)) and len(ids) >= 6
    assert [entry["image_id"] for entry in json.loads((tmp_path / "results.json").read_text())] == ids


def test_a_failing_write_ends_the_program_and_not_the_results(tmp_path):
    (tmp_path / "pictures").write_text("in the way")
    (found,) = predictor().predict(
        pictures_of(picture((64, 96), red=(10, 10, 30, 30))), Options(batch_size=jax.local_device_count())
    )
    with pytest.raises(OSError, match="pictures"), Writer(tmp_path, CATEGORIES, pictures=True, masks=False) as writer:
        writer.add(found)
    assert json.loads((tmp_path / "results.json").read_text()) == []
