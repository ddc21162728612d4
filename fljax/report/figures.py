"""Figures of a results folder. Each function draws one figure from the tables and adapts to the axes that were swept.

Every figure says in small print what its numbers rest on: seeds, δ, unit of privacy, relation, sampler, accountant.
Colours are safe for colour-blind readers, and markers or line styles repeat what colours say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fljax.report import style, text
from fljax.report.plan import Plan, caption, cell_rows, chosen_cells, common, make_plan
from fljax.report.tables import Table, half_width, main_metric, refused_trials, summarise
from fljax.sweep.store import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


# ------------------------------------------------------------------------------------------------------ main figure


class Ticks(NamedTuple):
    """Where the values of an axis are drawn: positions, labels, and which of them a line joins."""

    at: np.ndarray
    labels: list[str]
    joined: np.ndarray
    log: bool


def axis_ticks(axis: str, values: Sequence[Any]) -> Ticks:
    """Positions of an axis' values: log2 for ε and for wide ranges, apart at the right for inf and missing values."""
    labels = [text.value_label(axis, v) for v in values]
    if any(isinstance(v, str) for v in values):
        return Ticks(np.arange(len(values), dtype=float), labels, np.zeros(len(values), bool), False)
    numbers = np.array([math.nan if v is None else float(v) for v in values])
    joined = np.isfinite(numbers)
    finite = numbers[joined]
    log = bool(len(finite) and finite.min() > 0 and (axis == text.EPSILON or finite.max() >= 8 * finite.min()))
    at = np.full(len(values), np.nan)
    at[joined] = np.log2(finite) if log else finite
    step = float(np.diff(at[joined]).min()) if len(finite) > 1 else 1.0
    right = at[joined].max() if len(finite) else 0.0
    at[~joined] = right + step * np.arange(1, (~joined).sum() + 1)
    return Ticks(at, labels, joined, log)


def metric_figure(results: Results, metric: str | None = None, wide: bool = False) -> Figure:
    """The metric against ε (or the first numeric axis), one line per further setting, 95 % intervals over seeds."""
    metric = metric or main_metric(results)
    plan = make_plan(results, metric)
    table = summarise(results, metric, rows=plan.x, columns=plan.series, where=plan.where)
    ticks = axis_ticks(plan.x or "", table.row_values)
    step = float(np.diff(np.sort(ticks.at)).min()) if len(ticks.at) > 1 else 1.0
    with style.style():
        figure = style.new_figure(wide, 3.3 if wide else 3.2)
        axes = figure.subplots()
        for k, (colour, line) in enumerate(_looks(plan, table)):
            # Shifted sideways a little, so that intervals at the same value stay apart.
            at = ticks.at + step * 0.025 * (k - (len(table.column_values) - 1) / 2)
            draw_series(axes, at, table.mean[:, k], table.half_width[:, k], ticks.joined, colour, line)
            cross_out(axes, at, table.mean[:, k], table.refused[:, k])
        if not ticks.joined.all() and ticks.joined.any():
            axes.axvline(ticks.at[ticks.joined].max() + step / 2, color=style.INK, lw=0.6, ls=(0, (1, 3)))
        shown = _evenly(len(ticks.labels), MOST_TICKS)
        axes.set_xticks(ticks.at[shown], [ticks.labels[i] for i in shown])
        axes.tick_params(axis="x", which="minor", bottom=False)
        axes.set_xlabel(_x_label(results, plan.x, table, ticks.log))
        axes.set_ylabel(text.metric_label(metric))
        percent(axes, metric)
        _legend(figure, axes, plan, table)
        style.add_caption(figure, caption(results, crossed(table), plan.where))
    return figure


def _x_label(results: Results, axis: str | None, table: Table, log: bool) -> str:
    if axis != text.EPSILON:
        return text.axis_label(axis or "") + (" (log scale)" if log else "")
    claims = [s for s in results.privacy if text.has_epsilon(s)]
    delta = common(claims, "delta") if claims else "varies"
    return (
        "privacy budget: "
        + table.row_name
        + (f" (δ = {delta})" if delta != "varies" else "")
        + (", log scale" if log else "")
    )


def draw_series(
    axes: Axes, at: np.ndarray, mean: np.ndarray, width: np.ndarray, joined: np.ndarray, colour: int, line: int
) -> Line2D:
    """One line with markers and intervals, which is returned; points that are not joined stand alone."""
    look = {"color": style.COLOURS[colour], "marker": style.MARKERS[colour]}
    if line % 2:
        look["markerfacecolor"] = "none"  # the second line style is told apart by its markers too
    (drawn,) = axes.plot(at[joined], mean[joined], ls=style.LINES[line], **look)
    axes.plot(at[~joined], mean[~joined], ls="none", **look)
    known = np.isfinite(width)
    if known.any():
        axes.errorbar(at[known], mean[known], width[known], ls="none", color=look["color"], elinewidth=0.8, capsize=1.6)
    return drawn


