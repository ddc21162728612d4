"""What a report shows and what it says under it: which axis goes where, which cells get a curve, the small print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fljax.report import text
from fljax.report.tables import refused_trials, summarise
from fljax.sweep.store import Results

MOST_CURVES = 7


@dataclass(frozen=True)
class Plan:
    """Which axis is drawn how.

    Attributes:
      x: horizontal axis of the main figure, rows of the table; None where nothing was swept.
      colour, line: axes told apart by colour (and marker) and by line style; None where there are too few.
      where: further axes, fixed at their best values.
    """

    x: str | None
    colour: str | None
    line: str | None
    where: dict[str, Any]

    @property
    def series(self) -> list[str]:
        """The axes that make a line."""
        return [axis for axis in (self.colour, self.line) if axis]


def make_plan(results: Results, metric: str) -> Plan:
    """ε goes to the right, keep rates are colours, sources are line styles; other axes take the places left over."""
    axes = results.axes
    numeric = [axis for axis in axes if results.trials[axis].dtype.kind in "iuf"]
    x = text.EPSILON if text.EPSILON in axes else next(iter(numeric or axes), None)
    rest = [axis for axis in axes if axis != x]
    colour = _pick(rest, "dropout.keep_rate")
    line = _pick([axis for axis in rest if axis != colour], "dropout.source")
    others = [axis for axis in rest if axis not in (colour, line)]
    return Plan(x, colour, line, best_values(results, metric, others))


def _pick(axes: Sequence[str], favourite: str) -> str | None:
    return favourite if favourite in axes else next(iter(axes), None)


def best_values(results: Results, metric: str, axes: Sequence[str]) -> dict[str, Any]:
    """The combination of the axes' values with the best mean of the metric over everything else."""
    if not axes:
        return {}
    sign = 1 if text.higher_is_better(metric) else -1
    scores = {}
    for key, rows in results.groups(axes).items():
        finite = results.trials[metric][rows][np.isfinite(results.trials[metric][rows])]
        scores[key] = sign * float(finite.mean()) if len(finite) else -math.inf
    return dict(zip(axes, max(scores, key=scores.__getitem__), strict=True))


def chosen_cells(results: Results, metric: str) -> list[dict[str, Any]]:
    """The cells whose curves are worth a look: the best one of each value of the main axis, MOST_CURVES at most."""
    plan = make_plan(results, metric)
    table = summarise(results, metric, rows=plan.x, columns=plan.series, where=plan.where)
    cells = []
    for row, best in zip(table.row_values, table.best, strict=True):
        values = table.column_values[best if best is not None else 0]
        cells.append(({plan.x: row} if plan.x else {}) | dict(zip(plan.series, values, strict=True)) | plan.where)
    cells = [cell for cell in cells if cell_rows(results, cell).any()]
    # Evenly spread where there are more than there are colours.
    picks = np.unique(np.linspace(0, len(cells) - 1, min(len(cells), MOST_CURVES)).round().astype(int))
    return [cells[i] for i in picks]


def caption(results: Results, what: str = "", where: Mapping[str, Any] | None = None, interval: bool = True) -> str:
    """What a figure's numbers rest on, in sentences.

    Args:
      what: sentences about this figure that come first.
      where: axes that the figure holds fixed.
      interval: whether the figure shows intervals.
    """
    seeds = {len(rows) for rows in results.groups(results.axes).values()}
    count = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    spread = f"Mean{' and 95 % interval' if interval else ''} over {count} seeds."
    if seeds == {1}:
        spread = "One seed, no interval."
    fixed = f"Shown at the best setting of the other axes: {text.cell_label(where)}." if where else ""
    return " ".join(part for part in (what.strip(), spread, fixed, privacy_line(results)) if part)


def privacy_line(results: Results) -> str:
    """δ, unit, relation, sampler and accountant of the statements in one line; refusals are said, not skipped."""
    claims = [s for s in results.privacy if text.has_epsilon(s)]
    refused = refused_trials(results)
    if not claims:
        return "No ε is claimed: it was refused." if refused.any() else "No differential privacy."
    parts = [f"δ\u00a0=\u00a0{common(claims, 'delta')}"]
    parts += [f"{key}: {common(claims, key)}" for key in ("unit", "relation", "sampler", "accountant")]
    return f"Privacy: {'; '.join(parts)}." + (" The ε of some cells was refused." if refused.any() else "")


def cell_rows(results: Results, cell: Mapping[str, Any]) -> np.ndarray:
    """[R] bool: the trials of a cell."""
    keep = np.ones(len(results.trials["trial"]), bool)
    for axis, value in cell.items():
        column = results.trials[axis]
        keep &= np.isnan(column) if value is None else column == value
    return keep


def common(statements: Sequence[Mapping[str, Any]], key: str) -> str:
    """The text of an entry that all statements share, or ``varies``."""
    values = list(dict.fromkeys(text.words(s.get(key)) for s in statements))
    return values[0] if len(values) == 1 else "varies"
