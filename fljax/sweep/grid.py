"""From a sweep in an experiment to its trials, and from trials to groups that share one compiled program."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from fljax.config import Experiment, traced_fields, validate
from fljax.core.check import FljaxError, in_range
from fljax.sections import Section, SweepConfig
from fljax.sweep.draw import draws, named
from fljax.sweep.where import condition

Cell = dict[str, Any]

NO_AXES = {
    "seed": "Give sweep.seeds instead.",
    "run.seed": "Give sweep.seeds instead.",
    "name": "It names the whole sweep.",
    "sweep": "A sweep holds no sweep.",
    "controls": "Make them axes.",
    "perf": "Flags of speed change no result.",
    "data.dir": "Where the files lie changes no result.",
}
"""Fields and sections that no axis may change, with the remedy."""


class Trial(NamedTuple):
    """One cell and seed of a sweep: number, swept values by dotted name, and the experiment they make."""

    number: int
    values: Cell
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


def cells(sweep: SweepConfig) -> list[Cell]:
    """The combinations of all axes, without seeds, in the order of the file: zipped fields, drawn points, the grid.

    Raises FljaxError: an empty axis, zipped lists of unequal length, a field on two axes, a field that is no axis.
    """
    found: list[list[Cell]] = []
    lengths = {name: len(values) for name, values in sweep.zip.items()}
    if len(set(lengths.values())) > 1:
        raise FljaxError(f"Expected the lists of sweep.zip to be equally long, found {lengths}.")
    if sweep.zip:
        found.append([dict(zip(sweep.zip, values, strict=True)) for values in zip(*sweep.zip.values(), strict=True)])
    if points := _distinct(draws(sweep)):
        found.append(points)
    found += [[{name: value} for value in values] for name, values in sweep.grid.items()]
    _check_axes(sweep)
    return [{k: v for part in combination for k, v in part.items()} for combination in itertools.product(*found)]


def _check_axes(sweep: SweepConfig) -> None:
    """Refuses a field on two axes, and fields that no axis may change."""
    searched = {} if sweep.search is None else sweep.search.over
    kinds = {"zip": sweep.zip, "random": sweep.random, "sobol": sweep.sobol, "grid": sweep.grid, "search": searched}
    where: dict[str, str] = {}
    for kind, names in kinds.items():
        for name in names:
            if name in where:
                both = f"sweep.{where[name]} and sweep.{kind}"
                raise FljaxError(f"Expected {name} on one axis, found it in {both}. Remove one of them.")
            where[name] = kind
            remedy = NO_AXES.get(name) or NO_AXES.get(name.split(".")[0])
            if remedy:
                raise FljaxError(f"Expected {name} of sweep.{kind} to be a field that trials may differ in. {remedy}")
            if kind in ("zip", "grid") and not names[name]:
                raise FljaxError(f"Expected {name} of sweep.{kind} to hold at least one value. Add some or remove it.")


def _distinct(points: list[Cell]) -> list[Cell]:
    """Each point once, in the order in which they come: choices may draw one point twice."""
    return list({json.dumps(point): point for point in points}.values())


def without_sweep(experiment: Experiment) -> Experiment:
    """The experiment that the cells of its sweep change."""
    return Experiment.model_validate({**experiment.model_dump(exclude_unset=True), "sweep": None})


def make_members(base: Experiment) -> Callable[[Cell], Experiment]:
    """Builds (cell) -> the experiment with the cell's fields replaced, validated like a file.

    ``base.replace`` for many cells: the base is dumped once. Equal cells share one experiment.
    """
    tree = base.model_dump(exclude_unset=True)
    known: dict[str, Experiment] = {}

    def member(cell: Cell) -> Experiment:
        key = json.dumps(cell)
        if key not in known:
            changed = dict(tree)
            for name, value in cell.items():
                *parents, leaf = name.split(".")
                node = changed
                for parent in parents:  # copies of what is changed only
                    inner = node.get(parent)
                    node[parent] = dict(inner) if isinstance(inner, dict) else {}
                    node = node[parent]
                node[leaf] = value
            try:
                known[key] = validate(changed, "sweep")
            except FljaxError as error:
                raise FljaxError(_blamed(str(error), cell)) from None
        return known[key]

    return member


def _blamed(text: str, cell: Cell) -> str:
    """What is wrong with a cell in one line: the first complaint, the cell, and the remedy where axes are at fault."""
    first = text.splitlines()[0]
    listed = [name for name in cell if name in traced_fields() and isinstance(cell[name], list | tuple)]
    if listed:
        return f"{first} {listed[0]} is a traced number, the same shape in all trials: list numbers in its axis."
    return f"{first} Found in the cell {', '.join(f'{name} = {value}' for name, value in cell.items())}."


def allowed(sweep: SweepConfig, base: Experiment) -> Callable[[Cell], bool]:
    """Builds (cell) -> whether it meets every condition of ``sweep.where``.

    A field that the cell does not name has the base's value. Cells are judged before they are validated, so that
    conditions may leave out combinations that are no experiment.
    """
    conditions = [condition(text) for text in sweep.where]

    def passes(cell: Cell) -> bool:
        return all(holds(lambda name: cell[name] if name in cell else field_of(base, name)) for holds in conditions)

    return passes


def field_of(experiment: Experiment, name: str) -> Any:
    """The value of a dotted field.

    Raises FljaxError with the closest name if there is none.
    """
    node: Any = experiment
    for part in name.split("."):
        if not isinstance(node, Section) or part not in type(node).model_fields:
            options = list(type(node).model_fields) if isinstance(node, Section) else []
            close = difflib.get_close_matches(part, options, n=1)
            hint = f" Perhaps you meant {close[0]}." if close else " Name a field as section.field."
            raise FljaxError(f"Expected {name!r} in sweep.where to be a field of an experiment.{hint}")
        node = getattr(node, part)
    return node


def expand(experiment: Experiment) -> list[Trial]:
    """All trials of an experiment with a sweep: every cell with every seed. Each is validated like a file.

    Raises FljaxError if the experiment holds no sweep, a cell is not a valid experiment, or none passes.
    """
    sweep = experiment.sweep
    if sweep is None:
        raise FljaxError(f"{experiment.name} holds no sweep. Run it with `fljax run {experiment.name}`.")
    base = without_sweep(experiment)
    passes = allowed(sweep, base)
    chosen = [cell for cell in cells(sweep) if passes(cell)]
    if not chosen:
        raise FljaxError(f"Expected sweep.where={list(sweep.where)!r} to leave a trial; it leaves none.")
    return with_seeds(chosen, seeds(sweep), make_members(base))


def with_seeds(
    chosen: list[Cell], values: list[int], member: Callable[[Cell], Experiment], first: int = 0
) -> list[Trial]:
    """Every cell with every seed, numbered from ``first``."""
    trials = []
    for cell in chosen:
        whole = member(cell)
        for seed in values:
            trials.append(
                Trial(first + len(trials), {**cell, "run.seed": seed}, whole.model_copy(update={"seed": seed}))
            )
    return trials


def group(trials: list[Trial]) -> list[Group]:
    """Trials by static structure, in order of first appearance; the label holds the swept values that are static."""
    found: dict[str, list[Trial]] = {}
    structures: dict[str, str] = {}  # by cell: seeds do not change it
    for trial in trials:
        cell = json.dumps({k: v for k, v in trial.values.items() if k != "run.seed"})
        if cell not in structures:
            structures[cell] = trial.experiment.structure()
        found.setdefault(structures[cell], []).append(trial)
    return [Group(label(members, trials), members) for members in found.values()]


def label(members: list[Trial], trials: list[Trial]) -> str:
    """What tells the members apart from the other trials: swept values that all of them share, and not all others."""
    fixed = {k: v for k, v in members[0].values.items() if all(t.values.get(k) == v for t in members)}
    varying = {k for k, v in fixed.items() if any(t.values.get(k) != v for t in trials)}
    return ", ".join(f"{k}={fixed[k]}" for k in sorted(varying)) or "all trials"


def axes(sweep: SweepConfig) -> list[str]:
    """Dotted names of the axes, without the seed.

    An axis of zipped fields goes by the name of the first of them, an axis of drawn points by that of a field that
    tells them apart. All fields of a search are axes.
    """
    drawn = named(sweep, _distinct(draws(sweep))) if sweep.random or sweep.sobol else []
    searched = [] if sweep.search is None else list(sweep.search.over)
    return [*list(sweep.zip)[:1], *drawn, *sweep.grid, *searched]
