"""The report: one self-contained HTML page, written from a results folder and nothing else.

The page needs no network and no scripts. It says what was measured, what privacy holds and what does not, and how to
get the numbers again. Where an ε was refused it shows the status and the reason, never a number.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from fljax.report import choice, style, text
from fljax.report.details import clip_table, controls_table
from fljax.report.encryption import encryption_parts
from fljax.report.files import Drawn, write_figures
from fljax.report.leakage import leakage_section
from fljax.report.plan import make_plan, privacy_line
from fljax.report.robust_tables import attacks_table
from fljax.report.tables import Table, main_metric, records_csv, run_summary, summarise
from fljax.sweep.store import Results, open_results

BASIS = ("unit", "trust", "mechanism", "relation", "sampler", "accountant", "population", "rounds")
"""What an ε rests on: shown once where all statements with an ε share it, and not at all for those without."""
MOST_ROWS = 40
"""Rows of a table of chosen cells on the page; its CSV and its LaTeX hold all."""
CAVEATS = ("caveats", "not_covered")
"""Lists of sentences about what an ε does not cover."""

_LABELS = {
    "epsilon": "ε",
    "delta": "δ",
    "unit": "unit of privacy",
    "relation": "neighbouring relation",
    "trust": "who adds the noise",
    "mechanism": "noise",
    "cpu": "CPU",
    "jax": "JAX",
    "python": "Python",
    "dirty": "uncommitted changes",
}


def write_report(folder: str | Path, endings: Sequence[str] = style.ENDINGS) -> Path:
    """Writes ``report.html``, ``figures/`` and the tables into a results folder.

    The tables are ``table`` (all cells), ``best`` (the best cell of each ε, or of each value of the main axis) and
    ``pareto`` (the cells that no other beats in the metric and all costs), each as CSV and as LaTeX.

    Args:
      folder: a folder of results; only what lies in it is read.
      endings: formats of the figures beside SVG, which is always written.
    Returns:
      The path of the page.

    Raises:
      FljaxError: where the folder holds no readable results.
    """
    results = open_results(folder)
    metric = main_metric(results)
    grid = choice.is_grid(results)
    table = _main_table(results, metric) if grid else None
    drawn = write_figures(results, results.folder / "figures", endings)
    every = choice.cell_records(results, metric)
    _write(results.folder / "table.csv", table.to_csv() if table else records_csv(every))
    _write(results.folder / "table.tex", table.to_latex() if table else _latex(results, metric, every))
    for name, records in chosen(results, metric).items():
        _write(results.folder / f"{name}.csv", records_csv(records))
        _write(results.folder / f"{name}.tex", _latex(results, metric, records))
    page = results.folder / "report.html"
    _write(page, render(results, drawn))
    return page


def _write(path: Path, content: str) -> None:
    """Replaces a file in one step: a reader sees the old page or the new one."""
    staged = path.with_name(f".fljax-{path.name}")
    staged.write_text(content, encoding="utf-8")
    os.replace(staged, path)


def chosen(results: Results, metric: str) -> dict[str, list[dict[str, Any]]]:
    """The tables of chosen cells by name, ``best`` and ``pareto``; those that would say nothing are left out."""
    records = choice.cell_records(results, metric)
    if len(records) < 2:
        return {}
    front = {"pareto": choice.pareto_records(records)} if choice.varying(records) else {}
    return {"best": choice.best_records(results, metric)} | front


def _latex(results: Results, metric: str, records: Sequence[Mapping[str, Any]]) -> str:
    note = f"{results.name}: mean and standard deviation over seeds. {privacy_line(results)}"
    head, body = choice.heads(results.axes, metric, records), choice.rows(results.axes, metric, records)
    return choice.to_latex(head, body, note)


def _listing(results: Results, metric: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A table of chosen cells for the page."""
    parts = {"heads": choice.heads(results.axes, metric, records), "rows": choice.rows(results.axes, metric, records)}
    more = max(0, len(records) - MOST_ROWS)
    return parts | {"rows": parts["rows"][:MOST_ROWS], "more": more, "latex": _latex(results, metric, records)}


