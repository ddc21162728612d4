"""How a compiled call gets its data: all of them resident on the device, or those of its own rounds from the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core.keys import stream
from fljax.core.types import Hparams, Key
from fljax.data.streamed import StreamedData, Window
from fljax.server.sampler import Sampler


class Feed(NamedTuple):
    """Data of the calls of a run.

    now: (first round of a call) -> its data.
    ahead: (first round of a call) -> None, gathers the data of the call after it.
    """

    now: Callable[[int], Any]
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
      rounds: T. per_call: rounds of a compiled call.
      spread: puts data where the call wants them: on all devices of several processes.
    """
    if isinstance(data, StreamedData):
        return _streamed(data, sampler, key, hparams, rounds, per_call, spread)
    return resident(spread(data))


def resident(data: Any) -> Feed:
    """All data in every call."""
    return Feed(lambda begin: data, lambda begin: None)


def _streamed(
    data: StreamedData, sampler: Sampler, key: Key, hparams: Hparams, rounds: int, per_call: int, spread: Callable
) -> Feed:
    """Two windows at a time: the one that the device reads, and the next, gathered while the device computes."""
    ready: dict[int, Window] = {}

    @jax.jit
    def cohorts(rounds_of_call):
        sample = lambda t: sampler.sample(stream(key, "sample"), t, hparams)  # noqa: E731
        drawn = jax.lax.map(sample, rounds_of_call)
        return jnp.where(drawn.real, drawn.ids, sampler.population)

    def gather(begin: int) -> Window:
        return spread(data.window(np.asarray(cohorts(begin + np.arange(per_call)))))

    def now(begin: int) -> Window:
        if begin not in ready:
            ready[begin] = gather(begin)
        return ready[begin]

    def ahead(begin: int) -> None:
        ready.clear()
        if begin + per_call < rounds:
            ready[begin + per_call] = gather(begin + per_call)

    return Feed(now, ahead)
