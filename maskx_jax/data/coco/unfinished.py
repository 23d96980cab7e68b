"""The folder beside its output in which a dataset is made, and with which a run goes on after one that was killed."""

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

_LOCK = "lock"
_DESCRIPTION = "description"


@contextlib.contextmanager
def work_folder(output: Path) -> Iterator[Path]:
    """Make the folder for an output, or take over the one of a run that was killed; it is removed at the end.

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
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(f"{output} is being prepared by another process") from None
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def described_folder(folder: Path, description: str) -> Path:
    """Make a folder for what is of a description; what is there of another is removed."""
    path = folder / _DESCRIPTION
    if folder.exists() and not (path.exists() and path.read_text() == description):
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    path.write_text(description)
    return folder
