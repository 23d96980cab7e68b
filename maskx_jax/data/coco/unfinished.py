"""The folder beside its output in which a dataset is made.

A run goes on with what one that was killed has left there, and machines that share a disk each write a part of it.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

_LOCK = "lock"
# Where it is, some of the folder is of parts, which nothing but the finished dataset removes.
_PARTS = "parts"
_DESCRIPTION = "description"


@contextlib.contextmanager
def work_folder(output: Path, *, is_part: bool = False) -> Iterator[Path]:
    """Make the folder for an output, or take over the one that is there.

    It is removed at the end, but by a part, and where there are parts and an error ends the work.

    Args:
      output: what is made.
      is_part: whether others may work in the folder at the same time, who say the same.

    Raises:
      FileExistsError: another process makes the same output, or the folder is somebody else's.
    """
    folder = output.parent / f".{output.name}-unfinished"
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    status = folder.lstat()
    # In a folder that many write to, somebody may have laid it, or a link, for others to write to.
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise FileExistsError(f"{folder} exists and is no folder of this user; remove it")
    if any(folder.iterdir()) and not (folder / _LOCK).exists():
        raise FileExistsError(f"{folder} exists and is none that prepare leaves; remove it")
    # To read and write: NFS asks for the one where others may hold the lock too, and for the other where not.
    with (folder / _LOCK).open("w+") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if is_part else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(f"{output} is being prepared by another process") from None
        if is_part:
            (folder / _PARTS).touch()
        has_ended = False
        try:
            yield folder
            has_ended = not is_part
        finally:
            if has_ended or not (folder / _PARTS).exists():
                shutil.rmtree(folder)


def described_folder(folder: Path, description: str) -> Path:
    """Make a folder for what is of a description; what is there of another is removed, unless parts are there.

    Args:
      folder: in the folder of `work_folder`.
      description: of what it is to hold.

    Raises:
      FileExistsError: what parts have written is of another description.
    """
    path = folder / _DESCRIPTION
    has_parts = (folder.parent / _PARTS).exists()
    # One without a description was left by a run that was killed, or is another part's, which is about to write it.
    is_other = path.read_text() != description if path.exists() else folder.exists() and not has_parts
    if is_other and has_parts:
        raise FileExistsError(
            f"{folder.parent} holds parts that were made of other input, or with other options; give all parts, and "
            "the run without one, the same, or remove it"
        )
    if is_other:
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    # Never half of it: others may be reading.
    partial = folder / f"{_DESCRIPTION}-{uuid.uuid4().hex}"
    partial.write_text(description)
    partial.replace(path)
    return folder