def cross_out(axes: Axes, at: np.ndarray, mean: np.ndarray, refused: np.ndarray) -> None:
    """A cross over the points whose ε was refused: they stand at an ε that nobody claims."""
    axes.plot(at[refused], mean[refused], ls="none", marker="x", color=style.INK, ms=6.5, mew=0.9, zorder=4)


def crossed(table: Table) -> str:
    """What a caption says of crosses; nothing where there are none."""
    return "Crossed out: no ε is claimed." if table.refused.any() else ""


def _looks(plan: Plan, table: Table) -> list[tuple[int, int]]:
    """Colour and line style of each column of a table whose columns are the plan's series."""
    levels = [list(dict.fromkeys(values[i] for values in table.column_values)) for i in range(len(plan.series))]
    looks = []
    for values in table.column_values:
        places = [level.index(v) for level, v in zip(levels, values, strict=True)] + [0, 0]
        turn = places[0] // len(style.COLOURS)  # colours that are used again come with another line style
        looks.append((places[0] % len(style.COLOURS), (places[1] + turn) % len(style.LINES)))
    return looks


def _legend(figure: Figure, axes: Axes, plan: Plan, table: Table) -> None:
    """Above the axes: one entry per colour and, where there are several, one per line style."""
    from matplotlib.lines import Line2D

    entries = []
    look: dict[str, Any]
    for depth, axis in enumerate(plan.series):
        for place, value in enumerate(dict.fromkeys(values[depth] for values in table.column_values)):
            if depth == 0:
                colour = place % len(style.COLOURS)
                line = place // len(style.COLOURS) % len(style.LINES)
                look = {"color": style.COLOURS[colour], "marker": style.MARKERS[colour], "ls": style.LINES[line]}
                look |= {"markerfacecolor": "none"} if line % 2 else {}
            else:
                hollow = {"marker": "o", "markerfacecolor": "none"} if place % 2 else {"marker": "o"}
                look = {"color": style.INK, "ls": style.LINES[place % len(style.LINES)], **hollow}
            entries.append((Line2D([], [], **look), text.cell_label({axis: value})))
    if entries:
        place_legend(figure, *zip(*entries, strict=True))


MOST_TICKS, MOST_ENTRIES = 16, 16
"""Ticks of an axis and entries of a legend; of more values evenly spread ones are named."""


def _evenly(count: int, most: int) -> np.ndarray:
    """At most so many of the numbers below count, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def place_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """As many columns as fit over the axes; of many entries evenly spread ones."""
    chosen = _evenly(len(labels), MOST_ENTRIES)
    handles, labels = [handles[i] for i in chosen], [labels[i] for i in chosen]
    room = 125 if figure.get_figwidth() == style.PAGE else 56
    columns = max(1, min(len(labels), room // (max(map(len, labels)) + 8)))
    rows = math.ceil(len(labels) / columns)
    figure.legend(handles, labels, loc="outside upper center", ncols=math.ceil(len(labels) / rows))


def percent(axes: Axes, metric: str) -> None:
    """Shares of one are read in percent."""
    if text.is_share(metric):
        from matplotlib.ticker import FuncFormatter

        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))


# ---------------------------------------------------------------------------------------------------- other figures


def mean_curve(results: Results, cell: Mapping[str, Any], metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rounds, mean and half of the 95 % interval of a metric over the trials of one cell."""
    curves = results.curves
    trials = results.trials["trial"][cell_rows(results, cell)]
    inside = np.isin(curves["trial"], trials) & np.isfinite(curves[metric])
    rounds = np.unique(curves["round"][inside])
    values = [curves[metric][inside & (curves["round"] == r)].astype(np.float64) for r in rounds]
    mean = np.array([v.mean() for v in values])
    width = np.array([half_width(v.std(ddof=1) if len(v) > 1 else math.nan, len(v)) for v in values])
    return rounds, mean, width


