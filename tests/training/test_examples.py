"""What a run prints of its data."""

import types

import numpy as np
import pytest

from maskx_jax.coco.categories import Categories
from maskx_jax.data import reading
from maskx_jax.data.pipeline import Statistics
from maskx_jax.data.records import BrokenRecordError
from maskx_jax.data.roles import class_table
from maskx_jax.data.worker_processes import usable_cores
from maskx_jax.training import examples
from tests.models.build import tiny_config


@pytest.mark.parametrize("count", [100, 101])
def test_the_table_of_many_classes_goes_into_a_file(tmp_path, count):
    class Index:
        categories = Categories(tuple(range(1, count + 1)), tuple(f"class {i}" for i in range(1, count + 1)))
        image_labels = (np.array([1, 1, 7]),)
        image_has_mask = (np.array([True, True, False]),)

    allowed = np.ones(count + 1, bool)
    printed = examples._describe_classes(Index(), allowed, tmp_path / "run")
    path = tmp_path / "run" / examples.CLASSES_FILE
    table = class_table(Index(), allowed)
    if count == 100:
        assert printed == table and not path.exists()
    else:
        assert path.read_text() == table + "\n"
        assert len(printed.splitlines()) == 4 and printed.endswith(str(path))


def test_a_run_says_who_makes_its_examples(tmp_path, capsys):
    config = tiny_config()
    config.data.shapes.update(num_train=4, num_eval=4)
    opened = examples.open_examples(config, tmp_path)
    opened.batches(config, 0, Statistics())
    workers = min(16, usable_cores())
    assert f"examples are made by threads, {workers} at a time on each process\n" in capsys.readouterr().out
    config.data.update(loader="tf_data", num_workers=3, read_ahead=9)
    opened.batches(config, 0, Statistics())
    expected = "examples are made by tf_data, 3 at a time on each process, 9 records read ahead\n"
    assert expected in capsys.readouterr().out


def test_a_weight_of_predicted_masks_is_refused_where_none_are_known(tmp_path):
    config = tiny_config()
    config.data.predicted_mask_weight = 0.5
    with pytest.raises(ValueError, match=r"data\.predicted_mask_weight is 0\.5; expected 1 for training data that"):
        examples.open_examples(config, tmp_path)


def test_whether_predicted_masks_are_known_is_read_from_the_first_record_that_is_whole(monkeypatch):
    waits = []
    monkeypatch.setattr(reading, "time", types.SimpleNamespace(sleep=waits.append))
    answers = [BrokenRecordError("cut off"), OSError("no answer"), types.SimpleNamespace(mask_weight=np.ones(1))]

    class Source:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            asked.append(index)
            answer = answers[len(asked) - 1]
            if isinstance(answer, Exception):
                raise answer
            return answer

    asked = []
    examples._check_predicted_masks(0.5, Source())
    assert asked == [0, 1, 1] and len(waits) == 1
    # Training itself says that none can be read.
    asked, answers = [], 3 * answers[:1]
    examples._check_predicted_masks(0.5, Source())
    assert asked == [0, 1, 2]