def render(results: Results, drawn: Mapping[str, Drawn]) -> str:
    """The page as HTML; the figures go into it as they were drawn. All text is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(resources.files("fljax.report").joinpath("page.html.j2").read_text("utf-8"))
    metric = main_metric(results)
    manifest = results.manifest
    leaks = leakage_section(results.folder)
    single, grid = len(results.trials["trial"]) == 1, choice.is_grid(results)
    others = [m for m in results.metrics if m != metric and m not in text.COSTS]
    return template.render(
        title=str(manifest.get("title") or results.name),
        name=results.name,
        kind=manifest["kind"],
        result=result_sentence(results, metric),
        caution=len(results.groups(results.axes)) > 1,
        single=single,
        summary=run_summary(results),
        table=_main_table(results, metric) if grid else None,
        metric=text.metric_label(metric),
        chosen={name: _listing(results, metric, records) for name, records in chosen(results, metric).items()},
        x_name=text.axis_label(make_plan(results, metric).x or ""),
        clipping=clip_table(results, metric),
        controls=controls_table(results),
        attacks=attacks_table(results, metric),
        others=[] if single or not grid else [_main_table(results, m) for m in others],
        metric_label=text.metric_label,
        figures={name: Markup(inline_figure(figure)) for name, figure in drawn.items()},
        privacy=privacy_section(results),
        secure=readable_pairs(manifest.get("secure") or {}),
        encryption=encryption_parts(manifest),
        leakage=leaks,
        pictures=Markup(leaks["pictures"]) if leaks and leaks["pictures"] else None,  # made of numbers alone
        costs=[text.metric_name(name) for name in cost_columns(results)],
        cost_heads=[f"{text.metric_name(name)} of a trial" for name in cost_columns(results)],
        traffic=cost_table(results),
        configuration=to_toml(manifest.get("experiment") or {}),
        provenance=readable_pairs(manifest.get("provenance") or {}),
        timing=readable_pairs(manifest.get("timing") or {}, timing=True),
        version=str(manifest.get("fljax", "")),
        trials=len(results.trials["trial"]),
    )


def _main_table(results: Results, metric: str) -> Table:
    """All cells: rows and columns as in the figures, further axes behind them."""
    plan = make_plan(results, metric)
    return summarise(results, metric, rows=plan.x, columns=[*plan.series, *plan.where])


def result_sentence(results: Results, metric: str) -> str:
    """The outcome in one sentence: the best cell under a finite ε, and the best without noise, where both were run."""
    records = choice.cell_records(results, metric)
    name = text.metric_name(metric)
    if not records:
        return f"No trial ended with a finite {name}."
    with_budget, without = [], []
    for record in records:
        budget = record.get(text.EPSILON)
        (with_budget if isinstance(budget, (int, float)) and math.isfinite(budget) else without).append(record)
    sign = 1 if text.higher_is_better(metric) else -1
    clauses = []
    for group in filter(None, (with_budget, without)):
        best = max(group, key=lambda record: sign * record["mean"])
        cell = {axis: best[axis] for axis in results.axes}
        value = text.mean_std_text(metric, best["mean"], best["std"]) + (" %" if text.is_share(metric) else "")
        where = f" with {text.cell_label(cell, best['epsilon_refused'])}" if cell else ""
        clauses.append(value + where + _claim(results, best))
    superlative = "best " if len(records) > 1 else ""
    return f"The {superlative}{name} is {', and '.join(clauses)}."


def _claim(results: Results, record: Mapping[str, Any]) -> str:
    """What is claimed of a cell's privacy where its axis values do not say it."""
    if record["epsilon_refused"]:
        return " (no ε is claimed)"
    statements = {(text.epsilon_text(s), text.small_text(s.get("delta"))) for s in results.privacy}
    if text.EPSILON in results.axes or len(statements) != 1 or not text.has_epsilon(results.privacy[0]):
        return ""
    epsilon, delta = statements.pop()
    return f", with ε = {epsilon} at δ = {delta}"


# -------------------------------------------------------------------------------------------------------- privacy


