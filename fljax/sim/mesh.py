"""Devices: a mesh over which the clients of a round are spread."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh

from fljax.core.check import FljaxError


def client_mesh(devices: int) -> Mesh | None:
    """A one-dimensional mesh with the axis ``clients`` over the first devices; None for one device.

    Where a run has several processes the mesh holds all their devices.

    Raises FljaxError if there are fewer devices. On a CPU several devices in one process need ``NPROC`` at twice their
    number before JAX is imported, or collectives can wait for each other for ever.
    """
    there = jax.devices()
    if jax.process_count() > 1:
        if devices not in (1, len(there)):
            raise FljaxError(
                f"Expected perf.devices={devices} to be {len(there)}, all devices of {jax.process_count()} processes. "
                "Leave it out."
            )
        devices = len(there)
    if devices == 1:
        return None
    if devices > len(there):
        raise FljaxError(
            f"Expected perf.devices={devices} <= {len(there)}, the devices that JAX sees. "
            f"On a CPU set JAX_NUM_CPU_DEVICES={devices} and NPROC={max(16, 2 * devices)} before starting Python."
        )
    return Mesh(np.array(there[:devices]), ("clients",))
