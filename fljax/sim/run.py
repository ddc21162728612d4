"""One run of an experiment: built, compiled, driven chunk by chunk, checkpointed and resumable."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax.config import Experiment
from fljax.core import memory
from fljax.core.check import FljaxError
from fljax.core.types import Hparams, Key
from fljax.privacy.ledger import Ledger
from fljax.privacy.statement import PrivacyStatement
from fljax.sim import checkpoint, hosts, waiting
from fljax.sim.alike import alike, found_data
from fljax.sim.build import Program, build, privacy_ledger, resolve
from fljax.sim.devices import make_clock
from fljax.sim.engine import (
    Running,
    Schedule,
    Timing,
    compile_call,
    drive,
    make_call,
    programs_read,
    steady,
)
from fljax.sim.evaluate import held_data, make_evaluate
from fljax.sim.feed import make_feed
from fljax.sim.hosted import Host
from fljax.sim.interrupt import Check, stop_requests
from fljax.sim.mesh import client_mesh
from fljax.sim.outcome import Outcome
from fljax.sim.probe import Choice, check_alone, measures, probe_chunk, recalled
from fljax.sim.progress import Progress, said
from fljax.sim.protected import encryption_told, make_host
from fljax.sim.room import check_state
from fljax.sim.trackers import Tell, Tracker, check_trackers, open_trackers

CHECKPOINT = ".checkpoint.npz"
CHUNK = "perf.chunk"
UNMEASURED = "unmeasured"
KEEP_EVERY_S = 1.0
"""Seconds between two checkpoints at the least: writing them should not cost what short calls do."""


def run(
    experiment: Experiment,
    *,
    out: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    track: Sequence[str | Tracker] = (),
) -> Outcome:
    """Runs an experiment.

    Args:
      experiment: without a sweep.
      out: folder for checkpoints between calls; None keeps nothing on disk.
      resume: continue from the checkpoint in that folder, if there is one; the result is bit-identical to a run that
        was never interrupted.
      quiet: no progress.
      track: trackers that get the metrics of every round, by name (``fljax.sim.trackers``) or one's own.

    Raises:
      FljaxError: the experiment holds a sweep; the checkpoint belongs to another experiment or is damaged; the package
        of a tracker is missing.
      Interrupted: Ctrl-C or SIGTERM came; the checkpoint of the rounds done is written.
    """
    if experiment.sweep is not None:
        raise FljaxError(f"{experiment.name} holds a sweep. Run it with `fljax sweep {experiment.name}`.")
    hosts.join()
    quiet, path = quiet or not hosts.is_first(), None if out is None else out / CHECKPOINT

    def start() -> Begun:
        waiting.begins(path)
        check_trackers(track, out)
        return begin(experiment, path, resume)

    with hosts.clean_stdout():
        begun = alike(experiment, start, _found)
    if out is not None:
        _make_folder(out)
    with hosts.clean_stdout(), stop_requests(quiet, hosts.largest, hosts.several()) as check:
        host = make_host(experiment, begun.program, begun.key, begun.numbers)
        begun, executable, inputs, compiled = compile_fitting(experiment, begun, quiet, host)
        check(f"before round {begun.running.done + 1} of {begun.rounds}")
        bar = Progress(begun.rounds, experiment.name, quiet, begun.running.done)
        with open_trackers(track if hosts.is_first() else (), experiment, out) as tell, bar:
            after_call = _between_calls(begun, bar, tell, check)
            seconds = experiment.perf.seconds_per_call
            with hosts.all_alive():
                pace: dict[str, Any] = {"seconds": seconds, "agree": hosts.smallest, "room": host.room}
                pace["around"] = waiting.calling
                done, times = drive(executable, begun.running, *inputs, **pace, after_call=after_call)
    program, ledger, numbers = begun.program, begun.ledger, begun.numbers
    timing = Timing(compiled.seconds, steady(times), sum(seconds for _, seconds in times))
    params = program.round.deployed(jnp.int32(begun.rounds - 1), done.state, numbers)
    history = make_clock(experiment, program.model, program.dataset)(done.history)
    history = history | ({"epsilon_spent": ledger.spent} if len(ledger.spent) else {})
    told = encryption_told(experiment, program, host)
    return Outcome(experiment, program, begun.statement, params, history, timing, told, begun.choice.by, compiled.cache)


class Begun(NamedTuple):
    """A run before its first call, or where an earlier start left it. rounds: T. header: of its checkpoints.

    choice: clients per batch; by ``unmeasured`` until ``compile_fitting`` has measured them.
    """

    program: Program
    numbers: Hparams
    key: Key
    statement: PrivacyStatement
    ledger: Ledger
    rounds: int
    running: Running
    path: Path | None
    header: dict[str, Any]
    choice: Choice


def begin(experiment: Experiment, path: Path | None, resume: bool) -> Begun:
    """Builds what runs, and finds the state that it begins with."""
    header: dict = {"fingerprint": experiment.fingerprint(), "name": experiment.name}
    check_checkpoint(path, header, resume)
    check_alone(experiment)
    choice = _chosen_before(experiment, path if resume else None)
    program = build(experiment if choice is None else experiment.replace(**{CHUNK: choice.chunk}))
    check_state(experiment, program, memory.free())
    hparams, statement = resolve(experiment, program)
    header["rounds"] = rounds = statement.rounds or experiment.rounds
    choice = choice or Choice(program.chunk, UNMEASURED if measures(experiment, program, rounds) else "rule")
    ledger = privacy_ledger(program, hparams, statement)
    numbers, key = hparams.arrays(), jax.random.key(experiment.seed)
    state = program.round.init(key, program.params(experiment.seed), numbers)
    running = Running(0, state, {})
    if resume and path is not None and path.exists():
        running = checkpoint.restore(path, state, {"fingerprint": header["fingerprint"]})
        ledger.check(checkpoint.read_header(path).get("ledger"), running.done, str(path))
    return Begun(program, numbers, key, statement, ledger, rounds, running, path, header, choice)


def _found(begun: Begun) -> dict[str, Any]:
    """What a process found before its first call, and others have to have found as well."""
    waiting.reached(begun.running.done)
    return found_data(begun.program.dataset) | {"rounds done": begun.running.done, CHUNK: begun.choice.chunk}


def _chosen_before(experiment: Experiment, path: Path | None) -> Choice | None:
    """Clients per batch by the experiment's number, or as an earlier start had them, whose last bits depend on it."""
    if isinstance(experiment.perf.chunk, int):
        return Choice(experiment.perf.chunk, "asked")
    return None if path is None or not path.exists() else recalled(checkpoint.read_header(path))


