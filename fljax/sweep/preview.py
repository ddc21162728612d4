"""What a sweep would do and cost before anything runs: trials, programs, memory, time, the privacy of every cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fljax.config import Experiment
from fljax.core import memory
from fljax.sim.build import load_data
from fljax.sim.devices import round_flops
from fljax.sim.forecast import paced
from fljax.sweep.plan import Batch, make_plan
from fljax.sweep.run import Ready, begin_batch, get_ready
from fljax.sweep.search import check_search, middle
from fljax.sweep.shards import finished_shards


def preview(
    experiment: Experiment, folder: Path | None = None, *, measure: bool = True, quiet: bool = True
) -> dict[str, Any]:
    """What a sweep would do; writes nothing.

    Args:
      experiment: with its sweep.
      folder: of the results; shards that lie there already are counted as done.
      measure: compile every program, and run a few rounds of its first batch, for memory and time.
      quiet: no progress.
    Returns:
      ``trials``, ``rounds``, ``shards`` and ``compiles`` (programs by width), ``programs``, and ``privacy``: of every
      cell that privacy tells apart, with the calibrated noise. Noise is calibrated once for every distinct question and
      kept in the cache, as the compiled programs are, so that the sweep itself need not do it again. With ``measure``
      every program has its memory in bytes, operations and seconds, and ``seconds`` is what all that is missing takes
      in one process. Of an adaptive search the middle of its ranges stands for its points.

    Raises:
      FljaxError: as a run of the sweep would: no sweep, an invalid cell, a budget that cannot be promised.
    """
    plan = make_plan(first_points(experiment))
    search = None if experiment.sweep is None else experiment.sweep.search
    by_group: dict[int, list[Batch]] = {}
    for shard in plan.shards:
        batch = plan.batch(shard)
        by_group.setdefault(batch.group, []).append(batch)
    done = set() if folder is None else finished_shards(folder)
    programs, privacy = [], {}
    for batches in by_group.values():
        first = batches[0].trials[0].experiment
        ready = get_ready(batches, load_data(first.data), {}, quiet)
        widths, trials = len({b.width for b in batches}), sum(len(b.trials) for b in batches)
        row: dict[str, Any] = {"program": batches[0].label, "trials": trials, "compiles": widths}
        left = sum(b.shard not in done for b in batches)
        programs.append(row | (_cost(ready, batches[0], first, left, quiet) if measure else {}))
        privacy |= _statements(ready, batches)
    found = {
        "name": experiment.name,
        "trials": len(plan.rows["trial"]) * (search.points if search else 1),
        "rounds": experiment.rounds,
        "shards": len(plan.shards),
        "finished_shards": sum(shard in done for shard in plan.shards),
        "compiles": sum(p["compiles"] for p in programs),
        "programs": programs,
    }
    if measure:
        found["seconds"] = sum(p["seconds"] for p in programs) * (search.points if search else 1)
        found["free_memory"] = memory.free()
    return found | {"privacy": privacy}


def _statements(ready: Ready, batches: list[Batch]) -> dict[str, str]:
    """Cells that privacy tells apart -> what may be said of them."""
    said = {}
    for trial in (t for b in batches for t in b.trials):
        fields = [name for name in trial.values if name.startswith(("privacy.", "sampler.", "rounds"))]
        cell = ", ".join(f"{name}={trial.values[name]}" for name in fields) or "every cell"
        said[cell] = ready.resolved[trial.number].statement.sentence()
    return said


def _cost(ready: Ready, batch: Batch, experiment: Experiment, left: int, quiet: bool) -> dict[str, Any]:
    """Memory, operations and seconds of a program: its first batch is compiled, and begun for a few rounds."""
    begun = begin_batch(ready, batch.shard, quiet=quiet)
    need = memory.needed(begun.executable)
    pace = paced(begun.executable, begun.start, begun.inputs, experiment.rounds, round_axis=1)
    return {
        "memory": need.arguments + need.more,
        "flops_per_round": batch.width * round_flops(experiment, begun.program),
        "compile_s": begun.compile_s,
        "batch_s_per_round": pace.each,
        "batch_s_per_evaluation": pace.evaluation,
        "seconds": begun.compile_s + left * pace.total(experiment.rounds, experiment.eval_every),
    }


def first_points(experiment: Experiment) -> Experiment:
    """The experiment itself; of an adaptive search, whose points are not known yet, its middle in every cell."""
    sweep = experiment.sweep
    if sweep is None or sweep.search is None:
        return experiment
    check_search(experiment)
    fixed = {name: [value] for name, value in middle(sweep.search).items()}
    return experiment.replace(**{"sweep.search": None, "sweep.grid": {**sweep.grid, **fixed}})
