"""Batches of a sweep: per static structure one program, compiled once and vmapped over trials, of fixed width.

Results of a trial may differ in the last bits with the width of the batch, so the width is planned and kept, and a
batch of fewer trials is filled up with repeats, whose results are dropped. The data are one unbatched argument of the
program.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fljax.config import Experiment
from fljax.core import memory, tree
from fljax.core.check import FljaxError
from fljax.core.keys import stream
from fljax.core.types import Hparams
from fljax.data import Dataset
from fljax.privacy.ledger import Ledger
from fljax.privacy.statement import PrivacyStatement
from fljax.sections import PerfConfig
from fljax.sim import checkpoint
from fljax.sim.build import Program, build, calibrated, load_data, privacy_ledger, resolve
from fljax.sim.devices import make_clock
from fljax.sim.engine import Running, Schedule, Timing, compile_call, drive, make_call, steady
from fljax.sim.evaluate import held_data, make_evaluate
from fljax.sim.interrupt import Interrupted
from fljax.sim.mesh import client_mesh, place, spread_trials
from fljax.sim.progress import Progress, said
from fljax.sim.room import check_trials
from fljax.sweep.files import remove
from fljax.sweep.grid import Trial, axes
from fljax.sweep.plan import Batch, Plan, make_plan

CHECKPOINT_EVERY_S = 5.0
"""Seconds of a batch between two checkpoints: less often than calls, so that short calls cost nothing."""

History = dict[str, np.ndarray]
Check = Callable[[str], None]


class GroupTiming(NamedTuple):
    """What one program cost: compile once, then steady seconds per round of one trial."""

    label: str
    trials: int
    timing: Timing


@dataclass(frozen=True)
class SweepOutcome:
    """A finished sweep, in memory.

    experiment: with its sweep. trials: in order. statements: one per trial. history: metrics [R, T] by name, NaN where
    a group does not have a metric. timings: one per compiled program.
    """

    experiment: Experiment
    trials: list[Trial]
    statements: list[PrivacyStatement]
    history: History
    timings: list[GroupTiming]

    @property
    def axes(self) -> list[str]:
        """Swept fields, without the seed."""
        assert self.experiment.sweep is not None
        return axes(self.experiment.sweep)

    def _repr_html_(self) -> str:
        """For notebooks: the cells with mean ± std over seeds, what may be claimed, what the programs cost."""
        from fljax.sweep.show import outcome_view

        return outcome_view(self)


class Resolved(NamedTuple):
    """The numbers of one trial, its noise calibrated, what may be said of its privacy, and its spending by round."""

    hparams: Hparams
    statement: PrivacyStatement
    ledger: Ledger


class Done(NamedTuple):
    """A batch that ran. histories: metrics [T] of each trial. compile_s: 0 where an earlier batch compiled the program.

    times: [(rounds times trials, seconds)] of every call.
    """

    batch: Batch
    resolved: list[Resolved]
    histories: list[History]
    compile_s: float
    times: list[tuple[int, float]]


class Saved(NamedTuple):
    """Where the checkpoint of a running batch goes, and what it is known by."""

    path: Path
    header: dict[str, Any]


def run_sweep(experiment: Experiment, *, quiet: bool = False) -> SweepOutcome:
    """Runs all trials of an experiment with a sweep, and keeps nothing on disk (``sweep_into`` does).

    Raises:
      FljaxError: no sweep in the experiment, an adaptive search, an invalid cell, a budget that cannot be promised.
    """
    if experiment.sweep is not None and experiment.sweep.search is not None:
        raise FljaxError("Expected an adaptive search to have a folder for its results. Use `fljax sweep`.")
    plan = make_plan(experiment)
    finished: list[Done] = []
    with Progress(len(plan.rows["trial"]), experiment.name, quiet) as bar:
        runner = make_runner(plan, list(plan.shards), quiet)
        for shard in plan.shards:
            finished.append(runner(shard, None))
            bar.update(sum(len(done.histories) for done in finished))
    order = sorted(  # numbers are distinct: nothing else is compared
        (trial.number, trial, history, resolved.statement)
        for done in finished
        for trial, history, resolved in zip(done.batch.trials, done.histories, done.resolved, strict=True)
    )
    trials, histories = [o[1] for o in order], [o[2] for o in order]
    return SweepOutcome(experiment, trials, [o[3] for o in order], joined(histories), _timings(finished))


class Kept(NamedTuple):
    """What later runners of the same process can use: data by configuration, executables by what they depend on."""

    data: dict[str, Dataset]
    compiled: dict[tuple, Callable]


def make_runner(
    plan: Plan, pending: list[str], quiet: bool = False, check: Check | None = None, kept: Kept | None = None
) -> Callable[[str, Saved | None], Done]:
    """Builds (shard id, where its checkpoint goes) -> the batch, run.

    Args:
      plan: of the sweep.
      pending: shards that may be asked for. The noise of all of those of one structure is calibrated at once.
      quiet: no progress.
      check: called between two calls; may raise to stop the batch, whose checkpoint is written before.
      kept: data and executables of earlier runners.

    The program of a structure is built and compiled when its first batch is asked for, and dropped with the next
    structure unless it is kept. Data are loaded once.
    """
    data, compiled = kept or Kept({}, {})
    ready: dict[int, Ready] = {}

    def run(shard: str, saved: Saved | None) -> Done:
        first = plan.shards[shard][0]
        group = int(plan.rows["group"][first])
        if group not in ready:
            ready.clear()
            if kept is None:
                compiled.clear()
            batches = [plan.batch(s) for s in pending if int(plan.rows["group"][plan.shards[s][0]]) == group]
            config = batches[0].trials[0].experiment.data
            name = config.model_dump_json()
            if name not in data:
                data[name] = load_data(config)
            ready[group] = get_ready(batches, data[name], compiled, quiet)
        return _run_batch(ready[group], shard, saved, quiet, check)

    return run


class Ready(NamedTuple):
    """What the batches of one structure share. compiled: see Kept; filled when needed."""

    dataset: Dataset
    batches: dict[str, Batch]
    programs: dict[float, Program]
    resolved: dict[int, Resolved]
    compiled: dict[tuple, Callable]
    structure: str

    @property
    def trials(self) -> int:
        """How many trials all of its batches hold."""
        return sum(len(b.trials) for b in self.batches.values())


def get_ready(batches: list[Batch], dataset: Dataset, compiled: dict[tuple, Callable], quiet: bool) -> Ready:
    """Builds the program of a structure and calibrates the noise of its trials."""
    first, numbers = batches[0].trials[0].experiment, {}
    programs = {rate: build(first, dataset, max_rate=rate) for rate in dict.fromkeys(b.rate for b in batches)}
    with said(f"{batches[0].label}: calibrating the noise", quiet):
        for rate, program in programs.items():
            trials = [t for b in batches if b.rate == rate for t in b.trials]
            resolved = resolve_all([t.experiment for t in trials], program)
            numbers |= {t.number: r for t, r in zip(trials, resolved, strict=True)}
    return Ready(dataset, {b.shard: b for b in batches}, programs, numbers, compiled, first.structure())


class BegunBatch(NamedTuple):
    """A batch before its first call. inputs: of ``drive``, behind the start. compile_s: 0 if it was compiled before."""

    program: Program
    resolved: list[Resolved]
    start: Running
    executable: Callable
    inputs: tuple
    compile_s: float


def begin_batch(ready: Ready, shard: str, saved: Saved | None = None, quiet: bool = False) -> BegunBatch:
    """Compiles the program of a shard, unless it is there, and makes its first state, or finds a later one."""
    batch = ready.batches[shard]
    experiments = [t.experiment for t in batch.trials]
    resolved = [ready.resolved[t.number] for t in batch.trials]
    first, program, dataset = experiments[0], ready.programs[batch.rate], ready.dataset
    mesh = _trial_mesh(first.perf, batch.width)
    check_trials(first, program, batch.width)
    call, schedule, held = _vmapped(program, first, mesh), _schedule(first), held_data(dataset)
    rows = [min(i, len(experiments) - 1) for i in range(batch.width)]
    numbers = tree.stack([resolved[r].hparams.arrays() for r in rows])
    keys = jax.vmap(jax.random.key)(jnp.array([experiments[r].seed for r in rows]))
    state = jax.jit(jax.vmap(lambda k, h: program.round.init(k, program.model.init(stream(k, "init")), h)))(
        keys, numbers
    )
    start = _start(saved, Running(0, state, {}))
    start = start._replace(state=place(start.state, mesh, True))
    keys, numbers = place((keys, numbers), mesh, True)
    schedule, held, data = place((schedule, held, dataset.train), mesh, False)
    groups, compile_s, kind = first.perf.trial_devices, 0.0, (ready.structure, batch.width, batch.rate)
    if kind not in ready.compiled:

        def compile_at(width: int) -> Callable:
            nonlocal compile_s
            whole = max(groups, width // groups * groups)  # as many trials on each group of devices
            some_keys, states, some = jax.tree.map(lambda x: x[:whole], (keys, start.state, numbers))
            args = (np.int32(0), schedule, some_keys, states, data, held, some)
            executable, seconds = compile_call(call, *args)
            compile_s += seconds
            return executable

        with said(f"{batch.label}: compiling one program for {ready.trials} trials", quiet):
            room = memory.free()
            ready.compiled[kind], _ = memory.fit(compile_at, batch.width, True, room, "perf.trials_per_batch")
    inputs = (schedule, keys, data, held, numbers)
    return BegunBatch(program, resolved, start, ready.compiled[kind], inputs, compile_s)


def _run_batch(ready: Ready, shard: str, saved: Saved | None, quiet: bool, check: Check | None) -> Done:
    """Runs the trials of one shard."""
    batch, begun = ready.batches[shard], begin_batch(ready, shard, saved, quiet)
    first = batch.trials[0].experiment
    after = _between_calls(saved, check, first.rounds)
    seconds = first.perf.seconds_per_call
    done, spent = drive(begun.executable, begun.start, *begun.inputs, round_axis=1, seconds=seconds, after_call=after)
    times = [(rounds * batch.width, took) for rounds, took in spent]
    histories = _finished(first, begun.program, ready.dataset, done, begun.resolved)
    return Done(batch, begun.resolved, histories, begun.compile_s, times)


def _finished(
    first: Experiment, program: Program, dataset: Dataset, done: Running, resolved: list[Resolved]
) -> list[History]:
    """The history of each trial, with the simulated clock and what was spent by round."""
    clock = make_clock(first, program.model, dataset)
    histories = [clock({name: v[i] for name, v in done.history.items()}) for i in range(len(resolved))]
    for history, trial in zip(histories, resolved, strict=True):
        if len(trial.ledger.spent):
            history["epsilon_spent"] = trial.ledger.spent
    return histories


def _start(saved: Saved | None, begin: Running) -> Running:
    """Where a batch begins: at its checkpoint, if there is a good one."""
    if saved is None or not saved.path.exists():
        return begin
    try:
        return checkpoint.restore(saved.path, begin.state, saved.header)
    except FljaxError as error:
        print(f"{error} The batch starts anew.", file=sys.stderr)
        remove(saved.path)
        return begin


def _between_calls(saved: Saved | None, check: Check | None, rounds: int) -> Callable[[Running], None]:
    """What happens between two calls: a checkpoint now and then, and the end if somebody asked for it."""
    last = time.monotonic()

    def after_call(running: Running) -> None:
        nonlocal last
        if running.done == rounds:
            return
        try:
            if check is not None:
                check("")
        except Interrupted:
            if saved is not None:
                checkpoint.save(saved.path, running, saved.header)
            raise
        if saved is not None and time.monotonic() - last >= CHECKPOINT_EVERY_S:
            checkpoint.save(saved.path, running, saved.header)
            last = time.monotonic()

    return after_call


def _trial_mesh(perf: PerfConfig, width: int) -> Mesh | None:
    """The devices that the trials of a batch are spread over."""
    if width % perf.trial_devices:
        fits = max(d for d in range(1, perf.trial_devices) if width % d == 0)
        raise FljaxError(
            f"Expected perf.trial_devices={perf.trial_devices} to divide the {width} trials that a batch of this sweep "
            f"was planned with. Use perf.trial_devices={fits}."
        )
    return client_mesh(perf.devices, perf.trial_devices)


def _vmapped(program: Program, experiment: Experiment, mesh: Mesh | None) -> Callable:
    """The call of an engine over trials, spread over devices where that is asked for."""
    evaluate = make_evaluate(program.model, program.loss, program.local, program.goal)
    call = make_call(program.round, evaluate, min(experiment.perf.rounds_per_call, experiment.rounds))
    batched = (False, False, True, True, False, False, True)
    return spread_trials(jax.vmap(call, in_axes=tuple(0 if b else None for b in batched)), mesh, batched)


def _schedule(experiment: Experiment) -> Schedule:
    rounds = jnp.int32(experiment.rounds)
    return Schedule(rounds, jnp.int32(experiment.eval_every), until=rounds)


def resolve_all(experiments: list[Experiment], program: Program) -> list[Resolved]:
    """Numbers, with calibrated noise, and statements; trials that privacy does not tell apart share one statement."""
    noises = calibrated(experiments, program)
    known: dict[Any, PrivacyStatement] = {}
    ledgers: dict[Any, Ledger] = {}
    result = []
    for experiment, noise in zip(experiments, noises, strict=True):
        asked = noise if experiment.privacy.epsilon is not None else None
        question = (asked, experiment.privacy, experiment.sampler, experiment.rounds)
        hparams, statement = resolve(experiment, program, asked, known.get(question))
        known[question] = statement
        if question not in ledgers:
            ledgers[question] = privacy_ledger(program, hparams, statement)
        result.append(Resolved(hparams, statement, ledgers[question]))
    return result


def _timings(finished: list[Done]) -> list[GroupTiming]:
    """What each program cost, in the order in which they ran."""
    timings = []
    for group in dict.fromkeys(done.batch.group for done in finished):
        members = [done for done in finished if done.batch.group == group]
        times = [t for done in members for t in done.times]
        total = sum(seconds for _, seconds in times)
        timing = Timing(sum(done.compile_s for done in members), steady(times), total)
        timings.append(GroupTiming(members[0].batch.label, sum(len(d.histories) for d in members), timing))
    return timings


def joined(histories: list[History]) -> History:
    """Histories of all trials as [R, T] arrays by name; NaN where one does not have a metric, or was over."""
    names = dict.fromkeys(name for h in histories for name in h)
    length = max(len(h["participants"]) for h in histories)

    def column(history: History, name: str) -> np.ndarray:
        values = history.get(name)
        row = np.full(length, np.nan) if values is None or len(values) < length else values
        if values is not None and len(values) < length:
            row[: len(values)] = values
        return row

    return {name: np.stack([column(h, name) for h in histories]) for name in names}
