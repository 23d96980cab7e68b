"""How many workers this process may keep busy, and what `multiprocessing` does not do for its processes."""

import multiprocessing
import os
import threading


def usable_cores() -> int:
    """Return how many cores this process may run on: batch schedulers often grant only some of a machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    # macOS binds no process to cores.
    return os.cpu_count() or 1


def end_with_parent() -> None:
    """End this process when the one that started it has ended: where that is killed, nobody else would."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