def privacy_section(results: Results) -> dict[str, Any]:
    """The statements without repetition.

    Returns:
      ``basis``: pairs of label and text that hold for every ε; ``caveats``: sentences that hold for all; ``rows``: one
      dictionary per distinct statement with ``cells``, ``status``, ``refused``, ``epsilon``, ``delta``, ``noise`` and
      ``remarks`` (the reason, and what is not shared).
    """
    statements = results.privacy
    claims = [s for s in statements if text.has_epsilon(s)] or statements
    shared = [key for key in BASIS if len({_canon(s.get(key)) for s in claims}) == 1]
    caveats = [c for c in _caveats(claims[0]) if all(c in _caveats(s) for s in claims)] if claims else []
    caveats += dict.fromkeys(str(s["selection_procedure"]) for s in claims if "selection_procedure" in s)
    basis = [(_label(key), text.words(claims[0].get(key))) for key in shared] if claims else []
    cells = [s.get("cell") or {} for s in statements]
    groups: dict[str, tuple[dict[str, Any], list[Mapping]]] = {}
    for statement, cell in zip(statements, cells, strict=True):
        row = _privacy_row(statement, {*shared, *CAVEATS}, caveats)
        groups.setdefault(_canon(row), (row, []))[1].append(cell)
    rows = [row | {"cells": describe_cells(group, cells, row["refused"])} for row, group in groups.values()]
    return {"basis": [pair for pair in basis if pair[1] != text.DASH], "caveats": caveats, "rows": rows}


def _caveats(statement: Mapping[str, Any]) -> list[str]:
    sentences = [statement.get(key) or [] for key in CAVEATS]
    return [str(s) for part in sentences for s in ([part] if isinstance(part, str) else part)]


def _privacy_row(statement: Mapping[str, Any], shared: set[str], caveats: Sequence[str]) -> dict[str, Any]:
    claimed = text.has_epsilon(statement)
    status = str(statement.get("status") or "none")
    refused = not claimed and status not in text.NO_CLAIM_NEEDED
    reason = text.small_text(statement.get("reason"))
    remarks = [reason] if reason != text.DASH else []
    if claimed:  # what an ε would rest on is of no use without one
        shown = {"status", "reason", "epsilon", "delta", "noise_multiplier", "cell", *text.SELECTION, *shared}
        remarks += [f"{_label(k)}: {text.words(v)}" for k, v in statement.items() if k not in shown and v is not None]
        remarks += [sentence for sentence in _caveats(statement) if sentence not in caveats]
        remarks += text.selection(statement)
    return {
        "status": text.words(status),
        "refused": refused,
        "epsilon": text.epsilon_text(statement) if claimed else text.DASH,
        # A δ without its ε says nothing, and looks like a guarantee.
        "delta": text.small_text(statement.get("delta")) if claimed else text.DASH,
        "noise": text.small_text(statement.get("noise_multiplier")),
        "remarks": remarks,
    }


def describe_cells(group: Sequence[Mapping], cells: Sequence[Mapping], refused: bool = False) -> str:
    """Which cells a group holds: in words only the axes that set it apart, or a list where that is not exact."""
    if len(group) == len(cells):
        return "all cells" if len(cells) > 1 else "the run"
    parts, size = [], 1
    for axis in group[0]:
        values = {_canon(cell.get(axis)): cell.get(axis) for cell in group}
        size *= len(values)
        if len(values) < len({_canon(cell.get(axis)) for cell in cells}):
            names = " or ".join(text.value_label(axis, v) for v in values.values())
            target = "target " if refused and axis == text.EPSILON else ""
            parts.append(f"{target}{text.axis_label(axis)} {names}")
    if size == len(group) and parts:
        return ", ".join(parts)
    return "; ".join(text.cell_label(cell, refused) for cell in group)