def _make_folder(out: Path) -> None:
    """Makes the results folder, so that what stands in its way is told before anything is compiled."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FljaxError(f"{out}: cannot be made ({error.strerror}). Choose another folder with --out.") from None
    if not os.access(out, os.W_OK):
        raise FljaxError(f"{out}: cannot be written to. Choose another folder with --out.")


class Made(NamedTuple):
    """A compiled call, its program, the seconds that tracing and compiling took, and whether it was read from disk."""

    program: Program
    executable: Callable
    seconds: float
    read: bool


class Compiled(NamedTuple):
    """What compiling took in all. cache: ``warm`` if all programs were read from disk, else ``cold``."""

    seconds: float
    cache: str


def compile_fitting(
    experiment: Experiment, begun: Begun, quiet: bool, host: Host | None = None
) -> tuple[Begun, Callable, tuple, Compiled]:
    """The run with the batch of clients that was chosen, or measured, and fits into memory, the compiled call, its
    inputs after the state as ``drive`` takes them, and what compiling took. host: what watches the call, or makes its
    sums."""
    host, train = host or Host(), begun.program.dataset.train
    length = 1 if host.exchange is not None else min(experiment.perf.rounds_per_call, begun.rounds)
    mesh = client_mesh(experiment.perf.devices)
    spread = partial(hosts.everywhere, mesh=mesh)
    whole = (begun.running._replace(state=spread(begun.running.state)), spread(begun.key), spread(begun.numbers))
    begun = begun._replace(running=whole[0], key=whole[1], numbers=whole[2])
    schedule = spread(Schedule(jnp.int32(begun.rounds), jnp.int32(experiment.eval_every), jnp.int32(begun.rounds)))
    feed = make_feed(train, begun.program.sampler, begun.key, begun.numbers, begun.rounds, length, mesh)
    inputs = (schedule, begun.key, feed, spread(held_data(begun.program.dataset)), begun.numbers)
    made: dict[int, Made] = {}

    def compile_at(size: int) -> Callable:
        if size not in made:
            made[size] = _make(experiment, begun, size, length, inputs, host.exchange is not None)
        return made[size].executable

    choice = begun.choice
    each = 0 if experiment.perf.dropout == "compact" else memory.size_of(begun.program.model.shapes())
    if choice.by == UNMEASURED:
        left = min(length, begun.rounds - begun.running.done)
        choice = probe_chunk(experiment, begun.program, compile_at, begun.running, inputs, left, quiet)
    size, fixed = choice.chunk or begun.program.sampler.capacity, isinstance(experiment.perf.chunk, int)
    with said("compiling", quiet):
        executable, fits = memory.fit(compile_at, size, fixed, hosts.least(memory.free()), CHUNK, each)
    choice = choice._replace(chunk=fits, by=choice.by if fits == size else "memory")
    if not host.idle:
        executable = host.watch(executable, jax.jit(_transcript(made[fits].program)))
    header = begun.header | {"execution": choice.entry()}
    begun = begun._replace(program=made[fits].program, header=header, choice=choice)
    cache = "warm" if all(one.read for one in made.values()) else "cold"
    return begun, executable, inputs, Compiled(sum(one.seconds for one in made.values()), cache)


def _make(experiment: Experiment, begun: Begun, size: int, length: int, inputs: tuple, given: bool) -> Made:
    """The call with so many clients at a time, compiled. given: its sums are given to it by the host."""
    program, (schedule, key, feed, held, numbers) = begun.program, inputs
    if size != program.chunk:
        program = build(experiment.replace(**{CHUNK: size}), program.dataset)
    call = make_call(program.round, make_evaluate(program.model, program.loss, program.local, program.goal), length)
    state, data = begun.running.state, feed.now(begun.running.done)
    args = (schedule, key, state, data, held, numbers)
    if given:
        shapes = jax.eval_shape(_transcript(program), jnp.int32(0), key, state, data, numbers)
        args = (*args, shapes.pre_noise)
    with programs_read() as read:
        return Made(program, *compile_call(call, np.int32(0), *args), read=bool(read))


def _transcript(program: Program) -> Callable:
    """(t, key, state, data, hparams) -> the round with every value kept."""
    return lambda t, key, state, data, hparams: program.round.transcript(t, key, state, data.at(t), hparams)


def _between_calls(begun: Begun, bar: Progress, tell: Tell, check: Check) -> Callable[[Running], None]:
    """What happens between two calls: a checkpoint, progress, trackers, and the end if somebody asked for it."""
    told, ledger, saved = begun.running.done, begun.ledger, (begun.running.done, -math.inf)
    spent = {"epsilon_spent": ledger.spent} if len(ledger.spent) else {}

    def keep(running: Running) -> None:
        nonlocal saved
        if begun.path is not None and hosts.is_first() and running.done > saved[0]:
            checkpoint.save(begun.path, running, begun.header | {"ledger": ledger.entry(running.done)})
            saved = (running.done, time.monotonic())

    def after_call(running: Running) -> None:
        nonlocal told
        waiting.reached(running.done)
        if running.done == begun.rounds or time.monotonic() - saved[1] >= KEEP_EVERY_S:
            keep(running)
        bar.update(running.done, _news(running, ledger), running.history)
        tell(running.history | spent, told)
        told = running.done
        if running.done < begun.rounds:
            kept = "nothing is kept without a results folder" if begun.path is None else f"kept in {begun.path}"
            check(f"after {running.done} of {begun.rounds} rounds, {kept}", lambda: keep(running))

    return after_call


def _news(running: Running, ledger: Ledger) -> str:
    """What is known after some rounds: epsilon so far, and the last measured accuracy (or loss)."""
    parts = []
    if len(ledger.spent):
        parts.append(f"epsilon {ledger.spent[running.done - 1]:.2f} ({ledger.label}, live)")
    for name in ("test_accuracy", "test_loss"):
        seen = running.history.get(name, np.zeros(0))
        if len(seen := seen[np.isfinite(seen)]):
            parts.append(f"{name.removeprefix('test_')} {seen[-1]:.3f}")
            break
    return ", ".join(parts)


def run_controls(experiment: Experiment, quiet: bool = False) -> dict[str, Outcome]:
    """Runs the controls of an experiment, by name; they keep nothing on disk."""
    return {name: run(experiment.control(name), quiet=quiet) for name in experiment.controls}


def beside(outcome: Outcome, controls: dict[str, Outcome]) -> dict[str, dict[str, float]]:
    """The controls in the terms of a summary: final metrics, uplink bytes, and the run's uplink relative to theirs."""
    mine = outcome.communication["uplink_bytes"]

    def line(other: Outcome) -> dict[str, float]:
        sent = other.communication["uplink_bytes"]
        return {**other.final, "uplink_bytes": sent, "uplink_saved": 1.0 - mine / sent if sent else 0.0}

    return {name: line(other) for name, other in controls.items()}


def check_checkpoint(path: Path | None, header: dict, resume: bool) -> None:
    """Refuses a folder with the checkpoint of another experiment, whether it is resumed or would be overwritten.

    Only a finished run of the same name, with other settings, may be overwritten by a run that starts anew.
    """
    if path is None or not path.exists():
        return
    found = checkpoint.read_header(path)
    if found.get("fingerprint") == header["fingerprint"]:
        return
    finished = found.get("done") == found.get("rounds") and found.get("name") == header["name"]
    if resume or not finished:
        raise FljaxError(
            f"{path}: checkpoint of another experiment ({found.get('name')}, {found.get('fingerprint')}), expected "
            f"({header['name']}, {header['fingerprint']}). Choose another folder with --out."
        )
