"""Jobs of several processes: how they find each other, wait for each other and share values.

When a process dies, JAX ends the others: the heartbeat below says after how many seconds.
"""

import json
import os
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pcjax._checks import RequestError

HEARTBEAT_SECONDS = 10
TIMEOUT_SECONDS = 60


def join_processes() -> None:
    """Connect the processes of a job; do nothing in a job of one.

    TPU pods and Slurm tell JAX about the other processes. Elsewhere three variables do:
    PCJAX_COORDINATOR (HOST:PORT of the first process), PCJAX_PROCESSES and PCJAX_PROCESS.
    """
    options: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS}
    address = os.environ.get("PCJAX_COORDINATOR")
    if address is not None:
        count, index = (os.environ.get(f"PCJAX_{name}", "") for name in ("PROCESSES", "PROCESS"))
        if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
            raise RequestError(
                f"PCJAX_PROCESSES={count!r} and PCJAX_PROCESS={index!r} must be the number of "
                "processes and this one's index, from 0."
            )
        port = re.fullmatch(r"[^\s/]+:([0-9]{1,5})", address)
        if port is None or not 0 < int(port[1]) < 2**16:
            raise RequestError(f"PCJAX_COORDINATOR={address!r} is not HOST:PORT.")
        jax.distributed.initialize(
            address,
            num_processes=int(count),
            process_id=int(index),
            initialization_timeout=TIMEOUT_SECONDS,
            **options,
        )
    elif _has_cluster():
        jax.distributed.initialize(**options)


def _has_cluster() -> bool:
    """Return whether this process belongs to a TPU pod or a Slurm job of several."""
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    slurm = os.environ.get("SLURM_NTASKS", "1") != "1" and "SLURM_STEP_NODELIST" in os.environ
    return len(workers) > 1 or slurm


def is_distributed() -> bool:
    """Return whether this process has joined others."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def wait_for_all(name: str) -> None:
    """Wait until every process of the job has called this with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast(tree: Any) -> Any:
    """Return the first process's arrays on every process; all give the same shapes and dtypes."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def broadcast_int(number: int) -> int:
    """Return the first process's number on every process."""
    return int(broadcast(np.int64(number))) if jax.process_count() > 1 else number


def broadcast_json(value: Any) -> Any:
    """Return the first process's JSON value on every process."""
    if jax.process_count() == 1:
        return value
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = broadcast_int(len(data))
    data = data if jax.process_index() == 0 else np.zeros(size, np.uint8)
    return json.loads(bytes(broadcast(data)).decode())
