"""A step written for one device, mapped over all of them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pcjax._checks import RequestError
from pcjax.training.step import AXIS, Step


def choose_devices(count: int | None, batch: int, section: str = "training") -> list[Any]:
    """Return the devices of all processes to train on.

    Args:
      count: how many; None for all.
      batch: how many examples a step takes; each device gets an equal part.
      section: the config section, for error messages.
    """
    devices = jax.devices()
    if count is not None:
        if count > len(devices):
            available = f"only {len(devices)} device{'s are' if len(devices) > 1 else ' is'}"
            raise RequestError(f"{section}.devices={count}, but {available} available.")
        if jax.process_count() > 1 and count != len(devices):
            raise RequestError(
                f"{section}.devices={count} leaves devices out, which a job of several processes "
                "cannot do; leave the field out."
            )
        devices = devices[:count]
    if batch % len(devices):
        nearest = max(batch // len(devices), 1) * len(devices)
        raise RequestError(
            f"{section}.batch={batch} cannot be split evenly over {len(devices)} devices; "
            f"use {nearest}."
        )
    return devices


class ParallelStep:
    """A step over devices: whole batches in, one state on all devices.

    Args:
      step: the step for one device.
      devices: see `choose_devices`.
      how: "pmap" or "shard_map"; the results are the same.
      most: how many steps `several` may take at once.
    """

    def __init__(self, step: Step, devices: list[Any], how: str, most: int = 1):
        self._how, self.most = how, most
        local = [d for d in devices if d.process_index == jax.process_index()]
        self._local_count = len(local)
        mesh = Mesh(np.array(devices), (AXIS,))
        self._replicated, self._split = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
        self._stacked = NamedSharding(mesh, P(None, AXIS))
        steps = _several(step, most)
        if how == "pmap":
            own = devices if jax.process_count() == 1 else None
            axes: Any = {"out_axes": (None, None), "axis_name": AXIS, "devices": own}
            self._step: Any = jax.pmap(step, in_axes=(None, None, 0), **axes)
            self._steps: Any = jax.pmap(steps, in_axes=(None, None, 0, None), **axes)
        else:
            specs: Any = {"mesh": mesh, "out_specs": (P(), P()), "check_vma": False}
            one = jax.shard_map(step, in_specs=(P(), P(), P(AXIS)), **specs)
            many = jax.shard_map(steps, in_specs=(P(), P(), P(None, AXIS), P()), **specs)
            self._step, self._steps = (jax.jit(mapped, donate_argnums=1) for mapped in (one, many))
        self._zeros = jax.jit(
            lambda tree: jax.tree.map(jnp.zeros_like, tree), out_shardings=self._replicated
        )

    def place(self, tree: Any) -> Any:
        """Copy a tree to all devices, in the placement in which a step returns it.

        Another placement would compile the step once more.
        """
        if jax.process_count() == 1:
            # A copy: shard_map donates the state, and the caller keeps the initial weights.
            return jax.device_put(jax.tree.map(np.array, tree), self._replicated)
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(
                np.shape(x), self._replicated, np.asarray(x).__getitem__
            ),
            tree,
        )

    def zeros(self, tree: Any) -> Any:
        """Return zeros in the form and placement of a tree."""
        return self._zeros(tree)

    def split(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Divide this process's part of a batch among its devices."""
        if self._how == "pmap":
            n = self._local_count
            return {name: x.reshape(n, -1, *x.shape[1:]) for name, x in batch.items()}
        return {
            name: jax.make_array_from_process_local_data(self._split, x)
            for name, x in batch.items()
        }

    def split_stacked(self, batches: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Divide this process's part of several batches, (most, n, ...), among its devices."""
        if self._how == "pmap":
            n = self._local_count
            return {
                name: x.reshape(len(x), n, -1, *x.shape[2:]).swapaxes(0, 1)
                for name, x in batches.items()
            }
        return {
            name: jax.make_array_from_process_local_data(self._stacked, x)
            for name, x in batches.items()
        }

    def temporary_bytes(self, frozen: Any, state: Any, batch: Mapping[str, Any]) -> int | None:
        """Return the memory that a step needs on each device besides its inputs and outputs.

        Args:
          frozen: the arrays that it only reads.
          state: the state.
          batch: one batch, or several where several steps are taken at once.
        """
        if self.most > 1:
            lowered = self._steps.lower(frozen, state, batch, np.int32(1))
        else:
            lowered = self._step.lower(frozen, state, batch)
        analysis = lowered.compile().memory_analysis()
        return None if analysis is None else int(analysis.temp_size_in_bytes)

    def __call__(
        self, frozen: Any, state: Any, batch: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Return the state after one step, and the step's metrics."""
        return self._step(frozen, state, batch)

    def several(
        self, frozen: Any, state: Any, batches: Mapping[str, Any], count: int
    ) -> tuple[Any, dict[str, Any]]:
        """Return the state after the first `count` of `most` batches, and their steps' metrics."""
        return self._steps(frozen, state, batches, np.int32(count))


def _several(step: Step, most: int) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Return a function that takes up to `most` steps; one program serves all counts."""

    def steps(frozen: Any, state: Any, batches: Any, count: Any) -> tuple[Any, dict[str, Any]]:
        def batch(k: Any) -> Any:
            return jax.tree.map(lambda x: x[k], batches)

        def take(k: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            state, metrics = carry
            state, own = step(frozen, state, batch(k))
            return state, jax.tree.map(lambda rows, x: rows.at[k].set(x), metrics, own)

        shapes = jax.eval_shape(step, frozen, state, batch(0))[1]
        metrics = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), shapes)
        return lax.fori_loop(0, count, take, (state, metrics))

    return steps
