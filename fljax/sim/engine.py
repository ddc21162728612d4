"""The engine: a training run is a scan over rounds, compiled once for a fixed number of rounds per call.

Between two calls the host draws progress and writes a checkpoint; nothing leaves the device in between. Rounds beyond
the end are skipped by a condition on the round number, so that a remainder needs no second program. The condition, and
the one that decides about evaluation, hang on the round number alone: under a vmap over trials they stay conditions
(a batched condition would execute both branches).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Sharding

from fljax.core import answers
from fljax.core.types import Array, Hparams, Key, PyTree, Round
from fljax.server.observe import flat_classes
from fljax.server.state import RoundInfo, RoundState
from fljax.sim.evaluate import Held
from fljax.sim.feed import Feed, resident


class Schedule(NamedTuple):
    """When things happen; traced, so that no value recompiles.

    rounds: T. every: rounds between evaluations. until: the round before which this call ends, where calls are shorter
    than they were compiled for; ``drive`` sets it for every call. None: calls have their full length.
    """

    rounds: Array
    every: Array
    until: Array | np.int32 | None = None


class Call(NamedTuple):
    """What one compiled call returns: the state, and per round [rounds_per_call] metrics."""

    state: RoundState
    history: dict[str, Array]


def flat_info(info: RoundInfo) -> dict[str, Array]:
    """The metrics of a round under flat names."""
    parts = ("client", "server", "uplink", "downlink", "classes")
    plain = {k: v for k, v in info._asdict().items() if k not in parts}
    links = {"uplink": info.uplink, "downlink": info.downlink}
    traffic = {f"{link}_{unit}": n for link, sent in links.items() for unit, n in sent._asdict().items()}
    return {**plain, **traffic, **info.client, **info.server, **flat_classes(info.classes)}


def make_call(round: Round, evaluate: Callable[..., dict[str, Array]], rounds_per_call: int) -> Callable:
    """Builds (t0, schedule, key, state, data, held, hparams) -> Call, the compiled unit of every run and sweep.

    Args:
      round: the round. evaluate: (params, client states, held) -> metrics.
      rounds_per_call: length of the scan, static.

    Metrics of the evaluation are NaN in rounds without one. A call of one round may be given, as its last argument, the
    sum that the host made of the payloads (``fljax.sim.hosted``).
    """

    def call(t0, schedule: Schedule, key: Key, state: RoundState, data, held: Held, hparams: Hparams, *given) -> Call:
        def one(state: RoundState, t: Array):
            new, info = round.step(t, key, state, data.at(t), hparams, *given)
            done = t + 1
            due = (done % schedule.every == 0) | (done == schedule.rounds)

            def look(state: RoundState):
                return evaluate(round.deployed(t, state, hparams), state.clients, held)

            shapes = jax.eval_shape(look, new)
            nothing = jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes)
            seen = jax.lax.cond(due, look, lambda _: nothing, new)
            return new, {**flat_info(info), **seen}

        end = schedule.rounds if schedule.until is None else jnp.minimum(schedule.until, schedule.rounds)

        def body(state: RoundState, index: Array):
            t = t0 + index
            shapes = jax.eval_shape(one, state, t)[1]
            nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            return jax.lax.cond(t < end, one, lambda s, _: (s, nothing), state, t)

        return Call(*jax.lax.scan(body, state, jnp.arange(rounds_per_call)))

    return call


class Timing(NamedTuple):
    """Seconds. compile_s: tracing and compiling, once. steady_s_per_round: median over calls, without the first."""

    compile_s: float
    steady_s_per_round: float
    total_s: float


class Running(NamedTuple):
    """A run between two calls: rounds done, state on the device, history on the host (leaves [rounds done, ...])."""

    done: int
    state: RoundState
    history: dict[str, np.ndarray]


def compile_call(call: Callable, *args: Any) -> tuple[Callable, float]:
    """Compiles a call for its arguments, the state donated, or reads it from disk: (executable, seconds)."""
    start = time.perf_counter()
    whole = replicated(args[3])
    lowered = jax.jit(call, donate_argnums=(3,), out_shardings=whole).lower(*args)
    with programs_kept():
        return lowered.compile(), time.perf_counter() - start


def replicated(state: PyTree) -> Sharding | None:
    """How results lie: like the state on every device where all of several hold it, else as the compiler likes."""
    lies = jax.tree.leaves(state)[0].sharding
    return lies if len(lies.device_set) > 1 and lies.is_fully_replicated else None


def drive(
    executable: Callable,
    start: Running,
    schedule: Schedule,
    key: Key,
    data: Any,
    held: Held,
    hparams: Hparams,
    *,
    round_axis: int = 0,
    seconds: float = math.inf,
    agree: Callable[[int], int] = int,
    room: Callable[[int], int] | None = None,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
    after_call: Callable[[Running], None] | None = None,
) -> tuple[Running, list[tuple[int, float]]]:
    """Runs compiled calls until all rounds are done.

    Args:
      executable: a compiled call (perhaps vmapped over trials).
      start: where to begin; a run resumed from a checkpoint continues bit-identically, since keys are derived from the
        run's key and the round number.
      schedule, key, held, hparams: as for ``make_call``.
      data: those of all calls, or a Feed that has them call by call.
      round_axis: axis of the rounds in the history: 0, or 1 behind a trial axis.
      seconds: what a call should take at most, where the schedule has ``until``: see ``paced``. It changes no result.
      agree: from the rounds that this process wants in the next call to those that all processes do.
      room: (rounds done) -> rounds that a call may have, where the host wants to look in between.
      around: entered for every call, from its start until its results are there.
      after_call: called between two calls with the run so far: progress, checkpoints.

    Returns:
      (the finished run, [(rounds, seconds)] of every call).
    """
    running, times, total = start, [], int(schedule.rounds)
    feed = data if isinstance(data, Feed) else resident(data)
    while running.done < total:
        begin, wanted = time.perf_counter(), total - running.done
        if schedule.until is not None:
            wanted = min(wanted, paced(times, seconds), feed.room(running.done))
            wanted = agree(wanted if room is None else min(wanted, room(running.done)))
            schedule = schedule._replace(until=np.int32(running.done + wanted))
        now = feed.now(running.done)
        with around():
            result = executable(np.int32(running.done), schedule, key, running.state, now, held, hparams)
            feed.ahead(running.done)  # while the device computes
            history = jax.tree.map(np.asarray, jax.block_until_ready(result.history))
        count = min(wanted, history["participants"].shape[round_axis])
        times.append((count, time.perf_counter() - begin))
        part = {name: np.take(v, range(count), axis=round_axis) for name, v in history.items()}
        joined = {
            name: np.concatenate([running.history[name], v], axis=round_axis) if running.history else v
            for name, v in part.items()
        }
        running = Running(running.done + count, result.state, joined)
        if after_call is not None:
            after_call(running)
    return running, times


def paced(times: list[tuple[int, float]], seconds: float) -> int:
    """How many rounds the next call may have, so that it takes half of ``seconds`` by the slower of the last two calls.

    Half, because rounds differ: some are evaluated. The first call has one round, and no call more than four times as
    many as the one before it. A round that takes longer than ``seconds`` is a call of its own.

    Args:
      times: [(rounds, seconds)] of the calls so far. seconds: of one call; infinite: no limit.
    """
    if seconds == math.inf:
        return 2**31 - 1
    if not times:
        return 1
    slowest = max(spent / count for count, spent in times[-2:])
    return int(max(1, min(4 * times[-1][0], 0.5 * seconds / max(slowest, 1e-9))))


def steady(times: list[tuple[int, float]]) -> float:
    """Median seconds per round; the first call is left out where there are more, because it also warms up."""
    rest = times[1:] or times
    return float(np.median([seconds / max(count, 1) for count, seconds in rest])) if rest else 0.0


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, in $FLJAX_CACHE or ~/.cache/fljax, so that a second start does not compile.

    Nothing is kept where that folder cannot be written.
    """
    folder = answers.root() / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


