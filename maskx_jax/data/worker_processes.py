"""What worker processes of `multiprocessing` do that it does not do for them."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """End this process when the one that started it has ended: where that is killed, nobody else would."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
