"""What is asked of the files of a split before the first record is read: that they are whole, and may all be open."""

import concurrent.futures
import resource
from collections.abc import Mapping
from pathlib import Path

from array_record.python import array_record_module

from maskx_jax import errors

# Each costs some reads of the end of a file, for which object stores take their time.
_FILES_AT_ONCE = 64
# What a process opens besides: libraries, checkpoints, logs, connections. It is no error where the limit leaves fewer.
_OTHER_FILES = 512
# What it has open before it does anything.
_FEWEST_OTHER_FILES = 32


def check_files(num_records: Mapping[str, int]) -> None:
    """Check that the files of a split are there, whole to their end, and hold the records that the dataset says.

    The records themselves are not read.

    Args:
      num_records: of each file, by its path.

    Raises:
      ValueError: the message names the files that are not as they should be, and why.
    """
    with concurrent.futures.ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        found = pool.map(_fault, num_records, num_records.values())
        faults = [f"{Path(path).name} ({fault})" for path, fault in zip(num_records, found, strict=True) if fault]
    if faults:
        raise ValueError(f"{len(faults)} of {len(num_records)} files cannot be used: {errors.some(faults)}")


def _fault(path: str, num_records: int) -> str:
    # With the library's defaults much more than the end of the file is read.
    reader = array_record_module.ArrayRecordReader(
        path, options="readahead_buffer_size:0", file_reader_buffer_size=2**15
    )
    found = reader.num_records()
    try:
        # What cannot be opened is a reader without records, which says here why.
        reader.close()
    except RuntimeError as error:
        return errors.one_line(error).partition(";")[0]
    return "" if found == num_records else f"it holds {found} records, expected {num_records}"


def allow_open_files(number: int) -> None:
    """Raise this process' limit of open files (`ulimit -n`) where it is too low for a dataset; others inherit it.

    Args:
      number: of the files of all datasets that are open; they stay open once they are read from.

    Raises:
      OSError: the limit cannot be raised so far.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if hard != unlimited and number + _FEWEST_OTHER_FILES > hard:
        raise OSError(
            f"got {number} files of prepared data, which stay open; expected fewer than the {hard} that this process "
            "may open: raise the hard limit (ulimit -Hn), or prepare the data again, to fewer files"
        )
    wanted = number + _OTHER_FILES if hard == unlimited else min(number + _OTHER_FILES, hard)
    if soft != unlimited and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
