"""The table of malicious clients: what each rule is worth against the worst of the attacks that were tried."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fljax.report import text
from fljax.sweep.store import Results

RULE, KIND = "robust.rule", "attack.kind"
SEEN = ("test_attack_success", *text.DETECTION)
"""Columns that are shown for the worst attack, where they were recorded."""

Lines = list[tuple[str, list[str]]]


def worst_cases(results: Results, metric: str) -> list[dict[str, Any]]:
    """For every rule the attacked cell with the least mean of a metric, over the seeds of the cell.

    Returns:
      One dictionary per rule: ``rule``, ``worst`` (mean), ``std``, ``under`` (the cell's other axes), ``clean`` (mean
      without an attack, NaN where that was not run) and the means of ``SEEN`` in the worst cell. Empty where no attack
      was swept.
    """
    if KIND not in results.axes:
        return []
    sign, cells = 1 if text.higher_is_better(metric) else -1, list(_cells(results, metric))
    found = []
    for rule in dict.fromkeys(cell.get(RULE, "") for cell, _, _ in cells):
        mine = [entry for entry in cells if entry[0].get(RULE, "") == rule]
        attacked = [entry for entry in mine if entry[0][KIND] != "none"]
        clean = [values.mean() for cell, _, values in mine if cell[KIND] == "none" and len(values)]
        if not attacked:
            continue
        cell, rows, values = min(attacked, key=lambda entry: sign * _mean(entry[2]))
        under = {axis: value for axis, value in cell.items() if axis != RULE}
        std = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        line = {"rule": rule, "worst": _mean(values), "std": std, "under": under}
        line["clean"] = max(clean, key=lambda v: sign * v, default=math.nan)
        found.append(line | {name: _column(results, name, rows) for name in SEEN})
    return found


def attacks_table(results: Results, metric: str) -> tuple[list[str], Lines]:
    """``worst_cases`` for the page: (heads, one line per rule). Nothing where no attack was swept."""
    found = worst_cases(results, metric)
    if not found:
        return [], []
    names = [name for name in SEEN if any(math.isfinite(line[name]) for line in found)]
    heads = [f"worst {text.metric_label(metric)}", "under", "without attack", *map(text.metric_label, names)]
    lines = []
    for line in found:
        cells = [text.mean_std_text(metric, line["worst"], line["std"]), text.cell_label(line["under"])]
        cells += [text.metric_text(metric, line["clean"]), *(text.metric_text(name, line[name]) for name in names)]
        lines.append((str(line["rule"]) or "the rule", cells))
    return heads, lines


def _cells(results: Results, metric: str):
    """(axis values, rows, finite values of the metric) of every cell."""
    for key, rows in results.groups(results.axes).items():
        values = results.trials[metric][rows].astype(float)
        cell: Mapping[str, Any] = dict(zip(results.axes, key, strict=True))
        yield cell, rows, values[np.isfinite(values)]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _column(results: Results, name: str, rows: np.ndarray) -> float:
    """Mean of a recorded metric over rows, NaN where there is none."""
    values = results.trials.get(name)
    finite = np.zeros(0) if values is None else values[rows].astype(float)
    return _mean(finite[np.isfinite(finite)])
