"""A process that builds one case and times it when it is asked to. Standard library only."""

import contextlib
import ctypes
import gc
import json
import os
import pathlib
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

Call = Callable[[], Any]


def serve(build: Callable[[dict[str, Any]], tuple[Call, dict[str, Any]]], peak_bytes: Callable[[], int | None]) -> None:
    """Answer the requests on standard input, one line of JSON each.

    `{"build": {...}}` builds the case, calls it once and answers with its facts; `{"repeat": n}` times n calls;
    `{"memory": true}` asks for the peak. What fails is answered by `{"error": ...}`, its traceback written to stderr.

    Args:
      build: returns what is timed (it must wait for its own end) and what is reported of it.
      peak_bytes: the accelerator's peak of allocated memory; None on a CPU, where it is the process's own peak during
        the repetitions, beyond what it held before it built the case.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # What libraries print must not come between the answers.
    os.dup2(2, 1)
    call: Call | None = None
    before = 0
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if "build" in request:
                # The arrays of the case before.
                call = None
                gc.collect()
                _forget_peak()
                before = _peak_of_process()
                start = time.perf_counter()
                call, answer = build(request["build"])
                call()
                answer["first_call"] = time.perf_counter() - start
                _forget_peak()
            elif "repeat" in request:
                assert call is not None
                answer["seconds"] = [_seconds(call) for _ in range(request["repeat"])]
            else:
                peak = peak_bytes()
                answer["peak"] = _peak_of_process() - before if peak is None else peak
        except Exception as error:
            traceback.print_exc()
            reason = str(error).strip().splitlines()
            answer = {"error": f"{type(error).__name__}: {reason[0]}" if reason else type(error).__name__}
        answers.write(json.dumps(answer) + "\n")


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _forget_peak() -> None:
    """Set the peak back to what is in use now: compiler and files of weights are no part of a step. Only Linux can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def _peak_of_process() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
