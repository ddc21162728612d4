"""What the host does with the messages of rounds, outside of the compiled program: it checks some, or makes the sums.

A *check* looks at the real payloads of every so many rounds and compares them with what a real protocol makes of them.
An *exchange* takes the payloads of every round through a real protocol and gives their sum back to the second half of
the round. Payloads come from the transcript of the round, which is the same round with every value kept; rounds that
nobody looks at run as ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fljax.core.check import FljaxError
from fljax.core.types import PyTree
from fljax.sim.engine import bytes_sent


class Seen(NamedTuple):
    """One round, on the host. round: its number. transcript: with every value. params, algorithm, transforms: what the
    server held before it. uplink, downlink: bytes that the round counted."""

    round: int
    transcript: Any
    params: PyTree
    algorithm: PyTree
    transforms: PyTree
    uplink: int = 0
    downlink: int = 0

    @property
    def answered(self) -> np.ndarray:
        """Slots of the clients that answered."""
        return np.flatnonzero(self.transcript.alive)


class Check(NamedTuple):
    """One kind of check. every: rounds between two. look: (Seen) -> None, or FljaxError. told: () -> what it found."""

    name: str
    every: int
    look: Callable[[Seen], None]
    told: Callable[[], dict[str, Any]]


class Exchange(NamedTuple):
    """A real protocol in the place of the sum. sum: (Seen) -> the payloads' sum. told: () -> what it found."""

    name: str
    sum: Callable[[Seen], PyTree]
    told: Callable[[], dict[str, Any]]


class Host(NamedTuple):
    """All that the host does in a run."""

    checks: Sequence[Check] = ()
    exchange: Exchange | None = None

    @property
    def idle(self) -> bool:
        """True where nothing but the compiled program runs."""
        return not self.checks and self.exchange is None

    def room(self, done: int) -> int:
        """Rounds that a call may have before the host wants to look again."""
        if self.exchange is not None:
            return 1
        return min((check.every - done % check.every for check in self.checks), default=2**31 - 1)

    def told(self) -> dict[str, dict[str, Any]]:
        """What was found so far, by name."""
        parts = [*self.checks, *([] if self.exchange is None else [self.exchange])]
        return {part.name: part.told() for part in parts}

    def watch(self, executable: Callable, transcript: Callable) -> Callable:
        """A compiled call that is watched.

        Args:
          executable: of the rounds. transcript: (t, key, state, data, hparams) -> Transcript, compiled.

        Raises:
          FljaxError: from the call, where a check fails.
        """

        def call(t0, schedule, key, state, data, held, hparams):
            begin = int(t0)
            due = [check for check in self.checks if begin % check.every == 0]
            if not due and self.exchange is None:
                return executable(t0, schedule, key, state, data, held, hparams)
            parts = (transcript(t0, key, state, data, hparams), state.params, state.algorithm, state.transforms)
            seen = Seen(begin, *jax.device_get(parts))
            given = () if self.exchange is None else (self.exchange.sum(seen),)
            result = executable(t0, schedule, key, state, data, held, hparams, *given)
            counts = {name: np.asarray(v)[:1] for name, v in result.history.items() if name.endswith(("_kib", "_rest"))}
            up, down = bytes_sent(counts)
            for check in due:
                check.look(seen._replace(uplink=int(up), downlink=int(down)))
            return result

        return call


def check_alone() -> None:
    """Raises FljaxError where several processes share a run: the host sees the clients of its own devices only."""
    if jax.process_count() > 1:
        raise FljaxError(
            f"Expected one process for real messages, found {jax.process_count()}. "
            "Set channel.verify_rounds and he.verify_rounds to 0."
        )


def relative(read: np.ndarray, sent: np.ndarray) -> float:
    """Largest difference relative to the largest value; infinite for different shapes."""
    if read.shape != sent.shape:
        return math.inf
    gap = np.abs(read.astype(np.float64) - sent.astype(np.float64)).max(initial=0.0)
    return float(gap / max(np.abs(sent).max(initial=0.0), 1e-30)) if gap else 0.0
