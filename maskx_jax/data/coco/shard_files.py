"""What is asked of the files of a split before the first record is read: that they are whole."""

import concurrent.futures
from collections.abc import Mapping
from pathlib import Path

from array_record.python import array_record_module

from maskx_jax import errors

# Each costs some reads of the end of a file, for which object stores take their time.
_FILES_AT_ONCE = 64


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
