"""Devices: a mesh over which the clients of a round, and the trials of a batch, are spread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fljax.core.check import FljaxError
from fljax.core.types import PyTree


def client_mesh(devices: int, trials: int = 1) -> Mesh | None:
    """A mesh over the first devices; None for one device.

    Args:
      devices: over which the clients of a round are spread: the axis ``clients``. Where a run has several processes
        it holds all their devices.
      trials: groups of so many devices, over which the trials of a batch are spread: the axis ``trials``, in front of
        the other. With 1 there is no such axis.

    Raises FljaxError if there are fewer devices. On a CPU, programs of several devices in one process may wait for each
    other for ever if many are under way at once; ``drive`` waits for each of its calls. A loop of one's own that does
    not needs ``NPROC`` at twice the devices before JAX is imported.
    """
    there = jax.devices()
    if jax.process_count() > 1:
        if devices not in (1, len(there)):
            raise FljaxError(
                f"Expected perf.devices={devices} to be {len(there)}, all devices of {jax.process_count()} processes. "
                "Leave it out."
            )
        devices = len(there)
    count = devices * trials
    if count == 1:
        return None
    if count > len(there):
        asked = f"perf.devices={devices}" if trials == 1 else f"perf.trial_devices={trials} x perf.devices={devices}"
        fits = min(devices, len(there))
        fewer = "" if trials == 1 else f"perf.trial_devices={len(there) // fits} x "
        more = f", or set JAX_NUM_CPU_DEVICES={count} before starting Python" if there[0].platform == "cpu" else ""
        raise FljaxError(
            f"Expected {asked} <= {len(there)}, the devices that JAX sees. Use {fewer}perf.devices={fits}{more}."
        )
    if trials == 1:
        return Mesh(np.array(there[:devices]), ("clients",))
    return Mesh(np.array(there[:count]).reshape(trials, devices), ("trials", "clients"))


def check_busy(mesh: Mesh | None, capacity: int) -> None:
    """Raises FljaxError if a mesh has more devices than a round has clients at most; the others would have no work."""
    devices = 1 if mesh is None else mesh.shape["clients"]
    if devices > capacity:
        raise FljaxError(
            f"Expected perf.devices={devices} <= {capacity}, the most clients of a round. Use perf.devices={capacity}."
        )


def has_trials(mesh: Mesh | None) -> TypeGuard[Mesh]:
    """Are trials spread over the devices of a mesh?"""
    return mesh is not None and "trials" in mesh.shape


def spread_trials(call: Callable, mesh: Mesh | None, batched: tuple[bool, ...]) -> Callable:
    """A function of batches of trials, each device of the axis ``trials`` with a share of the batch of its own.

    Trials do not talk to each other, so that nothing travels between the groups of devices. Inside of a group the
    clients of a round may be spread over the axis ``clients``.

    Args:
      call: vmapped over trials, its results batched in front.
      mesh: of ``client_mesh``. Without an axis ``trials`` the function is returned as it is.
      batched: which arguments have the trials in front; the others every device has whole. The batch has to be a
        multiple of the devices.
    """
    if not has_trials(mesh):
        return call
    split, whole = PartitionSpec("trials"), PartitionSpec()
    specs = tuple(split if b else whole for b in batched)
    return jax.shard_map(call, mesh=mesh, in_specs=specs, out_specs=split, axis_names={"trials"}, check_vma=False)


def place(tree: PyTree, mesh: Mesh | None, batched: bool) -> PyTree:
    """Arrays on the devices of ``spread_trials``: divided by trials, or whole on each of them."""
    if not has_trials(mesh):
        return tree
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("trials") if batched else PartitionSpec()))
