"""The files of a report's figures: each in two widths, as SVG and as PNG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fljax.report import style, text
from fljax.report.dropout_figures import SOURCE, mask_curves, masks_figure, sources_figure
from fljax.report.figures import communication_figure, curves_figure, heat_map_figure, metric_figure
from fljax.report.plan import make_plan
from fljax.report.tables import main_metric
from fljax.sweep.store import Results


class Drawn(NamedTuple):
    """A figure in both widths: its name, a description for those who cannot see it, and the two SVG texts."""

    name: str
    description: str
    narrow: str
    wide: str


def write_figures(results: Results, folder: Path) -> dict[str, Drawn]:
    """Draws every figure that the results allow into the folder: ``<name>.svg`` and ``.png``, ``<name>-wide.*``.

    Figures of an earlier report that the results no longer allow are removed.
    """
    metric = main_metric(results)
    plan = make_plan(results, metric)
    name, curves = text.metric_name(metric), results.curves
    known = bool(np.isfinite(results.trials.get("uplink_bytes", np.array([math.nan]))).any())
    plots = {
        "main": (bool(plan.x), metric_figure, f"{name} against {text.axis_label(plan.x or '')}"),
        "curves": (metric in curves and len(curves["round"]) > 0, curves_figure, f"{name} per round"),
        "communication": (
            bool(plan.x) and known,
            communication_figure,
            f"{name} against uplink bytes",
        ),
        "heat_map": (
            bool(plan.colour),
            heat_map_figure,
            f"{name} by {' and '.join(map(text.axis_label, plan.series))}",
        ),
        "sources": (
            SOURCE in results.axes and known,
            sources_figure,
            f"{name} against uplink bytes by source",
        ),
        "masks": (bool(mask_curves(results)), masks_figure, "energy, overlap and coverage of the masks per round"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for key, (possible, draw, description) in plots.items():
        stems = (folder / key, folder / f"{key}-wide")
        if possible:
            svgs = [style.save_figure(draw(results, metric, wide=bool(i)), stem) for i, stem in enumerate(stems)]
            drawn[key] = Drawn(key, description, *svgs)
        else:
            for stem in stems:
                stem.with_suffix(".svg").unlink(missing_ok=True)
                stem.with_suffix(".png").unlink(missing_ok=True)
    return drawn
