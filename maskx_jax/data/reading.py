"""Reads records from storage that may fail for the moment: network file systems and object stores do."""

import time

from absl import logging

from maskx_jax import errors
from maskx_jax.data.records import Record, Source

# Seconds before each further try: what a server needs that begins anew, or a store that has too many requests.
_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)


def read_record(source: Source, index: int) -> Record:
    """Read a record; where the storage fails it is tried again, after ever longer waits.

    Args:
      source: a read of it that fails for the moment raises an OSError.
      index: of the record.

    Raises:
      OSError: the last try failed too.
      BrokenRecordError: the record is damaged, which trying again does not change.
    """
    for wait in _WAITS:
        try:
            return source[index]
        except OSError as error:
            logging.warning(
                "example %d cannot be read and is tried again in %g s: %s", index, wait, errors.one_line(error)
            )
        time.sleep(wait)
    return source[index]
