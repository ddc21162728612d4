"""The figure of sources: what each source of masks reaches for the bytes it sends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fljax.report import style, text
from fljax.report.figures import byte_unit, cross_out, crossed, draw_series, percent, place_legend
from fljax.report.plan import best_values, caption
from fljax.report.round_figures import KEEP, SOURCE, control_line
from fljax.report.tables import main_metric, summarise
from fljax.sweep.store import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
            handles.append(draw_series(axes, at, mean, bars, joined, k % len(style.COLOURS), control_line(source)))
            cross_out(axes, at, mean, score.refused[order, k])
            labels.append(text.cell_label({SOURCE: source}))
        axes.set_xlabel(f"uplink of a trial ({prefix})")
        axes.set_ylabel(text.metric_label(metric))
        percent(axes, metric)
        place_legend(figure, handles, labels)
        what = "Points along a line: keep rate. " if along else ""
        what += "Dashed: random masks, the control. " if any(control_line(s) for (s,) in score.column_values) else ""
        style.add_caption(figure, caption(results, what + crossed(score), where))
    return figure
