"""Small pieces of HTML for notebooks: tables, bars and curves as inline SVG, without scripts and without matplotlib.

Everything takes plain text and escapes it. Ink is the notebook's own text colour, so that light and dark themes work.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Okabe and Ito: told apart by colour-blind readers, legible on light and on dark ground."""
DASHES = ("", "5 3", "1.5 3", "7 3 1.5 3")

_CELL = "text-align:{side};vertical-align:top;padding:.15em .8em .15em 0;font-variant-numeric:tabular-nums"


class Html(NamedTuple):
    """Markup that notebooks show: what other functions of this file return is put together from its ``text``."""

    text: str

    def _repr_html_(self) -> str:
        return self.text


def card(title: str, *parts: str, note: str = "") -> str:
    """A titled block of parts, which are markup already; the note stands beside the title."""
    head = f"<b>{html.escape(title)}</b>" + (f' <span style="opacity:.65">{html.escape(note)}</span>' if note else "")
    return f'<div style="line-height:1.45;max-width:60em">{head}{"".join(parts)}</div>'


def paragraph(text: str, soft: bool = False) -> str:
    """A paragraph; a soft one is for remarks."""
    return f'<p style="margin:.3em 0{";opacity:.65;font-size:92%" if soft else ""}">{html.escape(text)}</p>'


def pairs(rows: Sequence[tuple[str, Any]]) -> str:
    """A table of names and values."""
    style = _CELL.format(side="left")
    lines = [
        f'<tr><th style="{style};font-weight:normal;opacity:.65">{html.escape(str(name))}</th>'
        f'<td style="{style}">{html.escape(str(value))}</td></tr>'
        for name, value in rows
    ]
    return f'<table style="border-collapse:collapse;margin:.3em 0">{"".join(lines)}</table>'


def grid(heads: Sequence[str], rows: Sequence[Sequence[Any]], most: int = 40) -> str:
    """A table with a line of heads; of more than ``most`` rows the first are shown and the others counted."""
    style = _CELL.format(side="right") + ";white-space:nowrap"
    head = "".join(f'<th style="{style};border-bottom:1px solid">{html.escape(str(name))}</th>' for name in heads)
    lines = [
        "<tr>" + "".join(f'<td style="{style}">{html.escape(str(value))}</td>' for value in row) + "</tr>"
        for row in rows[:most]
    ]
    more = paragraph(f"and {len(rows) - most} more", soft=True) if len(rows) > most else ""
    return f'<table style="border-collapse:collapse;margin:.3em 0"><tr>{head}</tr>{"".join(lines)}</table>{more}'


def details(summary: str, body: str) -> str:
    """A part that opens on a click; the body is markup already."""
    return f'<details style="margin:.3em 0"><summary>{html.escape(summary)}</summary>{body}</details>'


def progress_bar(done: int, total: int, text: str) -> str:
    """A bar that is filled by done / total, and the text behind it."""
    share = 100.0 * min(1.0, done / max(total, 1))
    bar = (
        '<span style="display:inline-block;width:14em;height:.7em;border:1px solid;border-radius:.3em;overflow:hidden">'
        f'<span style="display:block;width:{share:.1f}%;height:100%;background:{COLOURS[0]}"></span></span>'
    )
    return f'<div style="font-variant-numeric:tabular-nums">{bar} {html.escape(text)}</div>'


def _svg(width: int, height: int, label: str, body: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{html.escape(label, quote=True)}" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'style="max-width:100%;margin:.2em 1em .2em 0;font:11px sans-serif" fill="currentColor">{body}</svg>'
    )


def bars(values: Any, title: str, width: int = 300, height: int = 110, most: int = 150) -> str:
    """A bar for each of the values [n] from zero up; of many values evenly spaced ones are shown.

    The title stands above, the largest value at its left.
    """
    values = np.asarray(values, float)
    if len(values) > most:
        values = values[np.linspace(0, len(values) - 1, most).round().astype(int)]
    top = max(float(values.max(initial=0.0)), 1e-12)
    left, base, room = 36, height - 6, height - 28
    step = (width - left) / max(len(values), 1)
    shapes = [
        f'<rect x="{left + k * step:.1f}" y="{base - room * v / top:.1f}" width="{max(step * 0.86, 0.5):.2f}" '
        f'height="{room * v / top:.1f}" fill="{COLOURS[0]}"/>'
        for k, v in enumerate(values.tolist())
    ]
    ticks = f'<text x="{left - 4}" y="{base - room + 8}" text-anchor="end">{top:.4g}</text>'
    ticks += f'<text x="{left - 4}" y="{base}" text-anchor="end">0</text>'
    return _svg(width, height, title, f'<text x="{left}" y="12">{html.escape(title)}</text>{ticks}{"".join(shapes)}')


def curves(series: Mapping[str, tuple[Any, Any]], title: str, width: int = 360, height: int = 150) -> str:
    """Lines over a common horizontal axis, such as metrics over rounds; values that are not finite are left out.

    Args:
      series: name -> (x [n], y [n]); four at most.
      title: stands above. The axes show their smallest and largest value.
    """
    finite = {name: _finite(*xy) for name, xy in list(series.items())[: len(COLOURS)]}
    finite = {name: xy for name, xy in finite.items() if len(xy[0])}
    if not finite:
        return ""
    low_x, high_x = _range(np.concatenate([x for x, _ in finite.values()]))
    low_y, high_y = _range(np.concatenate([y for _, y in finite.values()]))
    left, right, top, base = 46, width - 10, 22, height - 34
    shapes = f'<path d="M{left} {top}V{base}H{right}" fill="none" stroke="currentColor" stroke-opacity=".5"/>'
    for k, (x, y) in enumerate(finite.values()):
        across = left + (right - left) * (x - low_x) / (high_x - low_x)
        down = base - (base - top) * (y - low_y) / (high_y - low_y)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across.tolist(), down.tolist(), strict=True))
        look = f'stroke="{COLOURS[k]}" stroke-width="1.8" stroke-dasharray="{DASHES[k]}"'
        shapes += f'<polyline points="{points}" fill="none" {look}/>'
        shapes += f'<circle cx="{across[-1]:.1f}" cy="{down[-1]:.1f}" r="2.6" fill="{COLOURS[k]}"/>'
        shapes += _key(k, list(finite)[k], left + k * (right - left) // len(finite), height - 5)
    ticks = [(left - 4, top + 8, "end", high_y), (left - 4, base, "end", low_y)]
    ticks += [(left, base + 13, "start", low_x), (right, base + 13, "end", high_x)]
    for a, b, anchor, value in ticks:
        shapes += f'<text x="{a}" y="{b}" text-anchor="{anchor}">{value:.4g}</text>'
    return _svg(width, height, title, f'<text x="{left}" y="13">{html.escape(title)}</text>{shapes}')


def _key(k: int, name: str, x: int, y: int) -> str:
    line = f'<path d="M{x} {y - 4}h18" stroke="{COLOURS[k]}" stroke-width="1.8" stroke-dasharray="{DASHES[k]}"/>'
    return f'{line}<text x="{x + 22}" y="{y}">{html.escape(name)}</text>'


def _finite(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, float), np.asarray(y, float)
    keep = np.isfinite(x) & np.isfinite(y)
    return x[keep], y[keep]


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def number(value: float) -> str:
    """A number in four digits; what is not finite is a word."""
    return f"{value:.4g}" if math.isfinite(value) else "missing" if math.isnan(value) else "∞" if value > 0 else "-∞"
