"""The folder beside its output in which a dataset is made.

A run goes on with what one that was killed has left there, and machines that share a disk each write a part of it.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

_LOCK = "lock"
# If it is there, parts have written here, and only the finished dataset removes the folder.
_PARTS = "parts"


def has_parts(folder: Path) -> bool:
    """Return whether parts of a dataset have been written to a folder of `work_folder`."""
    return (folder / _PARTS).exists()


def work_folder_of(output: Path) -> Path:
    """Return where the folder for an output is, if there is one."""
    return output.parent / f".{output.name}-unfinished"


@contextlib.contextmanager
def work_folder(output: Path, *, is_part: bool = False) -> Iterator[Path]:
    """Make the folder for an output, or take over the one that is there.

    It is removed at the end, except by a part, or if it holds parts and the work fails.

    Args:
      output: what is made.
      is_part: whether others may work in the folder at the same time, if they are parts too.

    Raises:
      FileExistsError: another process makes the same output, or the folder is somebody else's.
    """
    folder = work_folder_of(output)
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
            raise FileExistsError(f"{output} is being prepared by another process, or by parts that run") from None
        if is_part:
            (folder / _PARTS).touch()
        has_ended = False
        try:
            yield folder
            has_ended = not is_part
        finally:
            if has_ended or not has_parts(folder):
                # Nobody takes it over under its new name, and NFS removes no folder with a file that is open.
                folder = folder.rename(folder.with_name(f"{folder.name}-{secrets.token_hex(8)}"))
                lock.close()
                shutil.rmtree(folder)
