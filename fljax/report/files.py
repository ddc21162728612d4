"""The files of a report's figures: each in two widths, as SVG, PDF and PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fljax.report import style, text
from fljax.report.choice import cell_records, is_grid, varying
from fljax.report.dropout_figures import sources_figure
from fljax.report.figures import communication_figure, curves_figure, heat_map_figure, metric_figure
from fljax.report.plan import make_plan
from fljax.report.round_figures import SOURCE, clip_curves, clip_figure, mask_curves, masks_figure
from fljax.report.style import save_figure
from fljax.report.tables import main_metric
from fljax.report.tradeoff_figures import pareto_figure, search_figure
from fljax.sweep.store import Results


class Drawn(NamedTuple):
    """A figure in both widths: its name, a description for those who cannot see it, and the two SVG texts."""

    name: str
    description: str
    narrow: str
    wide: str


def write_figures(results: Results, folder: Path, endings: Sequence[str] = style.ENDINGS) -> dict[str, Drawn]:
    """Draws every figure that the results allow into the folder: ``<name>.svg``, ``.pdf``, ``.png``; ``<name>-wide.*``.

    Files of an earlier report that the results no longer allow, or that are not asked for, are removed. SVG is always
    written: the page holds it. The other formats take twice the time again.
    """
    metric = main_metric(results)
    plan = make_plan(results, metric)
    name, curves = text.metric_name(metric), results.curves
    known = bool(np.isfinite(results.trials.get("uplink_bytes", np.array([math.nan]))).any())
    grid = is_grid(results)
    plots = {
        "main": (bool(plan.x) and grid, metric_figure, f"{name} against {text.axis_label(plan.x or '')}"),
        "curves": (metric in curves and len(curves["round"]) > 0, curves_figure, f"{name} per round"),
        "communication": (
            bool(plan.x) and known and grid,
            communication_figure,
            f"{name} against uplink bytes",
        ),
        "heat_map": (
            bool(plan.colour) and grid,
            heat_map_figure,
            f"{name} by {' and '.join(map(text.axis_label, plan.series))}",
        ),
        "pareto": (len(varying(cell_records(results, metric))) > 0, pareto_figure, f"{name} against every cost"),
        "search": (not grid, search_figure, f"{name} against every swept number"),
        "sources": (
            SOURCE in results.axes and known and grid,
            sources_figure,
            f"{name} against uplink bytes by source",
        ),
        "clipping": (bool(clip_curves(results)), clip_figure, "clipped clients, norms and spent ε per round"),
        "masks": (bool(mask_curves(results)), masks_figure, "energy, overlap and coverage of the masks per round"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for key, (possible, draw, description) in plots.items():
        stems = (folder / key, folder / f"{key}-wide")
        if possible:
            svgs = [save_figure(draw(results, metric, wide=bool(i)), stem, endings) for i, stem in enumerate(stems)]
            drawn[key] = Drawn(key, description, *svgs)
        else:
            for stem in stems:
                for ending in style.ENDINGS:
                    stem.with_suffix(ending).unlink(missing_ok=True)
    return drawn
