"""Entries made by other processes are those of this one, in order; what goes wrong there arrives here."""

import contextlib
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from maskx_jax.evaluation import entry_processes, results
from maskx_jax.structures import Detections

SIZE = (40, 60)
CONVENTIONS = {"id_of_label": np.array([0, 3, 9]), "mask_threshold": 0.4, "grid": "integer"}


def detections(seed, num=5):
    rng = np.random.default_rng(seed)
    corners = rng.random((num, 2, 2)) * 40
    return Detections(
        boxes=np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32),
        scores=rng.random(num).astype(np.float32),
        labels=rng.integers(1, 3, num),
        masks=rng.random((num, 7, 7)).astype(np.float32),
        valid=np.arange(num) != 2,
    )


def image(number):
    return {"image_id": number, "image_size": SIZE, "scale": 0.5}


def ended(process_id, seconds=10):
    """Whether a process ends in some seconds."""
    for _ in range(int(seconds / 0.05)):
        try:
            if pathlib.Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_entries_errors_and_signals():
    maker = entry_processes.open_maker(2, **CONVENTIONS)
    ids = [process._process.pid for process in maker._processes]
    with contextlib.closing(maker):
        waiting = [maker.submit(detections(number), **image(number)) for number in range(20)]
        expected = [results.entries(detections(number), **image(number), **CONVENTIONS) for number in range(20)]
        assert [pickle.loads(encoded()) for encoded in waiting] == expected and sum(map(len, expected)) > 20
        broken = detections(1).replace(labels=np.full(5, 7))
        with pytest.raises(ValueError, match=r"image 4, detection 1: label 7 is not in 1\.\.2"):
            maker.submit(broken, **image(4))()
        # A scheduler's signals to all are for the process that closes these.
        for number in (signal.SIGINT, signal.SIGTERM):
            for process_id in ids:
                os.kill(process_id, number)
        waiting = [maker.submit(detections(number), **image(number)) for number in range(4)]
        assert [pickle.loads(encoded()) for encoded in waiting] == expected[:4]
        os.kill(ids[0], signal.SIGKILL)
        os.kill(ids[1], signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"ended with code -9; .* evaluation\.num_processes=1"):
            maker.submit(detections(0), **image(0))()
    assert all(map(ended, ids))


def test_a_process_imports_no_jax_and_ends_with_the_one_that_began_it():
    loaded = "import sys; from maskx_jax.evaluation import entry_processes; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jax", "flax", "tensorflow", "cv2"} & set(names) and "numpy" in names
    begin = (
        "import time; from maskx_jax.evaluation import entry_processes\n"
        "maker = entry_processes.open_maker(2, id_of_label=None)\n"
        "print(*[process._process.pid for process in maker._processes], flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", begin], stdout=subprocess.PIPE, text=True) as parent:
        ids = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
    assert len(ids) == 2 and all(map(ended, ids))
