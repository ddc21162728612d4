"""How a compiled call gets its data: all of them resident on the device, or those of its own rounds from the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core import memory
from fljax.core.keys import stream
from fljax.core.types import Hparams, Key
from fljax.data.streamed import StreamedData, Window
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
    spread: Callable[[Any], Any] = lambda data: data,
) -> Feed:
    """The feed of a run.

    Args:
      data: FederatedData, which stay on the device, or StreamedData.
      sampler, key, hparams: of the run; they tell the cohorts of all rounds in advance.
      rounds: T. per_call: the most rounds of a compiled call.
      spread: puts data where the call wants them: on all devices of several processes.
    """
    if isinstance(data, StreamedData):
        return _streamed(data, sampler, key, hparams, rounds, per_call, spread)
    return resident(spread(data))


def resident(data: Any) -> Feed:
    """All data in every call."""
    return Feed(lambda begin: data, lambda begin: ALL_ROUNDS, lambda begin: None)


def _streamed(
    data: StreamedData, sampler: Sampler, key: Key, hparams: Hparams, rounds: int, per_call: int, spread: Callable
) -> Feed:
    """Blocks of ``per_call`` rounds, two at a time: the one that the device reads, and the next, gathered meanwhile."""
    _check_room(data, sampler.capacity, per_call)
    ready: dict[int, Window] = {}

    @jax.jit
    def cohorts(block):
        sample = lambda t: sampler.sample(stream(key, "sample"), t, hparams)  # noqa: E731
        drawn = jax.lax.map(sample, block)
        return jnp.where(drawn.real, drawn.ids, sampler.population)

    def gather(block: int) -> Window:
        first = block * per_call
        return spread(data.window(first, np.asarray(cohorts(first + np.arange(per_call)))))

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


def _check_room(data: StreamedData, cohort: int, rounds: int) -> None:
    """Raises FljaxError unless two blocks of rounds fit on the device; on a CPU there is a third on its way."""
    limit, copies = hosts.least(memory.free()), 3 if jax.default_backend() == "cpu" else 2
    each = copies * data.window_bytes(1, cohort)
    fits = rounds if limit is None else int(memory.SHARE * limit / each)
    remedy = f"Use perf.rounds_per_call={fits}." if fits else "Use a smaller cohort or data.examples_per_client."
    memory.check_room(f"{copies} copies of the streamed examples of {rounds} rounds", rounds * each, limit, remedy)
