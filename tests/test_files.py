"""Files are written whole or not at all, and never through a link."""

import os

import pytest

from maskx_jax import files


@pytest.mark.parametrize("before", ["nothing", "file", "link", "dangling link"])
def test_writing_replaces_what_is_there(tmp_path, before):
    target, path = tmp_path / "elsewhere", tmp_path / "run" / "results.json"
    path.parent.mkdir()
    if before == "file":
        path.write_text("old")
    elif before != "nothing":
        path.symlink_to(target)
    if before == "link":
        target.write_text("precious")
    files.write_text(path, "new, ü")
    assert path.read_text("utf-8") == "new, ü" and not path.is_symlink()
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]
    assert (target.read_text() if before == "link" else target.exists()) == ("precious" if before == "link" else False)
    # As any new file: readable by those whom the umask admits.
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    files.write_json(path, {"AP": 0.5})

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        files.write_json(path, {"AP": 0.6})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"AP": float("nan")})
    assert path.read_text() == '{\n  "AP": 0.5\n}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("count", [0, 1, 100, 101, 250])
def test_a_long_list_has_the_bytes_of_json_dumps(tmp_path, count):
    entries = [{"id": i, "score": i / 7, "name": 'ü "\\', "box": [i, None, True]} for i in range(count)]
    files.write_json_list(tmp_path / "list.json", entries)
    files.write_json(tmp_path / "whole.json", entries, indent=None, separators=(",", ":"))
    assert (tmp_path / "list.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json_list(tmp_path / "list.json", [*entries, float("inf")])
    assert (tmp_path / "list.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_new_folder_is_whole_or_not_there(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(RuntimeError, match="halfway"), files.new_folder(path) as folder:
        (folder / "half").touch()
        raise RuntimeError("halfway")
    assert list(tmp_path.iterdir()) == []
    path.mkdir()
    with files.new_folder(path) as folder:
        (folder / "whole").touch()
        assert not (path / "whole").exists()
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "whole"]
    # Its mode is that of any new folder.
    (tmp_path / "other").mkdir()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_new_folder_is_not_made_over_another_one(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    for path in (tmp_path / "out", tmp_path / "out/mine"):
        with pytest.raises(ValueError, match=r"exists; expected a new or an empty folder$"), files.new_folder(path):
            pass
    with pytest.raises(FileNotFoundError, match="there is no folder"), files.new_folder(tmp_path / "no/out"):
        pass
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "mine"]


def test_reading_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf \n[1, 2.5]")
    assert files.read_json(path) == [1, 2.5]
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not JSON: it begins with b''"),
        (b"[{", "not JSON: Expecting"),
        (b"\xff\xfe\x00", "not JSON: it begins with"),
        (b'["\xff"]', "not JSON: 'utf-8' codec"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
        (b"[" + b"1" * 5000 + b"]", "not JSON: Exceeds the limit"),
    ],
)
def test_what_is_no_json_is_named(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        files.read_json(path)
    assert str(path) in str(caught.value)


def test_a_sparse_file_a_pipe_and_a_folder_are_not_read(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(40 * 2**30)
    os.mkfifo(tmp_path / "pipe")
    for name in ("sparse", "pipe", "."):
        with pytest.raises(ValueError, match=r"expected at most 8 GiB of JSON|not a regular file"):
            files.read_json(tmp_path / name)


def test_a_link_out_of_a_folder_is_not_followed(tmp_path):
    assert files.folder_in(tmp_path / "run", "evaluation", 10) == tmp_path / "run/evaluation/10"
    assert (tmp_path / "run/evaluation/10").is_dir()
    # A link to another place in it, and to it, is the owner's choice.
    (tmp_path / "run/latest").symlink_to("evaluation/10")
    (tmp_path / "other_name").symlink_to("run")
    assert files.folder_in(tmp_path / "other_name", "latest").samefile(tmp_path / "run/evaluation/10")
    (tmp_path / "precious").mkdir()
    (tmp_path / "run/evaluation/20").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match=r"evaluation/20 leads to .*precious, out of .*run; give another folder"):
        files.folder_in(tmp_path / "run", "evaluation", 20)
