"""Several processes, one simulation: every process runs the same program, each on its own devices.

JAX's runtime connects them (`jax.distributed`: gloo between CPUs, NCCL between GPUs). The clients of a round are spread
over all devices of all processes; parameters, data and client states are replicated, so that a checkpoint of the first
process is the whole run and fits any number of devices. Only the first process writes files and draws progress.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fljax.core.check import FljaxError
from fljax.core.types import Array, PyTree

DISTRIBUTED = "FLJAX_DISTRIBUTED"
HEARTBEAT = "FLJAX_HEARTBEAT_S"


def join() -> None:
    """Connects this process with the others of its run, where the environment says that there are others.

    It does so under Slurm in a step of more than one task; where ``JAX_COORDINATOR_ADDRESS`` (host:port),
    ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` are set; and with ``FLJAX_DISTRIBUTED=1`` wherever JAX finds the
    cluster by itself (Kubernetes, Open MPI, TPU). A process that does not answer for ``FLJAX_HEARTBEAT_S`` seconds
    (default 60) ends the run of all. Called twice it does nothing.

    Raises FljaxError if the others cannot be found.
    """
    env = os.environ
    alone = env.get(DISTRIBUTED) != "1" and "JAX_COORDINATOR_ADDRESS" not in env
    if jax.distributed.is_initialized() or (alone and int(env.get("SLURM_STEP_NUM_TASKS", "1")) < 2):
        return
    count, process = (int(env[name]) if name in env else None for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    patience = int(env.get(HEARTBEAT, "60"))
    limits = {"heartbeat_timeout_seconds": patience, "initialization_timeout": patience}
    try:
        jax.distributed.initialize(num_processes=count, process_id=process, **limits)
    except (ValueError, RuntimeError) as error:
        raise FljaxError(
            f"Expected the other processes of this run, found none: {str(error).splitlines()[0]} Set "
            f"JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or unset {DISTRIBUTED}."
        ) from None


def is_first() -> bool:
    """Whether this process writes files: always, unless there are others before it."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether this process is one of several in a run."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def largest(number: int) -> int:
    """The largest of the whole numbers (31 bits) that all processes tell at this place of the program.

    Clocks, signals and free memory differ between processes: what depends on them has to be agreed on, or the
    programs part. Raises FljaxError if another process is gone.
    """
    if jax.process_count() == 1:
        return number
    from jax.experimental.multihost_utils import process_allgather

    with all_alive():
        return int(np.max(process_allgather(np.int32(number))))


def smallest(number: int) -> int:
    """The smallest of the whole numbers that all processes tell; see ``largest``."""
    return -largest(-number)


def least(size: int | None) -> int | None:
    """The fewest bytes that any process tells, to a MiB; None where nobody knows."""
    if jax.process_count() == 1:
        return size
    unknown = 2**31 - 1
    mib = smallest(unknown if size is None else size >> 20)
    return None if mib == unknown else mib << 20


def leave(code: int) -> NoReturn:
    """Ends this process without waiting at exit for the others of its run; they see that it is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def clean_stdout() -> Iterator[None]:
    """Sends what the runtime prints when processes connect to stderr; results alone belong on stdout."""
    if not several():
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def check_same(fingerprint: str, done: int) -> None:
    """Raises FljaxError unless all processes run the same experiment and start at the same round."""
    if jax.process_count() == 1:
        return
    from jax.experimental.multihost_utils import process_allgather

    mine = np.array([int(fingerprint, 16) >> 33, int(fingerprint, 16) & (2**31 - 1), done], np.int32)
    everyone = np.asarray(process_allgather(mine))
    for process, theirs in enumerate(everyone):
        if not np.array_equal(theirs[:2], everyone[0, :2]):
            raise FljaxError(f"Expected the same experiment in all processes, found another in process {process}.")
        if theirs[2] != everyone[0, 2]:
            raise FljaxError(
                f"Expected all processes to start at round {everyone[0, 2]}, found {theirs[2]} in process {process}. "
                "Put the results folder where all of them can read it."
            )


@contextmanager
def all_alive() -> Iterator[None]:
    """Turns the failure of a collective operation into one line: another process of the run is gone.

    Raises FljaxError in its place. A process that hangs is noticed by its missing heartbeat; JAX then ends all others.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # A call that fails before it returns raises the runtime's status, "UNKNOWN: Gloo ...", as a ValueError.
        ours = isinstance(error, ValueError) and not re.match(r"[A-Z_]+: ", str(error))
        if ours or jax.process_count() == 1:
            raise
        raise FljaxError(
            f"Another process of this run is gone ({str(error).splitlines()[0][:120]}). Start again with --resume: the "
            "checkpoint fits any number of processes and devices."
        ) from None


def everywhere(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """The tree replicated over a mesh that spans processes; unchanged where there is one process."""
    if mesh is None or jax.process_count() == 1:
        return tree
    whole = NamedSharding(mesh, PartitionSpec())

    def put(x: Array) -> Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(x)))
        here = np.asarray(x)
        return jax.make_array_from_callback(here.shape, whole, lambda index: here[index])

    return jax.tree.map(put, tree)
