"""Small tables of a page: what clip and noise did, and what the controls of a run reached."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fljax.report import text
from fljax.report.figures import mean_curve
from fljax.report.plan import cell_rows, chosen_cells
from fljax.report.round_figures import recorded
from fljax.report.tables import refused_trials
from fljax.sweep.store import Results

Lines = list[tuple[str, list[str]]]

_CLIP = "privacy.clip"


def clip_table(results: Results, metric: str) -> tuple[list[str], Lines]:
    """What clip and noise did in the cells of the training curves: (heads, one line per cell).

    Columns, where they were recorded: the clipping norm S, the share of clients clipped over all evaluated rounds, the
    norm before the clip in the first and in the last of them, the noise on the sum. Nothing where nothing was clipped.
    """
    curves = results.curves
    if not (curves.get("clip_fraction", np.zeros(1)) > 0).any():
        return [], []
    declined, lines = refused_trials(results), []
    noisy = bool(recorded(results, ["noise_std"]))
    norms = bool(recorded(results, ["clip_norm"]))
    for cell in chosen_cells(results, metric):
        inside = cell_rows(results, cell)
        _, share, _ = mean_curve(results, cell, "clip_fraction")
        texts = [_clip_of(results, inside), _percent(share)]
        if norms:
            _, norm, _ = mean_curve(results, cell, "clip_norm")
            texts.append(f"{norm[0]:.3g} → {norm[-1]:.3g}" if len(norm) else text.DASH)
        if noisy:
            _, std, _ = mean_curve(results, cell, "noise_std")
            texts.append(f"{std[-1]:.3g}" if len(std) else text.DASH)
        lines.append((text.cell_label(cell, bool((declined & inside).any())), texts))
    heads = ["clipping norm S", "clients clipped", *(["norm before the clip"] if norms else [])]
    return heads + (["noise std on the sum"] if noisy else []), lines


def _percent(share: np.ndarray) -> str:
    return f"{100 * share.mean():.1f} %" if len(share) else text.DASH


def _clip_of(results: Results, inside: np.ndarray) -> str:
    """The clip that the trials of a cell were given; where it adapts, where it started."""
    section = (results.manifest.get("experiment") or {}).get("privacy") or {}
    swept = results.trials.get(_CLIP)
    given = np.unique(swept[inside]) if swept is not None else np.array([section.get("clip", math.nan)], float)
    shown = text.value_label(_CLIP, float(given[0])) if len(given) == 1 else "varies"
    adapts = section.get("clipping") == "adaptive"
    return text.DASH if shown == "nan" else f"{shown} at the start" if adapts else shown


def controls_table(results: Results) -> tuple[list[str], Lines]:
    """The run beside its controls: (heads, one line each). Nothing where no controls ran."""
    controls: Mapping[str, Mapping[str, Any]] = results.manifest.get("controls") or {}
    if not controls:
        return [], []
    mine = {name: float(column[0]) for name, column in results.trials.items() if column.dtype.kind in "iuf"}
    names = [n for n in dict.fromkeys(n for line in controls.values() for n in line) if n in mine]
    lines = [("this run", [text.metric_text(n, mine[n]) for n in names])]
    lines += [
        (name, [text.metric_text(n, float(line.get(n, math.nan))) for n in names]) for name, line in controls.items()
    ]
    return [text.metric_label(n) for n in names], lines
