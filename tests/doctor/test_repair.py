"""A mended copy, and the list of its changes; test_examination.py mends every defect."""

import json

import pytest

from maskx_jax.doctor import repair
from maskx_jax.doctor.examination import examine
from tests.doctor.dataset import Dataset, synthetic


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Dataset:
    return synthetic(tmp_path_factory.mktemp("sound") / "data")


def test_a_sound_file_is_copied_as_it_is(sound, tmp_path):
    sound.save()
    found = examine({"train": sound.splits()["train"]}, keep_changes=True)
    said = repair.write(found.splits["train"], tmp_path / "copy.json")
    assert json.loads((tmp_path / "copy.json").read_text()) == sound.train
    assert "0 entries changed, 0 left out" in said and "0 errors and warnings" in said


def test_changes_say_what_was_and_what_is(sound, tmp_path):
    data = sound.copy(tmp_path / "data")
    data.train["annotations"][0]["area"] = 0
    del data.train["annotations"][1]["iscrowd"]
    data.train["annotations"][2]["bbox"] = [500, 500, 5, 5]
    lost = dict(data.train["annotations"][2])
    data.with_pictures = False
    repair.write(data.examine(keep_changes=True).splits["train"], tmp_path / "mended.json")
    changes = json.loads((tmp_path / "mended.changes.json").read_text())["changes"]
    by_id = {change["id"]: change for change in changes}
    ids = [annotation["id"] for annotation in data.train["annotations"][:3]]
    assert by_id.keys() == set(ids)
    assert by_id[ids[0]]["before"] == {"area": 0} and 3500 < by_id[ids[0]]["after"]["area"] < 3800
    assert (by_id[ids[1]]["before"], by_id[ids[1]]["after"]) == ({}, {"iscrowd": 0})
    assert (by_id[ids[2]]["before"], by_id[ids[2]]["after"]) == (lost, None)


@pytest.mark.parametrize("taken", ["out.json", "out.changes.json"])
def test_nothing_is_written_over(taken, sound, tmp_path):
    (tmp_path / taken).write_text("mine")
    with pytest.raises(FileExistsError, match="exists; a mended copy takes the place of nothing"):
        repair.check_output(tmp_path / "out.json")


def test_a_mended_copy_needs_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        repair.check_output(tmp_path / "none/out.json")
