"""From a sweep in an experiment to its trials, and from trials to groups that share one compiled program."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from fljax.config import Experiment
from fljax.core.check import FljaxError, in_range
from fljax.sections import SweepConfig


class Trial(NamedTuple):
    """One cell and seed of a sweep: number, swept values by dotted name, and the experiment they make."""

    number: int
    values: dict[str, Any]
    experiment: Experiment


class Group(NamedTuple):
    """Trials of one structure: they run as one compiled program."""

    label: str
    trials: list[Trial]


def seeds(sweep: SweepConfig) -> list[int]:
    """The seeds of a sweep, 0 .. n - 1 where only their number is given."""
    values = list(range(sweep.seeds)) if isinstance(sweep.seeds, int) else list(sweep.seeds)
    if not values or len(set(values)) != len(values):
        raise FljaxError(f"Expected sweep.seeds={sweep.seeds!r} to name at least one seed, each once.")
    in_range(0, 2**31, closed="left", **{"smallest seed": min(values), "largest seed": max(values)})
    return values


def cells(sweep: SweepConfig) -> list[dict[str, Any]]:
    """The combinations of all axes, without seeds, in the order of the file; zipped fields are one axis, the first.

    Raises FljaxError: an empty axis, zipped lists of unequal length, a field on two axes.
    """
    found: list[list[dict[str, Any]]] = []
    lengths = {name: len(values) for name, values in sweep.zip.items()}
    if len(set(lengths.values())) > 1:
        raise FljaxError(f"Expected the lists of sweep.zip to be equally long, found {lengths}.")
    if sweep.zip:
        found.append([dict(zip(sweep.zip, values, strict=True)) for values in zip(*sweep.zip.values(), strict=True)])
    for name, values in sweep.grid.items():
        if name in sweep.zip:
            raise FljaxError(f"Expected {name} on one axis, found it in sweep.grid and sweep.zip. Remove one of them.")
        found.append([{name: value} for value in values])
    for axis in found:
        if not axis:
            raise FljaxError("Expected every axis of the sweep to hold at least one value.")
    return [{k: v for part in combination for k, v in part.items()} for combination in itertools.product(*found)]


def expand(experiment: Experiment) -> list[Trial]:
    """All trials of an experiment with a sweep: every cell with every seed. Each is validated like a file.

    Raises FljaxError if the experiment holds no sweep, or a cell is not a valid experiment.
    """
    sweep = experiment.sweep
    if sweep is None:
        raise FljaxError(f"{experiment.name} holds no sweep. Run it with `fljax run {experiment.name}`.")
    base = Experiment.model_validate({**experiment.model_dump(exclude_unset=True), "sweep": None})
    trials = []
    for cell in cells(sweep):
        member = base.replace(**cell)
        for seed in seeds(sweep):
            trials.append(Trial(len(trials), {**cell, "run.seed": seed}, member.model_copy(update={"seed": seed})))
    return trials


def group(trials: list[Trial]) -> list[Group]:
    """Trials by static structure, in order of first appearance; the label holds the swept values that are static."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        found.setdefault(trial.experiment.structure(), []).append(trial)
    groups = []
    for members in found.values():
        fixed = {k: v for k, v in members[0].values.items() if all(t.values[k] == v for t in members)}
        varying = {k for k, v in fixed.items() if any(t.values[k] != v for t in trials)}
        groups.append(Group(", ".join(f"{k}={fixed[k]}" for k in sorted(varying)) or "all trials", members))
    return groups


def axes(sweep: SweepConfig) -> list[str]:
    """Dotted names of the axes, without the seed; an axis of zipped fields goes by the name of the first of them."""
    return [*list(sweep.zip)[:1], *sweep.grid]
