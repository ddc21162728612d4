"""Figures of dropout: what each source of masks reaches for the bytes it sends, and how its masks lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fljax.report import style, text
from fljax.report.figures import byte_unit, cross_out, crossed, draw_series, mean_curve, percent, place_legend
from fljax.report.plan import best_values, caption, chosen_cells
from fljax.report.tables import main_metric, summarise
from fljax.sweep.store import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE, KEEP = "dropout.source", "dropout.keep_rate"
CONTROLS = ("random", "random_per_client")
"""Sources that look at nothing: what any other has to beat at the same keep rate. They are drawn dashed."""


def sources_figure(results: Results, metric: str | None = None, wide: bool = False) -> Figure:
    """The metric against the uplink of a trial, one line per source of masks along the keep rates.

    Bars are 95 % intervals over seeds. Further axes are fixed at their best values, the same for all sources. Needs the
    axis ``dropout.source``.
    """
    metric = metric or main_metric(results)
    along = KEEP if KEEP in results.axes else None
    where = best_values(results, metric, [a for a in results.axes if a not in (SOURCE, along)])
    score, cost = (summarise(results, m, along, [SOURCE], where) for m in (metric, "uplink_bytes"))
    unit, prefix = byte_unit(float(np.nanmax(cost.mean)))
    with style.style():
        figure = style.new_figure(wide, 3.3 if wide else 3.2)
        axes = figure.subplots()
        handles, labels = [], []
        for k, (source,) in enumerate(score.column_values):
            order = np.argsort(cost.mean[:, k])
            order = order[np.isfinite(score.mean[order, k])]
            at, joined = cost.mean[order, k] / unit, np.ones(len(order), bool)
            mean, bars = score.mean[order, k], score.half_width[order, k]
            handles.append(draw_series(axes, at, mean, bars, joined, k % len(style.COLOURS), _line(source)))
            cross_out(axes, at, mean, score.refused[order, k])
            labels.append(text.cell_label({SOURCE: source}))
        axes.set_xlabel(f"uplink of a trial ({prefix})")
        axes.set_ylabel(text.metric_label(metric))
        percent(axes, metric)
        place_legend(figure, handles, labels)
        what = "Points along a line: keep rate. " if along else ""
        what += "Dashed: random masks, the control. " if any(_line(s) for (s,) in score.column_values) else ""
        style.add_caption(figure, caption(results, what + crossed(score), where))
    return figure


def _line(source: Any) -> int:
    return int(source in CONTROLS)


def mask_curves(results: Results) -> list[str]:
    """The metrics of masks that were recorded, in the order in which they are drawn."""
    return [name for name in text.MASKS if np.isfinite(results.curves.get(name, np.array([np.nan]))).any()]


def mask_cells(results: Results, metric: str) -> list[Mapping[str, Any]]:
    """The cells whose masks are shown: each source at the best setting of the other axes, else the best cells."""
    if SOURCE not in results.axes:
        return list(chosen_cells(results, metric))
    where = best_values(results, metric, [a for a in results.axes if a not in (SOURCE, KEEP)])
    if KEEP in results.axes:  # the smallest share: a mask of all neurons has nothing to show
        where[KEEP] = min(key[0] for key in results.groups([KEEP]))
    return [{SOURCE: key[0]} | where for key in results.groups([SOURCE])]


def masks_figure(results: Results, metric: str | None = None, wide: bool = False) -> Figure:
    """Energy kept by the masks, their overlap and coverage over the rounds, a panel each, one line per source.

    Bands are 95 % intervals over seeds. Needs one of these metrics in the curves.
    """
    metric = metric or main_metric(results)
    names, cells = mask_curves(results), mask_cells(results, metric)
    with style.style():
        height = 2.9 if wide else 1.5 * len(names) + 1.0
        figure = style.new_figure(wide, height)
        grid = figure.subplots(1 if wide else len(names), len(names) if wide else 1, squeeze=False).ravel()
        shown: dict[str, Any] = {}
        for axes, name in zip(grid, names, strict=True):
            for k, cell in enumerate(cells):
                rounds, mean, width = mean_curve(results, cell, name)
                if not len(rounds):
                    continue
                colour = style.COLOURS[k % len(style.COLOURS)]
                label = text.cell_label({SOURCE: cell[SOURCE]} if SOURCE in cell else cell)
                every = (k, max(1, len(rounds) // 6)) if len(rounds) > 12 else 1
                marker, line = style.MARKERS[k % len(style.MARKERS)], style.LINES[_line(cell.get(SOURCE))]
                (shown[label],) = axes.plot(rounds, mean, color=colour, ls=line, marker=marker, markevery=every)
                axes.fill_between(rounds, mean - width, mean + width, color=colour, alpha=0.16, lw=0)
            axes.set_title(text.metric_label(name))
            axes.xaxis.get_major_locator().set_params(integer=True)
            percent(axes, name)
        for axes in grid if wide else grid[-1:]:
            axes.set_xlabel("round")
        if len(shown) > 1:
            place_legend(figure, list(shown.values()), list(shown))
        fixed = {axis: v for axis, v in cells[0].items() if axis != SOURCE} if SOURCE in results.axes else {}
        at = f"Shown at {text.cell_label(fixed)}." if fixed else ""
        style.add_caption(figure, caption(results, at))
    return figure
