"""How a compiled call gets its data: all of them resident on the device, or those of its own rounds from the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fljax.core import memory
from fljax.core.keys import stream
from fljax.core.types import Hparams, Key
from fljax.data.streamed import StreamedData, Window, in_one
from fljax.server.sampler import Sampler
from fljax.sim import hosts

ALL_ROUNDS = 2**31 - 1


class Feed(NamedTuple):
    """Data of the calls of a run.

    now: (first round of a call) -> its data. room: (first round) -> for how many rounds they last.
    ahead: (first round of a call) -> None, gathers what comes after its data while the device computes.
    """

    now: Callable[[int], Any]
    room: Callable[[int], int]
    ahead: Callable[[int], None]


def make_feed(
    data: Any,
    sampler: Sampler,
    key: Key,
    hparams: Hparams,
    rounds: int,
    per_call: int,
    mesh: Mesh | None = None,
) -> Feed:
    """The feed of a run.

    Args:
      data: FederatedData, which stay on the device, or StreamedData.
      sampler, key, hparams: of the run; they tell the cohorts of all rounds in advance.
      rounds: T. per_call: the most rounds of a compiled call.
      mesh: of the devices that the clients are spread over. Resident data lie on each of them; of streamed data each
        holds a share, which its process reads, and the program gathers those of a round.
    """
    if isinstance(data, StreamedData):
        return _streamed(data, sampler, key, hparams, rounds, per_call, mesh)
    return resident(hosts.everywhere(data, mesh))


def resident(data: Any) -> Feed:
    """All data in every call."""
    return Feed(lambda begin: data, lambda begin: ALL_ROUNDS, lambda begin: None)


def _streamed(
    data: StreamedData, sampler: Sampler, key: Key, hparams: Hparams, rounds: int, per_call: int, mesh: Mesh | None
) -> Feed:
    """Blocks of ``per_call`` rounds, two at a time: the one that the device reads, and the next, gathered meanwhile."""
    make, shares = (in_one, 1) if mesh is None else (partial(hosts.in_shares, mesh=mesh), mesh.shape["clients"])
    _check_room(data, sampler.capacity, per_call, shares)
    ready: dict[int, Window] = {}

    @jax.jit
    def cohorts(block):
        sample = lambda t: sampler.sample(stream(key, "sample"), t, hparams)  # noqa: E731
        drawn = jax.lax.map(sample, block)
        return jnp.where(drawn.real, drawn.ids, sampler.population)

    def gather(block: int) -> Window:
        first = block * per_call
        window = data.window(first, np.asarray(cohorts(first + np.arange(per_call))), make, shares)
        small = hosts.everywhere((window.first, window.ids, window.starts, window.offsets), mesh)
        return replace(window, **dict(zip(("first", "ids", "starts", "offsets"), small, strict=True)))

    def now(begin: int) -> Window:
        block = begin // per_call
        if block not in ready:
            ready.clear()
            ready[block] = gather(block)
        return ready[block]

    def ahead(begin: int) -> None:
        following = begin // per_call + 1
        if following in ready or following * per_call >= rounds:
            return
        ready[following] = gather(following)
        for done in [block for block in ready if block < following - 1]:
            del ready[done]

    return Feed(now, lambda begin: per_call - begin % per_call, ahead)


def _check_room(data: StreamedData, cohort: int, rounds: int, shares: int) -> None:
    """Raises FljaxError unless the shares of two blocks fit on a device; on a CPU a third one is on its way, too."""
    limit, on_cpu = hosts.least(memory.free()), jax.default_backend() == "cpu"
    copies, shares = (3, jax.process_count()) if on_cpu else (2, shares)  # a CPU's devices share its memory
    each = -(-copies * data.window_bytes(1, cohort) // shares)
    fits = rounds if limit is None else int(memory.SHARE * limit / each)
    remedy = f"Use perf.rounds_per_call={fits}." if fits else "Use a smaller cohort or data.examples_per_client."
    memory.check_room(f"{copies} copies of the streamed examples of {rounds} rounds", rounds * each, limit, remedy)
