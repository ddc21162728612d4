"""The figure of trade-offs: the metric against every cost, cells that another beats in everything in grey."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fljax.report import style, text
from fljax.report.choice import DIGITS, cell_records, pareto_records, round_cost, varying
from fljax.report.figures import axis_ticks, byte_unit, percent, place_legend
from fljax.report.plan import caption, make_plan
from fljax.report.tables import main_metric
from fljax.sweep.store import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#8c959f"
MOST_LEVELS = 12
"""Values that get a colour, or a tick of their own; more are places on a line."""


def pareto_figure(results: Results, metric: str | None = None, wide: bool = False) -> Figure:
    """The metric against ε, uplink and simulated time of a trial, a panel for each that varies, one point per cell.

    Coloured points are on the front: no other cell is at least as good in the metric and in all of these costs, and
    better in one. The others are small and grey. Colours tell the values of the main axis. Needs two cells and a cost
    that varies.
    """
    metric = metric or main_metric(results)
    records, axis = cell_records(results, metric), make_plan(results, metric).x
    if axis and len({r[axis] for r in records}) > MOST_LEVELS:  # drawn or searched: no two cells share a value
        axis = None
    front, costs = pareto_records(records), varying(records)
    with style.style():
        figure = style.new_figure(wide, 3.2 if wide else 2.2 * len(costs) + 0.9)
        grid = figure.subplots(1 if wide else len(costs), len(costs) if wide else 1, squeeze=False).ravel()
        shown: dict[str, Any] = {}
        for axes, cost in zip(grid, costs, strict=True):
            place, label = _axis(axes, cost, records)
            joined = axis is not None and (cost, axis) != ("epsilon", text.EPSILON)  # cells of one ε share a place
            shown |= _draw(axes, axis, records, front, [place(r[cost]) for r in records], "-" if joined else "none")
            axes.set_xlabel(label)
            axes.set_ylabel(text.metric_label(metric))
            percent(axes, metric)
        if axis and len(shown) > 1:
            place_legend(figure, list(shown.values()), list(shown))
        style.add_caption(figure, caption(results, _what(costs, len(front), len(records)), interval=False))
    return figure


def _what(costs: Sequence[str], front: int, cells: int) -> str:
    names = ", ".join("ε" if c == "epsilon" else text.metric_name(c) for c in costs)
    return (
        f"Coloured: the {front} of {cells} cells that no other beats in the metric and all of: {names}. "
        "Grey: the other cells."
    )


def _axis(axes: Axes, cost: str, records: Sequence[Mapping[str, Any]]) -> tuple[Callable[[float], float], str]:
    """Prepares a panel's horizontal axis: where a cost is drawn, and the label."""
    values = [float(r[cost]) for r in records]
    if cost == "epsilon":
        highest = {round_cost(v): v for v in sorted(values)}  # labels never promise more than was derived
        known = list(highest)
        if len(known) > MOST_LEVELS and all(map(math.isfinite, known)):
            _log_scale(axes)
            return float, "ε claimed, log scale"
        ticks = axis_ticks(text.EPSILON, known)
        labels = [text.round_up(v, DIGITS) if math.isfinite(v) else "none" for v in highest.values()]
        axes.set_xticks(ticks.at, labels)
        axes.tick_params(axis="x", which="minor", bottom=False)
        at = dict(zip(known, ticks.at.tolist(), strict=True))
        return (lambda v: at[round_cost(float(v))]), "ε claimed" + (", log scale" if ticks.log else "")
    if cost == "uplink_bytes":
        unit, prefix = byte_unit(max(values))
        return (lambda v: v / unit), f"uplink of a trial ({prefix})"
    unit, name = next((u for u in ((3600.0, "h"), (60.0, "min")) if max(values) > 2 * u[0]), (1.0, "s"))
    return (lambda v: v / unit), f"{text.metric_name(cost)} of a trial ({name})"


def _log_scale(axes: Axes) -> None:
    """A horizontal log axis with labels at 1, 2 and 5 in every decade, which have room beside each other."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw(
    axes: Axes,
    axis: str | None,
    records: Sequence[Mapping[str, Any]],
    front: Sequence[Mapping[str, Any]],
    at: Sequence[float],
    line: str,
) -> dict[str, Any]:
    """Draws all points of a panel; returns label -> handle of the levels with a cell on the front."""
    shown: dict[str, Any] = {}
    levels = list(dict.fromkeys(r[axis] if axis else None for r in records))
    beaten = [(x, r["mean"]) for x, r in zip(at, records, strict=True) if r not in front]
    axes.plot([x for x, _ in beaten], [y for _, y in beaten], ls="none", marker="o", ms=2.6, color=GREY, alpha=0.75)
    for k, level in enumerate(levels):
        points = [(x, r) for x, r in zip(at, records, strict=True) if r in front and (not axis or r[axis] == level)]
        if not points:
            continue
        points.sort(key=lambda p: (p[0], p[1]["mean"]))
        look: dict[str, Any] = {"color": style.COLOURS[k % len(style.COLOURS)]}
        look["marker"] = style.MARKERS[k % len(style.MARKERS)]
        if k // len(style.COLOURS) % 2:
            look["markerfacecolor"] = "none"
        (handle,) = axes.plot([x for x, _ in points], [r["mean"] for _, r in points], ls=line, lw=0.7, ms=4.6, **look)
        refused = any(r["epsilon_refused"] for _, r in points)
        shown[text.cell_label({axis: level}, refused) if axis else "front"] = handle
    return shown


def search_figure(results: Results, metric: str | None = None, wide: bool = False) -> Figure:
    """The metric of every cell against each number that was swept, for points that were drawn or searched.

    Coloured points are on the front of ``pareto_figure`` (or the best cell, where no cost varies); lines would join
    cells that differ in everything. Four axes at most.
    """
    metric = metric or main_metric(results)
    records = cell_records(results, metric)
    numeric = [a for a in results.axes if results.trials[a].dtype.kind in "iuf"][:4]
    front = pareto_records(records)
    with style.style():
        across = min(len(numeric), 2) if wide else 1
        down = -(-len(numeric) // across)
        figure = style.new_figure(wide, down * 2.3 + 0.6)
        grid = figure.subplots(down, across, squeeze=False).ravel()
        for axes, name in zip(grid, numeric, strict=False):
            for chosen, look in ((False, {"ms": 2.6, "color": GREY}), (True, {"ms": 4.6, "color": style.COLOURS[0]})):
                points = [(r[name], r["mean"]) for r in records if (r in front) == chosen and r[name] is not None]
                points = [(x, y) for x, y in points if math.isfinite(x)]
                axes.plot([x for x, _ in points], [y for _, y in points], ls="none", marker="o", **look)
            values = [r[name] for r in records if r[name] is not None and math.isfinite(r[name])]
            if values and min(values) > 0 and max(values) >= 8 * min(values):
                _log_scale(axes)
            axes.set_xlabel(text.axis_label(name))
            axes.set_ylabel(text.metric_label(metric))
            percent(axes, metric)
        for axes in grid[len(numeric) :]:
            axes.set_visible(False)
        style.add_caption(figure, caption(results, f"{len(records)} cells; coloured: the front.", interval=False))
    return figure
