"""What the processes of a run say to each other."""

import json
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def join(*, enabled: bool, start_timeout: int = 300, peer_timeout: int = 100) -> None:
    """Join the other processes of a run, before anything else is asked of JAX.

    JAX finds them itself on Cloud TPUs, SLURM, Kubernetes and under MPI. Elsewhere the environment says who they are:
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Args:
      enabled: whether there are others; the address in the environment says so too.
      start_timeout: seconds to wait for all to join.
      peer_timeout: seconds without a sign of life after which a process counts as lost.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if not (enabled or address):
        return
    numbers = {"num_processes": os.environ.get("JAX_NUM_PROCESSES"), "process_id": os.environ.get("JAX_PROCESS_ID")}
    jax.distributed.initialize(
        address,
        **{name: int(value) for name, value in numbers.items() if value is not None},  # type: ignore[arg-type]
        initialization_timeout=start_timeout,
        # JAX ends a process by force; before that the watchdog ends it, with a message.
        heartbeat_timeout_seconds=2 * peer_timeout,
    )


def gather_objects(value: Any) -> list[Any]:
    """Return the JSON value that each process gives, in the order of the processes; all of them must call."""
    if jax.process_count() == 1:
        return [value]
    encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(encoded)], np.int32)).reshape(-1)
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(encoded)] = encoded
    rows = multihost_utils.process_allgather(padded).reshape(len(lengths), -1)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]
