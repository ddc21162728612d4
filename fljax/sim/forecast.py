"""What a run would do and cost, before it runs: programs, memory, operations, time, and what may be claimed."""

from __future__ import annotations

from typing import Any

import numpy as np

from fljax.config import Experiment
from fljax.sim import memory
from fljax.sim.devices import round_flops
from fljax.sim.engine import drive
from fljax.sim.run import begin, compile_fitting

TRIED = 3
"""Rounds that are run to measure one; the first warms up."""


def forecast(experiment: Experiment, quiet: bool = False) -> dict[str, Any]:
    """Compiles an experiment, runs three of its rounds, and keeps nothing.

    Returns:
      JSON values: ``programs``, ``chunk``, ``chosen_by`` and ``padding_waste`` (clients at a time, why so many, and
      steps executed for each that counts), ``memory`` in bytes, ``flops_per_round`` (of the layers' products: three
      times a forward pass for each example, in an expected cohort), ``seconds`` to compile, per round, and in all,
      ``tried_seconds_per_round`` by clients at a time, if they were measured now, and the ``privacy`` statement.

    Raises:
      FljaxError: whatever ``run`` refuses before its first round.
    """
    begun, executable, (schedule, *inputs), compile_s = compile_fitting(
        experiment, begin(experiment, None, False), quiet
    )
    need, free = memory.needed(executable), memory.free()
    rounds = min(TRIED, begun.rounds)
    short = schedule._replace(rounds=np.int32(rounds), every=np.int32(2**30))
    _, times = drive(executable, begun.running, short, *inputs, seconds=1e-9)  # one round a call
    each = float(np.median([seconds for _, seconds in times[1:] or times]))
    program = begun.program
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
        "seconds": {"compile": compile_s, "per_round": each, "expected": compile_s + each * begun.rounds},
        **({"tried_seconds_per_round": tried} if tried else {}),
        "privacy": begun.statement.sentence(),
    }
