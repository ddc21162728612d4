"""The report of a results folder: tables, figures and one self-contained page.

Importing it is cheap: matplotlib, jinja2 and rich are imported where they are used.
"""

from fljax.report.dropout_figures import sources_figure
from fljax.report.figures import (
    communication_figure,
    curves_figure,
    heat_map_figure,
    metric_figure,
)
from fljax.report.files import write_figures
from fljax.report.page import write_report
from fljax.report.round_figures import clip_figure, masks_figure
from fljax.report.tables import Table, print_summary, print_table, run_summary, summarise
from fljax.report.tradeoff_figures import pareto_figure

__all__ = [
    "Table",
    "clip_figure",
    "communication_figure",
    "curves_figure",
    "heat_map_figure",
    "masks_figure",
    "metric_figure",
    "pareto_figure",
    "print_summary",
    "print_table",
    "run_summary",
    "sources_figure",
    "summarise",
    "write_figures",
    "write_report",
]