def curves_figure(
    results: Results, metric: str | None = None, cells: Sequence[Mapping[str, Any]] | None = None, wide: bool = False
) -> Figure:
    """The metric per round, with bands of the 95 % intervals; cells default to the best of each main-axis value."""
    metric = metric or main_metric(results)
    cells = list(chosen_cells(results, metric) if cells is None else cells)
    declined = refused_trials(results)
    with style.style():
        figure = style.new_figure(wide, 3.3 if wide else 2.7 + 0.1 * len(cells))
        axes = figure.subplots()
        for k, cell in enumerate(cells):
            rounds, mean, width = mean_curve(results, cell, metric)
            colour, line = style.COLOURS[k % len(style.COLOURS)], style.LINES[k % len(style.LINES)]
            marker = style.MARKERS[k % len(style.MARKERS)]
            label = text.cell_label(cell, refused=bool((declined & cell_rows(results, cell)).any()))
            every = (k, max(1, len(rounds) // 6)) if len(rounds) > 12 else 1
            axes.plot(rounds, mean, color=colour, ls=line, marker=marker, markevery=every, label=label)
            axes.fill_between(rounds, mean - width, mean + width, color=colour, alpha=0.16, lw=0)
        axes.set_xlabel("round")
        axes.set_ylabel(text.metric_label(metric))
        percent(axes, metric)
        if len(cells) > 1:
            place_legend(figure, *axes.get_legend_handles_labels())
        best = f"The best cell of each {text.axis_label(make_plan(results, metric).x or '')}." if len(cells) > 1 else ""
        style.add_caption(figure, caption(results, best))
    return figure


def communication_figure(results: Results, metric: str | None = None, wide: bool = False) -> Figure:
    """The metric against the uplink of a trial: one colour per value of the main axis, one line style per source."""
    metric = metric or main_metric(results)
    plan = make_plan(results, metric)
    shown = Plan(plan.colour, plan.x, plan.line, plan.where)  # the colour axis lies along the lines
    score, cost = (summarise(results, m, shown.x, shown.series, plan.where) for m in (metric, "uplink_bytes"))
    unit, prefix = byte_unit(float(np.nanmax(cost.mean)))
    with style.style():
        figure = style.new_figure(wide, 3.3 if wide else 3.2)
        axes = figure.subplots()
        for k, (colour, line) in enumerate(_looks(shown, score)):
            order = np.argsort(cost.mean[:, k])
            order = order[np.isfinite(score.mean[order, k])]
            at, joined = cost.mean[order, k] / unit, np.ones(len(order), bool)
            draw_series(axes, at, score.mean[order, k], score.half_width[order, k], joined, colour, line)
            cross_out(axes, at, score.mean[order, k], score.refused[order, k])
        axes.set_xlabel(f"uplink of a trial ({prefix})")
        axes.set_ylabel(text.metric_label(metric))
        percent(axes, metric)
        _legend(figure, axes, shown, score)
        along = f"Points along a line: {text.axis_label(plan.colour)}. " if plan.colour else ""
        style.add_caption(figure, caption(results, along + crossed(score), plan.where))
    return figure


def byte_unit(most: float) -> tuple[float, str]:
    """(bytes, prefix) of the unit in which so many bytes are best read."""
    power = min(4, max(0, int(math.log10(max(most, 1.0)) // 3)))
    return 1000.0**power, ("B", "kB", "MB", "GB", "TB")[power]


def heat_map_figure(results: Results, metric: str | None = None, wide: bool = False) -> Figure:
    """The metric by main axis (rows) and colour axis (columns), one panel per source. Needs two axes."""
    metric = metric or main_metric(results)
    plan = make_plan(results, metric)
    panels: list[Any] = [key[0] for key in results.groups([plan.line])] if plan.line else [None]
    wheres = [plan.where | ({plan.line: panel} if plan.line else {}) for panel in panels]
    tables = [summarise(results, metric, plan.x, [plan.colour] if plan.colour else [], where) for where in wheres]
    finite = np.concatenate([t.mean[np.isfinite(t.mean)] for t in tables])
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    rows = len(tables[0].row_values)
    with style.style():
        across = len(panels) if wide else 1
        down = 1 if wide else len(panels)
        figure = style.new_figure(wide, down * (0.27 * rows + 0.45) + (0.8 if wide else 0.6))
        grid = figure.subplots(down, across, squeeze=False).ravel()
        for axes, table, panel in zip(grid, tables, panels, strict=True):
            _heat_map(axes, table, low, high)
            if plan.line:
                axes.set_title(text.cell_label({plan.line: panel}))
        what = f"{text.metric_label(metric).capitalize()}, darker is lower."
        style.add_caption(figure, caption(results, what, plan.where, interval=False))
    return figure


def _heat_map(axes: Axes, table: Table, low: float, high: float) -> None:
    axes.pcolormesh(table.mean, cmap="cividis", vmin=low, vmax=high, edgecolors="white", linewidth=0.6)
    for (r, k), value in np.ndenumerate(table.mean):
        if math.isfinite(value):
            colour = "#ffffff" if value < (low + high) / 2 else "#000000"
            label = text.metric_text(table.metric, value) + ("†" if table.refused[r, k] else "")
            axes.text(k + 0.5, r + 0.5, label, ha="center", va="center", color=colour, fontsize=7)
    columns = [text.value_label(table.column_axes[0], values[0]) for values in table.column_values]
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(table.row_values)) + 0.5, table.row_labels)
    axes.set_xlabel(text.axis_label(table.column_axes[0]))
    axes.set_ylabel(table.row_name)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
