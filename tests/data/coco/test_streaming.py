import copy
import json
import os
import pickle

import pytest

from maskx_jax.data.coco import streaming
from maskx_jax.data.coco.annotations import read_instances
from maskx_jax.data.coco.report import Report
from maskx_jax.data.coco.streaming import Annotations, open_instances
from tests.data.coco.test_builder import annotation, content


def varied():
    """Annotations in another order than images, with flags to fill in, keypoints, and names beyond ASCII."""
    whole = content(7)
    whole["images"][2]["file_name"] = "größe/\u732b.png"
    whole["info"] = {"description": "№ 1", "nested": [{"a": [1, 2.5, None]}]}
    whole["annotations"] = [annotation(k, 100 + (k * 5) % 7, note="ü" * (k % 3)) for k in range(20)]
    del whole["annotations"][3]["iscrowd"]
    whole["annotations"][4]["ignore"] = 1
    whole["annotations"][5]["keypoints"] = [1, 2, 2]
    return whole


def both(path):
    """Return what each way of reading a file says."""
    read = []
    for way in (open_instances, read_instances):
        report = Report("val")
        try:
            read.append((way(path, report), report))
        except ValueError as error:
            read.append(str(error))
    return read


@pytest.mark.parametrize("chunk", [1, 61, 2**22])
@pytest.mark.parametrize(
    "form", [{}, {"indent": 2}, {"ensure_ascii": False}, {"ensure_ascii": False, "separators": (",", ":")}]
)
def test_it_reads_what_is_read_at_once(tmp_path, monkeypatch, chunk, form):
    monkeypatch.setattr(streaming, "_CHUNK_BYTES", chunk)
    monkeypatch.setattr(streaming, "_AT_ONCE", 6)
    path = tmp_path / "a.json"
    for order in (1, -1):
        whole = dict(list(varied().items())[::order])
        path.write_text(json.dumps(whole, **form), encoding="utf-8")
        streamed, at_once = both(path)
        assert isinstance(streamed[0].annotations, Annotations) and streamed == at_once
        assert streamed[1].counts == {"iscrowd_filled": 1, "ignore_as_crowd": 1}
        assert streamed[0].to_coco() == at_once[0].to_coco()


FAULTS = {
    "id": lambda whole: whole["annotations"][9].update(id=8),
    "id no number": lambda whole: whole["annotations"][9].update(id=True),
    "image": lambda whole: whole["annotations"][9].update(image_id=5),
    "category": lambda whole: whole["annotations"][9].update(category_id=4),
    "flag": lambda whole: whole["annotations"][9].update(iscrowd=2),
    "no object": lambda whole: whole["annotations"].append(3),
    "fractions": lambda whole: [entry.update(bbox=[0.1, 0.1, 0.5, 0.5]) for entry in whole["annotations"]],
    "corners": lambda whole: [entry.update(bbox=[15, 10, 25, 20]) for entry in whole["annotations"]],
    "images": lambda whole: whole["images"].append(whole["images"][0]),
    "no images": lambda whole: whole.update(images=[]),
    "no section": lambda whole: whole.pop("annotations"),
    "name": lambda whole: whole["images"][0].update(file_name="../a.png"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named_as_where_it_is_read_at_once(tmp_path, name):
    whole = copy.deepcopy(varied())
    FAULTS[name](whole)
    (tmp_path / "a.json").write_text(json.dumps(whole))
    streamed, at_once = both(tmp_path / "a.json")
    assert isinstance(streamed, str) and streamed == at_once


@pytest.mark.parametrize(
    "text", ["{}", '{"a": 1} 2', '{"a" 1}', '{"a": [1,]}', "[1]", '{"images": [', '{"a": 12', "\0" * 9]
)
def test_what_is_no_json_is_named_likewise(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    streamed, at_once = both(tmp_path / "a.json")
    assert isinstance(streamed, str) and streamed == at_once


def test_other_encodings_and_repeated_keys_are_read_at_once(tmp_path):
    text = json.dumps(varied(), ensure_ascii=False)
    for data in (text.encode("utf-16"), text.encode("utf-8-sig"), text.replace("{", '{"images": [], ', 1).encode()):
        (tmp_path / "a.json").write_bytes(data)
        streamed, at_once = both(tmp_path / "a.json")
        assert streamed == at_once and not isinstance(streamed[0].annotations, Annotations)


def test_entries_are_counted_without_reading_and_pickled_as_text(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(varied()))
    annotations = open_instances(tmp_path / "a.json", Report("val")).annotations
    assert len(annotations) == 7 and sum(map(len, annotations.values())) == 20
    sent = pickle.loads(pickle.dumps(annotations[103]))
    assert type(sent) is list and sent == annotations[103] and annotations[103][0] == sent[0]


def test_a_file_that_changes_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(varied()))
    annotations = open_instances(path, Report("val")).annotations
    annotations.check()
    os.utime(path, (1, 1))
    with pytest.raises(ValueError, match=r"a\.json has changed while it was read"):
        annotations.check()


@pytest.mark.parametrize("content", ["[]", '[1, {"a": [2]}, "é"]', " [ 1 , 2 ]\n"])
def test_entries_of_a_list_come_one_after_the_other(tmp_path, content):
    (tmp_path / "list.json").write_text(content)
    assert list(streaming.read_list(tmp_path / "list.json")) == json.loads(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": 1}', "got a dict at the top; expected a list"),
        ("[1] [2]", "not JSON"),
        ("[1, 2", "not JSON"),
        ("", "not JSON"),
        ("[1, ]", "not JSON"),
    ],
)
def test_what_is_no_list_is_refused_by_name(tmp_path, content, said):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(ValueError, match=rf"list\.json: {said}"):
        list(streaming.read_list(tmp_path / "list.json"))
