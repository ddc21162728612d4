"""How the clients of a round are executed: one vmapped batch, chunks of it, one by one, or spread over devices.

The choice is a performance flag: it changes memory and speed, and results only by the order of floating-point sums
(not at all where the arithmetic is exact).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from fljax.core import tree
from fljax.core.types import Array, Key, PyTree

LARGE_ON_CPU = 30_000
"""Parameters of a model above which a CPU takes one matrix product at a time faster than a batch of them."""
STEP_OVERHEAD, CLIENT_OVERHEAD = 8_000, 4_000
"""What a step costs on a CPU for a batch of any width, and for a client with any model, in parameters of a client."""
NARROW = 1.2
"""What batches of two to seven clients cost more: XLA computes a gradient anew for every row of the weights'."""


class PerfFlags(NamedTuple):
    """Speed, and nothing but speed.

    chunk: clients per vmapped batch; 1 = one after another, 0 = the whole cohort, None = chosen by ``auto_chunk``.
    mesh: devices to spread the clients of a round over, by a mesh axis ``clients``; None = one device.
    """

    chunk: int | None = None
    mesh: Mesh | None = None


class Slots(NamedTuple):
    """The cohort as the clients see it: keys [C], ids [C], place [C] in the cohort, alive [C] bool (living first).

    malicious: [C] bool, who acts maliciously in this round, or None where nobody does.
    """

    keys: Key
    ids: Array
    place: Array
    alive: Array
    malicious: Array | None = None


class Collected(NamedTuple):
    """What comes back from the clients: payload summed or stacked [C, ...]; their new states and infos [C, ...]."""

    payload: PyTree
    states: PyTree
    info: PyTree


