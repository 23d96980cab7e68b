import os
import pickle
import re
import resource
import shutil
import subprocess
import sys

import pytest

from maskx_jax.data.coco.builder import prepare
from maskx_jax.data.coco.source import CocoSource
from tests.data.coco.test_builder import make

NUM_IMAGES = 24


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder / "out", {"val": make(folder, NUM_IMAGES)}, num_shards=NUM_IMAGES // 2)
    return folder / "out"


@pytest.fixture
def copied(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "copy")


def shards_of(folder):
    return sorted(folder.glob("*.array_record-*"))


def cut(path, num_bytes):
    path.write_bytes(path.read_bytes()[:num_bytes])


def end_overwritten(path):
    data = bytearray(path.read_bytes())
    data[-(2**16) :] = bytes(2**16)
    path.write_bytes(data)


DAMAGE = {
    "missing": (lambda path: path.unlink(), "No such file or directory"),
    "empty": (lambda path: cut(path, 0), "at least 64KB"),
    "cut in the middle": (lambda path: cut(path, path.stat().st_size // 2), ""),
    "cut by a byte": (lambda path: cut(path, -1), ""),
    "without its end": (end_overwritten, ""),
    "another": (lambda path: shutil.copy(path.with_name("coco_records-one.array_record-00000-of-00001"), path), ""),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_file_that_is_not_whole_is_named_when_the_set_is_opened(copied, tmp_path, kind):
    damage, said = DAMAGE[kind]
    if kind == "another":
        prepare(copied, {"one": make(tmp_path, 1)}, num_shards=1, add=True)
        said = "it holds 1 records, expected 2"
    path = shards_of(copied)[-5]
    damage(path)
    message = (
        rf"^{copied} is damaged, prepare the dataset again: ValueError: 1 of 12 files cannot be used: {path.name} \("
    )
    with pytest.raises(ValueError, match=message) as caught:
        CocoSource(copied, "val")
    assert said in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_the_first_files_that_are_not_whole_are_named_and_all_are_counted(copied):
    for path in shards_of(copied)[2:10]:
        path.unlink()
    with pytest.raises(ValueError, match=r"8 of 12 files cannot be used: .*00002-of.*00006-of.* and 3 more") as caught:
        CocoSource(copied, "val")
    assert "00007" not in str(caught.value)


@pytest.fixture
def few_files():
    """Let this process open ten files more than it has: the limit is one of their numbers, and gaps are filled."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = set(range(soft)) - set(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (sorted(free)[10], hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_set_of_more_files_than_a_process_may_open_raises_the_limit(prepared, few_files):
    sources = [CocoSource(prepared, "val") for _ in range(2)]
    assert [source[index].image_id - 100 for source in sources for index in range(NUM_IMAGES)] == [
        *range(NUM_IMAGES),
        *range(NUM_IMAGES),
    ]
    assert pickle.loads(pickle.dumps(sources[0]))[3].image_id == 103


def test_a_limit_that_cannot_be_raised_is_one_line():
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (90, 100))\n"
        "from maskx_jax.data.coco.shard_files import allow_open_files\n"
        "limits = []\n"
        "for number in (1, 60, 70):\n"
        "    try:\n"
        "        allow_open_files(number)\n"
        "        print(resource.getrlimit(resource.RLIMIT_NOFILE))\n"
        "    except OSError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *raised, said = done.stdout.strip().split("\n")
    assert raised == ["(100, 100)", "(100, 100)"]
    assert re.match(r"got 70 files of prepared data, .* expected fewer than the 100 .*ulimit -Hn", said)


def test_a_limit_that_suffices_stays(prepared):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[0] != resource.RLIM_INFINITY and before[0] < 1024:
        pytest.skip("this process may open few files")
    CocoSource(prepared, "val")
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
