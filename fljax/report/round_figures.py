"""Figures over the rounds in small panels: masks of neurons, and what clip and noise did to the updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fljax.report import style, text
from fljax.report.figures import mean_curve, percent, place_legend
from fljax.report.plan import best_values, caption, cell_rows, chosen_cells
from fljax.report.tables import main_metric, refused_trials
from fljax.sweep.store import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE, KEEP = "dropout.source", "dropout.keep_rate"
CONTROLS = ("random", "random_per_client")
"""Sources that look at nothing: what any other has to beat at the same keep rate. They are drawn dashed."""


def recorded(results: Results, names: Sequence[str]) -> list[str]:
    """Those of the names that the curves hold with at least one finite value, in the order given."""
    return [name for name in names if np.isfinite(results.curves.get(name, np.array([np.nan]))).any()]


def clip_curves(results: Results) -> list[str]:
    """The metrics of clip and noise that were recorded; none where nothing was ever clipped or noised."""
    private = [n for n in ("clip_fraction", "noise_std") if (results.curves.get(n, np.zeros(1)) > 0).any()]
    names = recorded(results, text.CLIPPING) if private else []
    # Where an ε was refused, nothing that looks like one is drawn.
    return [n for n in names if n != "epsilon_spent" or not refused_trials(results).any()]


def clip_figure(results: Results, metric: str | None = None, wide: bool = False) -> Figure:
    """Share of clipped clients, norms and spent ε over the rounds, a panel each, one line per chosen cell.

    The cells are those of the training curves: the best one of each value of the main axis. Bands are 95 % intervals
    over seeds. Needs one of these metrics in the curves.
    """
    cells = chosen_cells(results, metric or main_metric(results))
    declined = refused_trials(results)
    labels = [text.cell_label(c, bool((declined & cell_rows(results, c)).any())) for c in cells]
    lines = [style.LINES[k % len(style.LINES)] for k in range(len(cells))]
    what = "The released average holds the noise." if "update_norm" in clip_curves(results) else ""
    return _panels(results, clip_curves(results), cells, labels, lines, what, wide)


def mask_cells(results: Results, metric: str) -> list[Mapping[str, Any]]:
    """The cells whose masks are shown: each source at the best setting of the other axes, else the best cells."""
    if SOURCE not in results.axes:
        return list(chosen_cells(results, metric))
    where = best_values(results, metric, [a for a in results.axes if a not in (SOURCE, KEEP)])
    if KEEP in results.axes:  # the smallest share: a mask of all neurons has nothing to show
        where[KEEP] = min(key[0] for key in results.groups([KEEP]))
    return [{SOURCE: key[0]} | where for key in results.groups([SOURCE])]


def mask_curves(results: Results) -> list[str]:
    """The metrics of masks that were recorded, in the order in which they are drawn."""
    return recorded(results, text.MASKS)


def masks_figure(results: Results, metric: str | None = None, wide: bool = False) -> Figure:
    """Energy kept by the masks, their overlap and coverage over the rounds, a panel each, one line per source.

    Bands are 95 % intervals over seeds. Needs one of these metrics in the curves.
    """
    cells = mask_cells(results, metric or main_metric(results))
    labels = [text.cell_label({SOURCE: c[SOURCE]} if SOURCE in c else c) for c in cells]
    lines = [control_line(c.get(SOURCE)) for c in cells]
    fixed = {axis: v for axis, v in cells[0].items() if axis != SOURCE} if SOURCE in results.axes else {}
    what = f"Shown at {text.cell_label(fixed)}." if fixed else ""
    return _panels(results, mask_curves(results), cells, labels, [style.LINES[i] for i in lines], what, wide)


def control_line(source: Any) -> int:
    """The line style of a source of masks: dashed for the controls."""
    return int(source in CONTROLS)


def _panels(
    results: Results,
    names: Sequence[str],
    cells: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    lines: Sequence[Any],
    what: str,
    wide: bool,
) -> Figure:
    """A panel per metric, a line per cell; page width has two panels a row where there are more than three."""
    across = 1 if not wide else 2 if len(names) > 3 else len(names)
    down = -(-len(names) // across)
    with style.style():
        figure = style.new_figure(wide, down * (1.7 if wide else 1.5) + 1.1)
        grid = figure.subplots(down, across, squeeze=False).ravel()
        shown: dict[str, Any] = {}
        for axes, name in zip(grid, names, strict=False):
            for k, (cell, label) in enumerate(zip(cells, labels, strict=True)):
                rounds, mean, width = mean_curve(results, cell, name)
                if not len(rounds):
                    continue
                colour, marker = style.COLOURS[k % len(style.COLOURS)], style.MARKERS[k % len(style.MARKERS)]
                every = (k, max(1, len(rounds) // 6)) if len(rounds) > 12 else 1
                (line,) = axes.plot(rounds, mean, color=colour, ls=lines[k], marker=marker, markevery=every)
                shown.setdefault(label, line)
                axes.fill_between(rounds, mean - width, mean + width, color=colour, alpha=0.16, lw=0)
            axes.set_title(text.metric_label(name))
            axes.xaxis.get_major_locator().set_params(integer=True)
            percent(axes, name)
            if text.is_share(name):
                axes.set_ylim(*_share_limits(axes.get_ylim()))
        for axes in grid[len(names) :]:
            axes.set_visible(False)
        for axes in grid[max(0, len(names) - across) : len(names)]:
            axes.set_xlabel("round")
        if len(shown) > 1:
            place_legend(figure, list(shown.values()), list(shown))
        style.add_caption(figure, caption(results, what))
    return figure


def _share_limits(limits: tuple[float, float]) -> tuple[float, float]:
    """Limits of an axis of shares: nothing above 100 %, and a constant share is not blown up."""
    low, high = limits
    high = min(high, 1.02)
    return max(-0.02, min(low, high - 0.1)), high
