"""Several processes, one simulation: every process runs the same program, each on its own devices.

JAX's runtime connects them (`jax.distributed`: gloo between CPUs, NCCL between GPUs). The clients of a round are spread
over all devices of all processes; parameters, resident data and client states are replicated, so that a checkpoint of
the first process is the whole run and fits any number of devices. Only the first process writes files and draws
progress.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fljax.core.check import FljaxError
from fljax.core.types import Array, PyTree
from fljax.sim.waiting import HEARTBEAT, patience, waiting, within

DISTRIBUTED = "FLJAX_DISTRIBUTED"
PLACE: dict[str, Callable[[str], Any]] = {"coordinator_address": str, "num_processes": int, "process_id": int}
"""What JAX has to know of a process; as variables of the environment JAX_COORDINATOR_ADDRESS, ..."""
PORT = 8476
NEVER_S = 365 * 24 * 3600


def join() -> None:
    """Connects this process with the others of its run, where the environment says that there are others.

    It does so by itself under Slurm in a step of more than one task; in a pod that has others beside it (see ``pod``);
    where ``JAX_COORDINATOR_ADDRESS`` (host:port), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` are set; and with
    ``FLJAX_DISTRIBUTED=1`` wherever JAX finds the cluster (Open MPI, TPU). With ``FLJAX_DISTRIBUTED=0`` it never does.
    Called twice it does nothing.

    Whoever waits for others longer than ``FLJAX_HEARTBEAT_S`` seconds (300) ends with a line: see ``sim/waiting.py``.
    JAX's own heartbeat, which would end it without one, is put off for good: it notices dead processes alone, and those
    are known by their connections. JAX's service for preemption is off, because it swallows SIGTERM.

    Raises FljaxError if the others cannot be found.
    """
    env = os.environ
    if jax.distributed.is_initialized() or env.get(DISTRIBUTED) == "0":
        return
    place = pod()
    told = place | {name: _said(name, kind) for name, kind in PLACE.items() if f"JAX_{name.upper()}" in env}
    alone = env.get(DISTRIBUTED) != "1" and "coordinator_address" not in told
    if alone and int(env.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    if place and "num_processes" in told:
        told["cluster_detection_method"] = "deactivate"  # nothing is left to ask the API of Kubernetes
    elif place and find_spec("kubernetes") is None:
        raise FljaxError(
            f"Expected JAX_NUM_PROCESSES in a pod beside {place['coordinator_address']}, found none. Set it "
            f"to the completions of the job, or {DISTRIBUTED}=0 where every pod is a run of its own."
        )
    seconds, wanted = patience(), told.get("num_processes", "all")
    jax.config.update("jax_enable_preemption_service", False)
    limits = {"heartbeat_timeout_seconds": NEVER_S, "initialization_timeout": math.ceil(2 * seconds)}
    late = (
        f"Expected {wanted} processes to join this run within {seconds:g} s, found fewer. See why the others did not "
        f"start, then start all again; if they were only slow, set {HEARTBEAT} higher, {seconds:g} now."
    )
    try:
        with within(seconds, lambda: late, os._exit):
            jax.distributed.initialize(**told, **limits)
    except (ValueError, RuntimeError) as error:
        raise FljaxError(
            f"Expected the other processes of this run, found none: {str(error).splitlines()[0]} Set "
            f"JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or unset {DISTRIBUTED}."
        ) from None


def _said(name: str, kind: Callable[[str], Any]) -> Any:
    """The value of a variable of JAX that says where this process is."""
    text = os.environ[f"JAX_{name.upper()}"]
    try:
        return kind(text)
    except ValueError:
        raise FljaxError(f"Expected JAX_{name.upper()}={text!r} to be a whole number. Set it to one.") from None


def pod() -> dict[str, Any]:
    """{coordinator_address, process_id} in a pod of an indexed job of Kubernetes with a headless service, else {}.

    Such a pod is called JOB-INDEX.SERVICE.NAMESPACE.svc.cluster.local, and the first of them JOB-0.SERVICE..., so that
    nothing has to be asked. How many there are only the API of Kubernetes knows: ``JAX_NUM_PROCESSES`` says it, or JAX
    asks, which needs the package kubernetes and a service account that may read pods and jobs. The workers of a sweep
    are an indexed job without a service, and stay alone.
    """
    index = os.environ.get("JOB_COMPLETION_INDEX", "")
    if not index.isdigit():
        return {}
    name, _, service = socket.getfqdn().partition(".")
    if not name.endswith(f"-{index}") or ".svc" not in service:
        return {}
    return {"coordinator_address": f"{name.removesuffix(index)}0.{service}:{PORT}", "process_id": int(index)}


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
    return int(np.max(_everyones(np.int32(number))))


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


def gather(told: dict[str, Any]) -> list[dict[str, Any]]:
    """What every process tells at this place of the program, in their order; values of JSON.

    Raises FljaxError if another process is gone.
    """
    text = json.dumps(told).encode()
    rows = _everyones(np.frombuffer(text.ljust(largest(len(text))), np.uint8))
    return [json.loads(row.tobytes()) for row in rows]


def _everyones(array: np.ndarray | np.integer) -> np.ndarray:
    """An array [...] of every process, of one shape -> [processes, ...]."""
    from jax.experimental.multihost_utils import process_allgather

    with all_alive(), waiting():
        return np.asarray(process_allgather(array))


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


@contextmanager
def all_alive() -> Iterator[None]:
    """Turns the failure of a collective operation into one line: another process of the run is gone.

    Raises FljaxError in its place. A process that hangs does not fail: see ``sim/waiting.py``.
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
    """The tree on every device of a mesh; unchanged where there is one device."""
    if mesh is None:
        return tree
    whole = NamedSharding(mesh, PartitionSpec())

    def put(x: Array) -> Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(x)))
        here = np.asarray(x)
        return jax.make_array_from_callback(here.shape, whole, lambda index: here[index])

    return jax.tree.map(put, tree)


def in_shares(
    shape: tuple[int, ...], values: Callable[[tuple[slice, ...]], np.ndarray], mesh: Mesh, axis: int = 1
) -> Array:
    """An array of which every device of a mesh holds a share, and every process asks for the shares of its own only.

    Args:
      shape: the mesh has to divide its axis. values: (slices) -> that part of the array.
    """
    split = NamedSharding(mesh, PartitionSpec(*[None] * axis, "clients"))
    return jax.make_array_from_callback(shape, split, lambda part: values(part or (slice(None),) * len(shape)))