def auto_chunk(num_params: int, capacity: int, steps: np.ndarray | None = None, living: float | None = None) -> int:
    """Clients per batch, by backend, model size, how unequal the clients are and how many slots stay empty.

    On a CPU, above 30,000 parameters, one matrix product at a time is faster than any batch. Smaller models gain from
    batching: of 1, 2, 4, ... clients, 64 or all at most, the number with the least
    ``waste(chunk) (1 + 8000 / (chunk (4000 + P)))``, a fifth more for batches of two to seven (measured:
    docs/performance.md). An accelerator takes as many clients as about 4 GiB of parameter copies allow; its time is
    that of the longest client in any case. What their activations need is not guessed here: it hangs on what the
    compiler keeps and reuses. It says so of the compiled program, and ``core.memory.fit`` takes fewer clients where
    that does not fit.

    Args:
      num_params: P. capacity: C. steps: None, or [N] local steps of each client of the population.
      living: clients that are expected in a round where batches without any are skipped; None: all slots are run.
    """
    if jax.default_backend() != "cpu":
        return max(1, min(capacity, 2**30 // max(num_params, 1)))
    if num_params > LARGE_ON_CPU:
        return 1
    widest = min(capacity, 64)
    steps = np.ones(1) if steps is None else steps

    def cost(chunk: int) -> float:
        overhead = 1 + STEP_OVERHEAD / (chunk * (CLIENT_OVERHEAD + num_params))
        return padding_waste(steps, capacity, chunk, living) * overhead * (NARROW if 1 < chunk < 8 else 1.0)

    return min(sorted({2**k for k in range(7) if 2**k <= widest} | {widest}, reverse=True), key=cost)


def padding_waste(steps: np.ndarray, capacity: int, chunk: int, living: float | None = None) -> float:
    """Steps that are executed, relative to those that count, where a batch runs as long as its longest client.

    ``sum over batches of (chunk * longest) / sum of steps``, for a cohort of clients, the largest first, whose
    numbers of steps are the quantiles of the population's; 1 where nothing is wasted. An empty slot of a batch takes as
    long as a client.

    Args:
      steps: [N] local steps of the clients. capacity: C. chunk: clients per batch, 0 = all.
      living: as for ``auto_chunk``.
    """
    chunk = min(chunk, capacity) or capacity
    count = capacity if living is None else max(1, min(capacity, round(living)))
    cohort = np.quantile(steps, (np.arange(count) + 0.5) / count, method="nearest")[::-1].astype(float)
    return float(chunk * cohort[::chunk].sum() / max(cohort.sum(), 1.0))


def run_clients(
    run_client: Callable[[PyTree, Slots, PyTree], tuple[PyTree, PyTree, PyTree]],
    shared: PyTree,
    slots: Slots,
    table: PyTree,
    *,
    chunk: int,
    collect: str,
    mesh: Mesh | None = None,
) -> Collected:
    """Runs a function of one client for every slot of a cohort.

    Args:
      run_client: (shared, slot, client_state) -> (payload, client_state, info), written for one client.
      shared: what all clients read; every device has it whole. It is no closure, since a mesh knows only arguments.
      slots: who is in, slots that are not alive last.
      table: client states, leaves [N, ...], or () where clients keep nothing.
      chunk: clients per vmapped batch; 0 = all.
      collect: ``sum`` adds the payloads as they stream (memory O(chunk)), ``concat`` stacks them.
      mesh: None, or a mesh with an axis ``clients``.

    Guarantees:
      Chunks without a living client are skipped where no client keeps a state; their info is zero.
    """
    if mesh is None:
        return _run_chunks(partial(run_client, shared), slots, table, chunk=chunk, collect=collect)
    return _run_sharded(run_client, shared, slots, table, chunk=chunk, collect=collect, mesh=mesh)


def _run_chunks(run_client, slots: Slots, table: PyTree, *, chunk: int, collect: str) -> Collected:
    capacity = slots.ids.shape[0]
    chunk = capacity if chunk <= 0 else min(chunk, capacity)
    if chunk == capacity:
        payload, states, info = jax.vmap(run_client)(slots, tree.rows(table, slots.ids))
        return Collected(_sum(payload) if collect == "sum" else payload, states, info)

    count = -(-capacity // chunk)
    batches = jax.tree.map(lambda x: x.reshape(count, chunk, *x.shape[1:]), _pad(slots, count * chunk))

    def one(index):
        batch = jax.tree.map(lambda x: x[index], batches)
        states = tree.rows(table, batch.ids)
        if chunk == 1:  # no batch axis at all: matrix products stay two-dimensional
            result = run_client(*jax.tree.map(lambda x: x[0], (batch, states)))
            return jax.tree.map(lambda x: x[None], result)
        return jax.vmap(run_client)(batch, states)

    def body(index, carry):
        total, states, info = carry
        new, new_states, new_info = one(index)
        total = _put(total, index, new) if collect == "concat" else jax.tree.map(jnp.add, total, _sum(new))
        return total, _put(states, index, new_states), _put(info, index, new_info)

    shapes = jax.eval_shape(one, 0)
    buffers = jax.tree.map(lambda s: jnp.zeros((count, *s.shape), s.dtype), shapes)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape[1:], s.dtype), shapes[0])
    start = (buffers[0] if collect == "concat" else zero, buffers[1], buffers[2])
    # The living come first: later chunks are empty. With client states the trip count stays static, because a
    # dynamic one under a trial axis would turn every write into a select over all states.
    dynamic = collect == "sum" and not jax.tree.leaves(table)
    total, states, info = jax.lax.fori_loop(0, -(-jnp.sum(slots.alive) // chunk) if dynamic else count, body, start)
    flat = partial(jax.tree.map, lambda x: x.reshape(count * chunk, *x.shape[2:])[:capacity])
    return Collected(flat(total) if collect == "concat" else total, flat(states), flat(info))


def _run_sharded(
    run_client, shared: PyTree, slots: Slots, table: PyTree, *, chunk: int, collect: str, mesh: Mesh
) -> Collected:
    devices, capacity = mesh.shape["clients"], slots.ids.shape[0]
    split, whole = PartitionSpec("clients"), PartitionSpec()

    def local(shared, slots, table):
        own = _run_chunks(partial(run_client, shared), slots, table, chunk=chunk, collect=collect)
        return own._replace(payload=jax.lax.psum(own.payload, "clients")) if collect == "sum" else own

    out = Collected(whole if collect == "sum" else split, split, split)
    around = jax.sharding.get_abstract_mesh()  # that of the trials, where they are spread too
    mapped = jax.shard_map(
        local,
        mesh=mesh if around.empty else None,
        in_specs=(whole, split, whole),
        out_specs=out,
        axis_names={"clients"},
        check_vma=False,
    )
    result = mapped(shared, _dealt(_pad(slots, -(-capacity // devices) * devices), devices), table)
    collected = partial(jax.tree.map, lambda x: _undealt(x, devices)[:capacity])
    payload = result.payload if collect == "sum" else collected(result.payload)
    return Collected(payload, collected(result.states), collected(result.info))


def _dealt(slots: Slots, devices: int) -> Slots:
    """Slots 0, D, 2 D, ... for the first device, 1, D + 1, ... for the second.

    The living come first, those with the most data first among them: every device gets as many of each.
    """
    return jax.tree.map(lambda x: x.reshape(-1, devices, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape), slots)


def _undealt(x: Array, devices: int) -> Array:
    """What came back from the devices, one after the other, in the order of the slots."""
    return x.reshape(devices, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)


def _sum(stacked: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), stacked)


def _put(buffer: PyTree, index: Array, value: PyTree) -> PyTree:
    return jax.tree.map(lambda b, v: b.at[index].set(v), buffer, value)


def _pad(slots: Slots, length: int) -> Slots:
    """Repeats the last slot up to the length; the copies are not alive."""
    extra = length - slots.ids.shape[0]
    if extra == 0:
        return slots
    longer = jax.tree.map(lambda x: jnp.concatenate([x, jnp.repeat(x[-1:], extra, axis=0)]), slots)
    return longer._replace(alive=jnp.concatenate([slots.alive, jnp.zeros(extra, bool)]))
