"""How the processes of a run find each other, and what they exchange."""

import concurrent.futures
import io
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from maskx_jax import errors

# What a device holds of a message at a time, from all processes together.
_BYTES_ON_DEVICE = 1 << 28


def join(*, enabled: bool, start_timeout: int = 300, peer_timeout: int = 100, preemption_service: bool = False) -> None:
    """Join the other processes of a run, before anything else is asked of JAX.

    JAX finds them itself on Cloud TPUs, SLURM, Kubernetes and under MPI. Elsewhere the environment says who they are:
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Args:
      enabled: whether there are others; the address in the environment says so too.
      start_timeout: seconds to wait for all to join; after that the process ends with a line and exit code 1.
      peer_timeout: seconds without a heartbeat after which a process counts as lost.
      preemption_service: whether SIGTERM is from then on a request that all processes learn of, for a program that
        polls an `Interruption`; else it ends the process that gets it.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if not (enabled or address):
        return
    jax.config.update("jax_enable_preemption_service", preemption_service)
    numbers = {"num_processes": os.environ.get("JAX_NUM_PROCESSES"), "process_id": os.environ.get("JAX_PROCESS_ID")}
    # In a thread, so that a signal is answered while this one waits for the others.
    joining = concurrent.futures.ThreadPoolExecutor(1).submit(
        jax.distributed.initialize,
        address,
        **{name: int(value) for name, value in numbers.items() if value is not None},  # type: ignore[arg-type]
        # JAX aborts where its own limit is reached.
        initialization_timeout=2 * start_timeout,
        # JAX ends a process by force; before that the watchdog ends it, with a message.
        heartbeat_timeout_seconds=2 * peer_timeout,
    )
    try:
        joining.result(start_timeout)
    except TimeoutError:
        # The thread goes on waiting, and Python's exit would wait for it.
        os._exit(errors.report(RuntimeError(f"not all processes of the run have joined it within {start_timeout} s")))


def gather_objects(value: Any) -> list[Any]:
    """Return the values of all processes, in their order, on every process. All of them have to call it.

    Args:
      value: what JSON can hold: dicts with string keys, lists, strings, numbers, booleans and None.

    Raises:
      TypeError: it holds something else. The other processes then wait in vain.
    """
    if jax.process_count() == 1:
        return [value]
    return [json.loads(message) for message in _gather_bytes(json.dumps(value).encode(), everywhere=True)]


def gather_parts(parts: Sequence[bytes]) -> list[Sequence[bytes]] | None:
    """Return the parts of all processes, in their order, on the first one, and None on the others.

    All of them have to call it. Only the first process needs memory for all parts.
    """
    if jax.process_count() == 1:
        return [parts]
    lengths = gather_objects([len(part) for part in parts])
    messages = _gather_bytes(b"".join(parts), everywhere=False)
    if jax.process_index() > 0:
        return None
    streams = map(io.BytesIO, messages)
    return [[stream.read(length) for length in own] for stream, own in zip(streams, lengths, strict=True)]


def from_first_process(compute: Callable[[], Any]) -> Any:
    """Return on all processes what the first one computes, or raise on all of them what it met.

    Args:
      compute: returns what JSON can hold.

    Raises:
      RuntimeError: on the other processes, where the first one failed.
    """
    value, problem = None, None
    if jax.process_index() == 0:
        try:
            value = compute()
        except Exception as error:
            problem = error
    value, text = gather_objects([value, problem and errors.one_line(problem)])[0]
    if problem is not None:
        raise problem
    if text is not None:
        raise RuntimeError(text)
    return value


def _gather_bytes(message: bytes, everywhere: bool) -> list[bytearray]:
    """Return the messages of all processes, in their order: everywhere, or on the first process (else empty ones)."""
    own = np.frombuffer(message, np.uint8)
    # As bytes, because JAX would cut integers of 64 bits in half.
    lengths = _all_gather(np.array([own.size], np.uint64).view(np.uint8)).view(np.uint64)[:, 0].tolist()
    messages = [bytearray() for _ in lengths]
    part = _BYTES_ON_DEVICE // jax.process_count()
    for start in range(0, max(lengths), part):
        piece = own[start : start + part]
        # Arrays of one shape are gathered: of the longest message's rest, or of a whole part.
        rows = _all_gather(np.pad(piece, (0, min(part, max(lengths) - start) - piece.size)))
        if everywhere or jax.process_index() == 0:
            for gathered, row, length in zip(messages, rows, lengths, strict=True):
                gathered += row[: max(0, length - start)].tobytes()
    return messages


def _all_gather(array: np.ndarray) -> np.ndarray:
    """Return the arrays of all processes, stacked along a new first axis."""
    return np.asarray(multihost_utils.process_allgather(array))