@contextmanager
def programs_kept() -> Iterator[None]:
    """``use_compilation_cache`` for what is compiled inside of it, unless the process has a cache or wants none.

    JAX asks once in a process whether there is a cache; it has to forget the answer on both sides.
    """
    now = dict(jax.config.values)
    if now["jax_compilation_cache_dir"] is not None or not now["jax_enable_compilation_cache"]:
        yield
        return
    compilation_cache.reset_cache()
    use_compilation_cache()
    try:
        yield
    finally:
        for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"):
            jax.config.update(name, now[name])
        compilation_cache.reset_cache()


@contextmanager
def programs_read() -> Iterator[list[str]]:
    """An entry for every program that is read from disk, and not compiled, inside of it."""
    read: list[str] = []

    def listen(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            read.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield read
    finally:
        jax.monitoring.unregister_event_listener(listen)


def bytes_sent(history: dict[str, np.ndarray], round_axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Total (uplink, downlink) bytes of a run, exact."""

    def total(link: str) -> np.ndarray:
        kib, rest = (history[f"{link}_{unit}"].astype(np.int64) for unit in ("kib", "rest"))
        return (1024 * kib + rest).sum(axis=round_axis)

    return total("uplink"), total("downlink")


def finals(history: dict[str, np.ndarray], round_axis: int = 0) -> dict[str, np.ndarray]:
    """The evaluation metrics of the last round."""
    last = {name: np.take(v, -1, axis=round_axis) for name, v in history.items()}
    return {n: v for n, v in last.items() if n.startswith(("test_", "client_", "unseen_"))}
