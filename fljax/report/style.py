"""The house style of figures: sizes, colour-blind safe colours, and files that are the same bytes every time."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN, PAGE = 3.3, 7.0
"""Widths in inches: one column of a paper, and a page or a screen."""

ENDINGS = (".svg", ".pdf", ".png")
"""The formats of every figure."""

INK = "#24292f"
"""Colour of text and axes; the page replaces it by the reader's own text colour."""

# Okabe and Ito's palette in an order of falling contrast to white; black is left to the axes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", (0, (4, 1.6)), (0, (1, 1.4)), (0, (5, 1.4, 1, 1.4)))

_RC = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "axes.titlesize": 8.0,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.0,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#8c959f",
    "grid.alpha": 0.28,
    "grid.linewidth": 0.5,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "svg.hashsalt": "fljax",
    "svg.fonttype": "path",
    "path.simplify": False,
}


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's settings of the house; the caller's own come back afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def new_figure(wide: bool, height: float) -> Figure:
    """An empty figure of column or page width; the height is in inches. Needs style()."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    engine = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.04, hspace=0.04)
    figure = Figure(figsize=(PAGE if wide else COLUMN, height), layout=engine)
    return figure


def add_caption(figure: Figure, caption: str) -> None:
    """A small paragraph under everything else."""
    columns, size = (158, 5.8) if figure.get_figwidth() == PAGE else (70, 6.2)
    lines = "\n".join(textwrap.wrap(caption, columns))
    figure.supxlabel(lines, x=0.01, ha="left", fontsize=size, linespacing=1.35)


# The canvases below are asked directly: `Figure.savefig` draws every figure once more before, to find its size. That is
# known here, and takes as long as the drawing.


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG on white, 300 dots per inch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer, ground, dpi = io.BytesIO(), figure.get_facecolor(), figure.dpi
    figure.set_facecolor("white")
    figure.set_dpi(300)
    with style():
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    figure.set_facecolor(ground)
    figure.set_dpi(dpi)
    return buffer.getvalue()


def svg_text(figure: Figure) -> str:
    """The figure as SVG on a transparent ground, without date or other metadata: same figure, same bytes."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with style():
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    # Trailing blanks differ between versions of matplotlib and mean nothing.
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def pdf_bytes(figure: Figure) -> bytes:
    """The figure as PDF for a paper, on a transparent ground, without dates: same figure, same bytes."""
    from matplotlib.backends.backend_pdf import FigureCanvasPdf

    buffer = io.BytesIO()
    with style():
        FigureCanvasPdf(figure).print_pdf(buffer, metadata=dict.fromkeys(("CreationDate", "Creator", "Producer")))
    return buffer.getvalue()


def save_figure(figure: Figure, stem: Path, endings: Sequence[str] = ENDINGS) -> str:
    """Writes ``<stem>.svg``, and ``.pdf`` and ``.png`` where they are asked for, and returns the SVG."""
    svg = svg_text(figure)
    figure.set_layout_engine("none")  # the layout stands; to solve it again for the PNG takes as long as the drawing
    stem.with_suffix(".svg").write_text(svg, encoding="utf-8")
    for ending, draw in ((".pdf", pdf_bytes), (".png", png_bytes)):
        if ending in endings:
            stem.with_suffix(ending).write_bytes(draw(figure))
        else:
            stem.with_suffix(ending).unlink(missing_ok=True)
    return svg
