"""What a run would do and cost, before it runs: programs, memory, operations, time, and what may be claimed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fljax.config import Experiment
from fljax.core import memory
from fljax.sim.devices import round_flops
from fljax.sim.engine import Running, drive
from fljax.sim.run import begin, compile_fitting

TRIED = 4
"""Rounds that are run to measure one: the first warms up, the second and the fourth are evaluated."""


class Pace(NamedTuple):
    """Seconds of a round, and what an evaluation adds."""

    each: float
    evaluation: float

    def total(self, rounds: int, every: int) -> float:
        """Seconds of a run that is evaluated every so many rounds and at its end."""
        return rounds * self.each + math.ceil(rounds / every) * self.evaluation


def paced(executable: Callable, start: Running, inputs: tuple, rounds: int, round_axis: int = 0) -> Pace:
    """Runs the first rounds of a call and keeps nothing.

    Args:
      executable, start, round_axis: as for ``drive``. inputs: its others, the schedule first. rounds: of the run.
    """
    schedule, *others = inputs
    short = schedule._replace(rounds=np.int32(min(TRIED, rounds)), every=np.int32(2))
    _, times = drive(executable, start, short, *others, round_axis=round_axis, seconds=1e-9)  # one round a call
    took = [seconds for _, seconds in times]
    each = took[min(2, len(took) - 1)]
    return Pace(each, max(0.0, min(took[1::2], default=each) - each))


def forecast(experiment: Experiment, quiet: bool = False) -> dict[str, Any]:
    """Compiles an experiment, runs four of its rounds, and keeps nothing.

    Returns:
      JSON values: ``programs``, ``chunk``, ``chosen_by`` and ``padding_waste`` (clients at a time, why so many, and
      steps executed for each that counts), ``memory`` in bytes, ``flops_per_round`` (of the layers' products: three
      times a forward pass for each example, in an expected cohort), ``seconds`` to compile, per round, per evaluation,
      and in all without its controls, ``cache`` (``warm`` if the program was read from disk),
      ``tried_seconds_per_round`` by clients at a time, if they were measured now, and the ``privacy`` statement.

    Raises:
      FljaxError: whatever ``run`` refuses before its first round.
    """
    begun, executable, inputs, compiled = compile_fitting(experiment, begin(experiment, None, False), quiet)
    need, free = memory.needed(executable), memory.free()
    pace, program = paced(executable, begun.running, inputs, begun.rounds), begun.program
    expected = compiled.seconds + pace.total(begun.rounds, experiment.eval_every)
    seconds = {"compile": compiled.seconds, "per_round": pace.each, "per_evaluation": pace.evaluation}
    tried = {str(size): seconds for size, seconds in sorted((begun.choice.seconds or {}).items())}
    return {
        "name": experiment.name,
        "rounds": begun.rounds,
        "programs": 1 + len(experiment.controls),
        "chunk": program.chunk,
        "chosen_by": begun.choice.by,
        "padding_waste": program.waste,
        "memory": {"data_and_states": need.arguments, "while_it_runs": need.more, "free": free},
        "flops_per_round": round_flops(experiment, program),
        "seconds": {**seconds, "expected": expected},
        "cache": compiled.cache,
        **({"tried_seconds_per_round": tried} if tried else {}),
        "privacy": begun.statement.sentence(),
    }