def _canon(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _label(key: str) -> str:
    return _LABELS.get(key, key.replace("_", " "))


# -------------------------------------------------------------------------------- communication, settings, origins


def cost_columns(results: Results) -> list[str]:
    """The costs that were recorded, uplink and downlink first."""
    return [name for name in text.COSTS if np.isfinite(results.trials.get(name, np.array([math.nan]))).any()]


def cost_table(results: Results) -> list[tuple[str, list[str]]]:
    """What a trial cost: one line per setting that changes it, with mean ± std over its trials for each column."""
    names = cost_columns(results)
    if not names:
        return []
    # An axis that leaves the mean of every cell as it is (ε, mostly) is left out.
    axes = [axis for axis in results.axes if any(_changes(results, name, axis) for name in names)]
    lines = []
    for key, rows in results.groups(axes).items():
        texts = []
        for name in names:
            values = results.trials[name][rows].astype(float)
            values = values[np.isfinite(values)]
            mean = values.mean() if len(values) else math.nan
            std = values.std(ddof=1) if len(values) > 1 else math.nan
            texts.append(text.mean_std_text(name, mean, std))
        lines.append((text.cell_label(dict(zip(axes, key, strict=True))) if axes else "every trial", texts))
    return lines


def _changes(results: Results, name: str, axis: str) -> bool:
    """Whether a column's mean moves by more than 1 % along an axis, everything else equal."""
    place = results.axes.index(axis)
    means: dict[tuple, list[float]] = {}
    for key, rows in results.groups(results.axes).items():
        means.setdefault(key[:place] + key[place + 1 :], []).append(float(results.trials[name][rows].mean()))
    return any(max(m) - min(m) > 0.01 * abs(max(m)) for m in means.values())


def to_toml(config: Mapping[str, Any], prefix: str = "") -> str:
    """A nested configuration in the manner of TOML; what is not set becomes a comment."""
    plain = {k: v for k, v in config.items() if not isinstance(v, Mapping)}
    lines = [f"# {k} is not set" if v is None else f"{_key(k)} = {_toml(v)}" for k, v in plain.items()]
    if prefix and lines:
        lines.insert(0, f"[{prefix}]")
    blocks = ["\n".join(lines)] if lines else []
    for name, section in config.items():
        if isinstance(section, Mapping) and section:
            blocks.append(to_toml(section, f"{prefix}.{_key(name)}" if prefix else _key(name)))
    return "\n\n".join(blocks)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f"{value}"
    return json.dumps(value, ensure_ascii=False, default=str)


def readable_pairs(entries: Mapping[str, Any], timing: bool = False) -> list[tuple[str, str]]:
    """Entries for people: labels without underscores, seconds as durations (all of timing that is named ``*_s``)."""
    pairs = []
    for key, value in _flat(entries, timing):
        seconds = timing and isinstance(value, (int, float)) and re.search(r"(_s|_seconds|seconds)$", key)
        shown = text.duration_text(float(value)) if seconds else text.small_text(value)
        pairs.append((_label(re.sub(r"_(s|seconds)$", "", key) if seconds else key), shown))
    return pairs


def _flat(entries: Mapping[str, Any], timing: bool, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Entries of entries with joined names; a list of entries gives one line for each, under its label."""
    for key, value in entries.items():
        if isinstance(value, Mapping):
            yield from _flat(value, timing, f"{prefix}{key} ")
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            for number, item in enumerate(value, 1):
                inner = {k: v for k, v in item.items() if k != "label"}
                line = ", ".join(f"{label} {shown}" for label, shown in readable_pairs(inner, timing))
                yield f"{prefix}{item.get('label') or f'{key} {number}'}", line
        else:
            yield f"{prefix}{key}", value


# -------------------------------------------------------------------------------------------------------- figures


def inline_figure(figure: Drawn) -> str:
    """Both widths of a figure as inline SVG; the style sheet shows the one that fits."""
    variants = (("narrow", figure.narrow), ("wide", figure.wide))
    return "\n".join(inline_svg(svg, f"{figure.name}-{width}", width, figure.description) for width, svg in variants)


def inline_svg(svg: str, prefix: str, css_class: str, description: str) -> str:
    """An SVG file as part of a page: ids made unique, size left to the page, ink in the page's text colour."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", body)
    body = body.replace(style.INK, "currentColor")
    head, rest = body.split(">", 1)
    found = re.search(r'viewBox="[^"]*"', head)
    box = found[0] if found else ""
    label = html.escape(description, quote=True)
    xlink = 'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg"'
    return f'<svg {xlink} class="{css_class}" role="img" aria-label="{label}" {box}>{rest}'
