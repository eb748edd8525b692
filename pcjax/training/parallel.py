"""A step written for one device, mapped over all of them."""

import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from pcjax import _checks
from pcjax.training import multihost_exit as together
from pcjax.training.step import AXIS, Step


def join_processes() -> None:
    """Connects the processes of a job that runs as several; does nothing in a job of one."""
    # On TPU pods and under Slurm JAX finds the others itself; elsewhere these variables say where they are.
    address = os.environ.get("PCJAX_COORDINATOR")
    if address is not None:
        count, index = (os.environ.get(name, "") for name in ("PCJAX_PROCESSES", "PCJAX_PROCESS"))
        whole = count.isdecimal() and index.isdecimal() and int(index) < int(count)
        got = f"got PCJAX_COORDINATOR with PCJAX_PROCESSES={count!r} and PCJAX_PROCESS={index!r}"
        _checks.require(
            whole, f"{got}: expected how many processes there are and which this is, from 0"
        )
        place = re.fullmatch(r"[^\s/]+:([0-9]{1,5})", address)
        there = place is not None and 0 < int(place[1]) < 2**16
        _checks.require(
            there, f"got PCJAX_COORDINATOR={address!r}: expected the first one's HOST:PORT"
        )
        jax.distributed.initialize(
            address,
            num_processes=int(count),
            process_id=int(index),
            initialization_timeout=60,
            heartbeat_timeout_seconds=10,  # after which the others end when one has died
        )
    elif len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1 or (
        os.environ.get("SLURM_NTASKS", "1") != "1" and "SLURM_STEP_NODELIST" in os.environ
    ):
        jax.distributed.initialize()
    elif (
        "TPU_SKIP_MDS_QUERY" in os.environ
    ):  # which JAX sets, when it is imported, where there are no TPUs
        return
    else:
        # Of machines with TPUs in Google's cloud only its own service knows whether there are others: JAX asks it.
        try:
            jax.distributed.initialize()
        except ValueError:  # there is no such service
            return
    together.begin()


def wait_for_all(what: str) -> None:
    """Until every process of the job has come this far."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def choose_devices(count: int | None, batch: int, section: str = "training") -> list[Any]:
    """The devices to use, of all processes; each must get the same number of examples.

    Args:
      count: how many; None, all there are.
      batch: how many examples a step takes.
      section: the part of the config that says so.
    """
    devices = jax.devices()
    if count is not None:
        there = (
            f"got {section}.devices {count}: expected at most {len(devices)}, that many there are"
        )
        _checks.require(count <= len(devices), there)
        whole = jax.process_count() == 1 or count == len(devices)
        _checks.require(
            whole,
            f"got {section}.devices {count} in a job of several processes: expected all or None",
        )
        devices = devices[:count]
    share, rest = divmod(batch, len(devices))
    if rest:
        near = max(share, 1) * len(devices)
        raise _checks.RequestError(
            f"got {section}.batch {batch} for {len(devices)} devices: expected a multiple, as {near}"
        )
    return devices


class Mapped:
    """A step over devices: whole batches in, one state for all of them."""

    def __init__(self, step: Step, devices: list[Any], how: str):
        self._how = how
        self._local = [device for device in devices if device.process_index == jax.process_index()]
        mesh = Mesh(np.array(devices), (AXIS,))
        self._everywhere, self._split = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
        if how == "pmap":
            every = devices if jax.process_count() == 1 else None
            self._step: Any = jax.pmap(
                step, AXIS, in_axes=(None, None, 0), out_axes=(None, None), devices=every
            )
        else:
            mapped = jax.shard_map(
                step, mesh=mesh, in_specs=(P(), P(), P(AXIS)), out_specs=(P(), P()), check_vma=False
            )
            self._step = jax.jit(mapped, donate_argnums=1)

    def place(self, tree: Any) -> Any:
        """The same values on all devices."""
        if self._how == "pmap":
            return tree
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(
                np.shape(x), self._everywhere, np.asarray(x).__getitem__
            ),
            tree,
        )

    def split(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The part of a batch that belongs to this process, divided among its devices."""
        if self._how == "pmap":
            return {
                name: x.reshape(len(self._local), -1, *x.shape[1:]) for name, x in batch.items()
            }
        return {
            name: jax.make_array_from_process_local_data(self._split, x)
            for name, x in batch.items()
        }

    def temporary_bytes(self, frozen: Any, state: Any, batch: Mapping[str, Array]) -> int | None:
        """How much memory a step takes on each device beside what it is given and returns; compiles it anew."""
        found = self._step.lower(frozen, state, batch).compile().memory_analysis()
        return None if found is None else int(found.temp_size_in_bytes)

    def __call__(
        self, frozen: Any, state: Any, batch: Mapping[str, Array]
    ) -> tuple[Any, dict[str, Array]]:
        """The state after one step, and its metrics."""
        return self._step(frozen, state, batch)
