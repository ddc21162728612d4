"""A sweep: per static structure one program, compiled once and vmapped over trials, in batches of fixed width.

Results of a trial may differ in the last bits with the width of the batch, so the width of a group is fixed and its
last batch is filled up with repeats, whose results are dropped. The data are one unbatched argument of the program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax.config import Experiment
from fljax.core import tree
from fljax.core.types import Hparams
from fljax.data import Dataset
from fljax.privacy.ledger import Ledger
from fljax.privacy.statement import PrivacyStatement
from fljax.sim.build import Program, build, calibrated, load_data, privacy_ledger, resolve
from fljax.sim.devices import make_clock
from fljax.sim.engine import Running, Schedule, Timing, compile_call, drive, make_call, steady
from fljax.sim.evaluate import held_data, make_evaluate
from fljax.sim.progress import Progress, said
from fljax.sweep.grid import Group, Trial, axes, expand, group


class GroupTiming(NamedTuple):
    """What one program cost: compile once, then steady seconds per round of one trial."""

    label: str
    trials: int
    timing: Timing


@dataclass(frozen=True)
class SweepOutcome:
    """A finished sweep.

    experiment: with its sweep. trials: in order. statements: one per trial. history: metrics [R, T] by name, NaN where
    a group does not have a metric. timings: one per compiled program.
    """

    experiment: Experiment
    trials: list[Trial]
    statements: list[PrivacyStatement]
    history: dict[str, np.ndarray]
    timings: list[GroupTiming]

    @property
    def axes(self) -> list[str]:
        """Swept fields, without the seed."""
        assert self.experiment.sweep is not None
        return axes(self.experiment.sweep)


def run_sweep(experiment: Experiment, *, quiet: bool = False) -> SweepOutcome:
    """Runs all trials of an experiment with a sweep.

    Raises:
      FljaxError: no sweep in the experiment, an invalid cell, a privacy budget that cannot be promised.
    """
    trials = expand(experiment)
    data: dict[str, Dataset] = {}
    histories: list[dict[str, np.ndarray] | None] = [None] * len(trials)
    statements: list[PrivacyStatement | None] = [None] * len(trials)
    timings = []
    with Progress(len(trials), experiment.name, quiet=quiet) as bar:
        for members in group(trials):
            config = members.trials[0].experiment.data
            name = config.model_dump_json()
            if name not in data:
                data[name] = load_data(config)
            dataset = data[name]
            finished, said_of, timing = run_group(members, dataset, quiet, lambda n: bar.update(_count(histories) + n))
            for trial, history, statement in zip(members.trials, finished, said_of, strict=True):
                histories[trial.number], statements[trial.number] = history, statement
            timings.append(GroupTiming(members.label, len(members.trials), timing))
    return SweepOutcome(experiment, trials, [s for s in statements if s], _joined(histories), timings)


def plan(experiment: Experiment) -> dict[str, Any]:
    """What a sweep would do: trials, rounds, compiled programs, and the privacy of every cell; runs nothing.

    Raises FljaxError as ``run_sweep`` does: no sweep, an invalid cell, a budget that cannot be promised.
    """
    trials = expand(experiment)
    assert experiment.sweep is not None
    programs, privacy = [], {}
    for members in group(trials):
        experiments = [t.experiment for t in members.trials]
        program = build(experiments[0], load_data(experiments[0].data), max(e.sampler.rate for e in experiments))
        programs.append({"program": members.label, "trials": len(experiments)})
        for trial, (_, said_of, _) in zip(members.trials, _resolve_all(experiments, program), strict=True):
            fields = [name for name in trial.values if name.startswith(("privacy.", "sampler.", "rounds"))]
            cell = ", ".join(f"{name}={trial.values[name]}" for name in fields) or "every cell"
            privacy[cell] = said_of.sentence()
    return {
        "name": experiment.name,
        "trials": len(trials),
        "rounds": experiment.rounds,
        "programs": programs,
        "privacy": privacy,
    }


def run_group(
    members: Group, dataset: Dataset, quiet: bool = False, tell=lambda done: None
) -> tuple[list[dict[str, np.ndarray]], list[PrivacyStatement], Timing]:
    """Runs the trials of one structure: (history of each trial, statement of each trial, timing of the program)."""
    experiments = [t.experiment for t in members.trials]
    first = experiments[0]
    program = build(first, dataset, max_rate=max(e.sampler.rate for e in experiments))
    with said(f"{members.label}: calibrating the noise", quiet):
        resolved = _resolve_all(experiments, program)
    width = min(first.perf.trials_per_batch, len(experiments))
    call, schedule, held = _vmapped(program, first), _schedule(first), held_data(dataset)
    numbers = [r.hparams.arrays() for r in resolved]
    executable, compile_s, histories, times = None, 0.0, [], []
    for begin in range(0, len(experiments), width):
        rows = [min(begin + i, len(experiments) - 1) for i in range(width)]
        batch = tree.stack([numbers[r] for r in rows])
        keys = jax.vmap(jax.random.key)(jnp.array([experiments[r].seed for r in rows]))
        state = jax.jit(jax.vmap(lambda k, h: program.round.init(k, program.model.init(_init_key(k)), h)))(keys, batch)
        if executable is None:
            with said(f"{members.label}: compiling one program for {len(experiments)} trials", quiet):
                args = (jnp.int32(0), schedule, keys, state, dataset.train, held, batch)
                executable, compile_s = compile_call(call, *args)
        done, spent = drive(executable, Running(0, state, {}), schedule, keys, dataset.train, held, batch, round_axis=1)
        times += [(rounds * width, seconds) for rounds, seconds in spent]
        used = min(width, len(experiments) - begin)
        histories += [{name: v[i] for name, v in done.history.items()} for i in range(used)]
        tell(len(histories))
    timing = Timing(compile_s, steady(times), sum(seconds for _, seconds in times))
    clock = make_clock(first, program.model, dataset)
    histories = [clock(history) for history in histories]
    for history, trial in zip(histories, resolved, strict=True):
        if len(trial.ledger.spent):
            history["epsilon_spent"] = trial.ledger.spent
    return histories, [r.statement for r in resolved], timing


def _init_key(key: Any) -> Any:
    from fljax.core.keys import stream

    return stream(key, "init")


def _vmapped(program: Program, experiment: Experiment) -> Any:
    evaluate = make_evaluate(program.model, program.loss, program.local)
    call = make_call(program.round, evaluate, min(experiment.perf.rounds_per_call, experiment.rounds))
    return jax.vmap(call, in_axes=(None, None, 0, 0, None, None, 0))


def _schedule(experiment: Experiment) -> Schedule:
    return Schedule(jnp.int32(experiment.rounds), jnp.int32(experiment.eval_every))


class Resolved(NamedTuple):
    """The numbers of one trial, its noise calibrated, what may be said of its privacy, and its spending by round."""

    hparams: Hparams
    statement: PrivacyStatement
    ledger: Ledger


def _resolve_all(experiments: list[Experiment], program: Program) -> list[Resolved]:
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


def _count(histories: list) -> int:
    return sum(h is not None for h in histories)


def _joined(histories: list[dict[str, np.ndarray] | None]) -> dict[str, np.ndarray]:
    """Histories of all trials as [R, T] arrays by name."""
    done = [h for h in histories if h is not None]
    names = dict.fromkeys(name for h in done for name in h)
    length = max(len(h["participants"]) for h in done)

    def column(history: dict[str, np.ndarray], name: str) -> np.ndarray:
        values = history.get(name)
        row = np.full(length, np.nan) if values is None or len(values) < length else values
        if values is not None and len(values) < length:
            row[: len(values)] = values
        return row

    return {name: np.stack([column(h, name) for h in done]) for name in names}
