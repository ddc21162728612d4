"""Which cells are worth a look: the best one of each ε, and those that no other cell beats in every respect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fljax.report import text
from fljax.report.plan import make_plan
from fljax.report.tables import half_width, latex, main_metric, refused_trials
from fljax.sweep.store import Results

OBJECTIVES = ("epsilon", "uplink_bytes", "simulated_s")
"""What a cell costs, beside its metric: less of each is better."""
MOST_COLUMNS = 60
"""Columns of a table; with more, its cells are listed instead."""
DIGITS = 3
"""Costs are compared to so many digits: the last bits of a calibration are no trade-off."""


def cell_records(results: Results, metric: str) -> list[dict[str, Any]]:
    """One dictionary per cell: its axis values, metric, n, mean, std, ci95, ε and mean costs.

    ``epsilon`` is the largest that is claimed for a trial of the cell, inf where none is; ``epsilon_refused`` tells
    whether one was asked for and refused. Costs that were not recorded are NaN. Cells without a finite metric are left
    out.
    """
    trials, declined, records = results.trials, refused_trials(results), []
    nothing = np.full(len(trials["trial"]), math.nan)
    for key, rows in results.groups(results.axes).items():
        values = trials[metric][rows].astype(float)
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        std = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        numbers = {"metric": metric, "n": len(values), "mean": float(values.mean()), "std": std}
        numbers |= {"ci95": half_width(std, len(values)), "epsilon": _claimed(trials, rows)}
        numbers |= {name: float(trials.get(name, nothing)[rows].mean()) for name in OBJECTIVES[1:]}
        cell = dict(zip(results.axes, key, strict=True))
        records.append(cell | numbers | {"epsilon_refused": bool(declined[rows].any())})
    return records


def _claimed(trials: Mapping[str, np.ndarray], rows: np.ndarray) -> float:
    """The largest ε that is claimed for the trials, inf where one of them has no claim."""
    if "epsilon" not in trials or "privacy_status" not in trials:
        return math.inf
    valid = trials["privacy_status"][rows] == text.CLAIM
    claimed = np.where(valid, trials["epsilon"][rows].astype(float), math.inf)
    return float(np.where(np.isnan(claimed), math.inf, claimed).max())


def best_records(results: Results, metric: str) -> list[dict[str, Any]]:
    """The cell with the best mean for each value of the main axis (ε where it was swept), in rising order."""
    axis = make_plan(results, metric).x
    sign = 1 if text.higher_is_better(metric) else -1
    best: dict[Any, dict[str, Any]] = {}
    for record in cell_records(results, metric):
        key = record[axis] if axis else None
        if key not in best or sign * record["mean"] > sign * best[key]["mean"]:
            best[key] = record
    return list(best.values())


def is_grid(results: Results) -> bool:
    """Whether the cells fill a grid that is worth a table: at least half of its places, and not too many columns.

    Points that were drawn or searched do not: every cell has values of its own.
    """
    levels = [len(results.groups([axis])) for axis in results.axes]
    x = make_plan(results, main_metric(results)).x
    columns = math.prod(levels) // max(len(results.groups([x])) if x else 1, 1)
    return columns <= MOST_COLUMNS and 2 * len(results.groups(results.axes)) >= math.prod(levels)


def varying(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The costs that were recorded for every cell and are not the same for all."""
    found = []
    for name in OBJECTIVES:
        values = [r[name] for r in records]
        if not any(math.isnan(v) for v in values) and len({round_cost(v) for v in values}) > 1:
            found.append(name)
    return found


def pareto_records(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells that no other beats: none is at least as good in the metric and all costs, and better in one of them.

    Means are compared as they are, costs to three digits. With one metric and k varying costs this is a front in k + 1
    dimensions.
    """
    if not records:
        return []
    sign = 1 if text.higher_is_better(records[0]["metric"]) else -1
    costs = varying(records)
    points = [(-sign * r["mean"], *(round_cost(r[name]) for name in costs)) for r in records]
    # In this order whoever beats a cell comes before it, and so does one on the front that does.
    front: list[dict[str, Any]] = []
    best = np.zeros((0, 1 + len(costs)))
    for i in sorted(range(len(points)), key=points.__getitem__):
        point = np.array(points[i])
        if not ((best <= point).all(axis=1) & (best < point).any(axis=1)).any():
            front.append(records[i])
            best = np.concatenate([best, point[None]])
    return sorted(front, key=lambda r: [*(r[name] for name in costs), -sign * r["mean"]])


def round_cost(value: float) -> float:
    """A cost as it is compared: three significant digits."""
    return value if not math.isfinite(value) or value == 0 else float(f"{value:.{DIGITS - 1}e}")


def heads(axes: Sequence[str], metric: str, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The heads of a table of cells: axes, the metric, and the costs that were recorded."""
    return [*map(_axis_head, axes), text.metric_label(metric), *(_cost_head(n) for n in _recorded(records))]


def rows(axes: Sequence[str], metric: str, records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The cells of a table under ``heads``, as people read them; a refused ε is a dagger, never a number."""
    shown = []
    for r in records:
        cells = [text.value_label(axis, r[axis]) for axis in axes]
        costs = [_cost(name, r) for name in _recorded(records)]
        shown.append([*cells, text.mean_std_text(metric, r["mean"], r["std"]), *costs])
    return shown


def _axis_head(axis: str) -> str:
    return "target ε" if axis == text.EPSILON else text.axis_label(axis)


def _cost_head(name: str) -> str:
    return "ε claimed" if name == "epsilon" else f"{text.metric_name(name)} of a trial"


def _recorded(records: Sequence[Mapping[str, Any]]) -> list[str]:
    claims = any(math.isfinite(r["epsilon"]) or r["epsilon_refused"] for r in records)
    costs = [n for n in OBJECTIVES[1:] if any(math.isfinite(r[n]) for r in records)]
    return ["epsilon", *costs] if claims else costs


def _cost(name: str, record: Mapping[str, Any]) -> str:
    if name != "epsilon":
        return text.metric_text(name, record[name])
    if record["epsilon_refused"]:
        return "† refused"
    return text.round_up(record["epsilon"]) if math.isfinite(record["epsilon"]) else "none"


def to_latex(head: Sequence[str], body: Sequence[Sequence[str]], note: str) -> str:
    """A table for a paper in the manner of booktabs, the note as a comment above it."""
    lines = [f"% {note}", rf"\begin{{tabular}}{{{'r' * len(head)}}}", r"\toprule"]
    lines += [" & ".join(map(latex, head)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(latex, row)) + r" \\" for row in body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"
