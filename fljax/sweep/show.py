"""Sweeps and results as notebooks show them: a table of cells, what may be claimed, what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fljax.core import html

if TYPE_CHECKING:
    from fljax.sweep.run import SweepOutcome
    from fljax.sweep.store import Results

SHOWN = ("test_accuracy", "test_loss", "client_accuracy_mean", "unseen_accuracy")
"""Final metrics that the table prefers; two at most."""
MOST_CELLS = 40


def results_view(results: Results) -> str:
    """A folder of results: its cells with mean ± standard deviation over seeds, privacy, and where it lies."""
    trials, axes = results.trials, results.axes
    metrics = [m for m in SHOWN if m in trials][:2] or results.metrics[:2]
    rows = []
    for key, index in results.groups(axes).items():
        claim = [*_claims(trials, index)]
        texts = [mean_std(trials[metric][index]) for metric in metrics]
        rows.append([*(_value(v) for v in key), *texts, *claim, len(index)])
    claims = ["ε claimed"] if "privacy_status" in trials else []
    heads = [*axes, *metrics, *claims, "trials"]
    where = html.paragraph(f"{results.folder}: {', '.join(results.metrics)}", soft=True)
    kind = "results of a run" if results.manifest["kind"] == "run" else f"results of {len(trials['trial'])} trials"
    title = str(results.manifest.get("title") or results.name)
    return html.card(title, html.grid(heads, rows, MOST_CELLS), where, note=kind)


def outcome_view(outcome: SweepOutcome) -> str:
    """A finished sweep: its cells with mean ± standard deviation over seeds, privacy, and what the programs cost."""
    final = {name: outcome.history[name][:, -1] for name in SHOWN if name in outcome.history}
    metrics, cells = list(final)[:2], _cells(outcome)
    rows = []
    for key, index in cells.items():
        texts = [mean_std(final[metric][index]) for metric in metrics]
        claims = {_claimed(outcome.statements[i].status, outcome.statements[i].epsilon) for i in index}
        rows.append([*key, *texts, " / ".join(sorted(claims)), len(index)])
    heads = [*outcome.axes, *metrics, "ε claimed", "trials"]
    costs = [
        (t.label, f"{t.trials} trials, compiled in {t.timing.compile_s:.1f} s, ran in {t.timing.total_s:.1f} s")
        for t in outcome.timings
    ]
    title = outcome.experiment.title or outcome.experiment.name
    note = f"a finished sweep of {len(outcome.trials)} trials"
    return html.card(title, html.grid(heads, rows, MOST_CELLS), html.pairs(costs), note=note)


def _cells(outcome: SweepOutcome) -> dict[tuple[str, ...], list[int]]:
    """The trials of each cell, in the order in which they were run."""
    cells: dict[tuple[str, ...], list[int]] = {}
    for i, trial in enumerate(outcome.trials):
        cells.setdefault(tuple(_value(trial.values.get(name)) for name in outcome.axes), []).append(i)
    return cells


def _claims(trials: Mapping[str, np.ndarray], index: np.ndarray) -> list[str]:
    """What is claimed of some trials, where the table says it at all."""
    if "privacy_status" not in trials:
        return []
    epsilon = trials.get("epsilon", np.full(len(trials["trial"]), np.nan))
    return [" / ".join(sorted({_claimed(str(trials["privacy_status"][i]), epsilon[i]) for i in index}))]


def _claimed(status: str, epsilon: Any) -> str:
    """An ε, rounded up, where the status makes it a guarantee; else the status alone, never a number."""
    if status != "valid" or epsilon is None or not np.isfinite(epsilon):
        return status.replace("_", " ") or "none"
    return f"{np.ceil(float(epsilon) * 1000 * (1 - 1e-12)) / 1000:.3f}"


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def mean_std(values: np.ndarray) -> str:
    """Mean ± standard deviation of the finite values; the mean alone of one, ``missing`` of none."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return "missing"
    return f"{finite.mean():.4f}" + (f" ± {finite.std(ddof=1):.4f}" if len(finite) > 1 else "")
