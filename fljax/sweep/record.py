"""From what ran to what is kept: the columns and the manifest of a results folder."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fljax.config import Experiment
from fljax.core.provenance import provenance
from fljax.privacy.selection import PROCEDURE, select_event
from fljax.privacy.statement import PrivacyStatement
from fljax.sim.devices import CLOCK
from fljax.sim.engine import Timing, bytes_sent, finals
from fljax.sim.run import Outcome
from fljax.sweep.run import SweepOutcome
from fljax.sweep.store import write_results


def record_run(folder: Path, outcome: Outcome, controls: dict[str, dict[str, float]] | None = None) -> None:
    """Writes the results of one run, what its controls reached, and its final parameters as ``params.npz``."""
    from fljax.core.tree import named_leaves

    e = outcome.experiment
    timing = _timing(outcome.timing)
    manifest = _manifest("run", e, [], [outcome.statement.to_dict() | {"cell": {}}], timing)
    if controls:
        manifest["controls"] = controls
    history = {n: v[None] for n, v in outcome.history.items()}
    write_results(
        folder,
        manifest=manifest,
        trials=_trials([{"run.seed": e.seed}], history, [outcome.statement]),
        curves=_curves(history),
    )
    temporary = folder / ".params.npz.tmp"
    with open(temporary, "wb") as file:
        arrays: dict[str, Any] = {n: np.asarray(x) for n, x in named_leaves(outcome.params).items()}
        np.savez(file, **arrays)
    os.replace(temporary, folder / "params.npz")


def record_sweep(folder: Path, outcome: SweepOutcome) -> None:
    """Writes the results of a sweep."""
    axes, seen, said = outcome.axes, set(), []
    prices = selection_prices(outcome.statements)
    for trial, statement, price in zip(outcome.trials, outcome.statements, prices, strict=True):
        cell = {name: trial.values[name] for name in axes}
        if (key := json.dumps(cell)) not in seen:
            seen.add(key)
            said.append(statement.to_dict() | price | {"cell": cell})
    programs = [{"label": t.label, "trials": t.trials, **_timing(t.timing)} for t in outcome.timings]
    totals = {name: sum(_timing(t.timing)[name] for t in outcome.timings) for name in ("compile_s", "total_s")}
    manifest = _manifest("sweep", outcome.experiment, axes, said, totals | {"programs": programs})
    values = [t.values for t in outcome.trials]
    trials = _trials(values, outcome.history, outcome.statements)
    write_results(folder, manifest=manifest, trials=trials, curves=_curves(outcome.history))


def selection_prices(statements: list[PrivacyStatement]) -> list[dict[str, Any]]:
    """What it would cost to release only the best of the trials that share an event and a delta, for each trial.

    Returns:
      For each statement ``selection_trials``, how many trials share its event; ``epsilon_selection``, for so many
      expected trials; ``selection_procedure``, what that covers. Empty where no epsilon is stated, and for a trial that
      is alone. Every event is asked about once.
    """
    asked = [(s.event, s.delta) if s.status == "valid" and s.event and s.delta else None for s in statements]
    counts = Counter(question for question in asked if question is not None)
    known: dict[Any, dict[str, Any]] = {}
    for (event, delta), trials in counts.items():
        price = select_event(event, delta, trials) if trials > 1 else math.inf
        if math.isfinite(price):
            numbers = {"selection_trials": trials, "epsilon_selection": price}
            known[event, delta] = numbers | {"selection_procedure": PROCEDURE}
    return [known.get(question, {}) for question in asked]


def _trials(
    values: list[dict[str, Any]], history: dict[str, np.ndarray], statements: list[PrivacyStatement]
) -> dict[str, Any]:
    """One row per trial: swept values, final metrics [R], privacy, bytes."""
    up, down = bytes_sent(history, round_axis=1)
    columns: dict[str, Any] = {"trial": np.arange(len(values))}
    columns |= {name: _column([v[name] for v in values]) for name in values[0]}
    columns |= finals(history, round_axis=1)
    columns["epsilon"] = [s.epsilon for s in statements]
    columns["delta"] = [s.delta for s in statements]
    columns["noise_multiplier"] = [s.noise_multiplier for s in statements]
    columns["privacy_status"] = [s.status for s in statements]
    # Running totals, NaN where a trial did not have them or was over.
    simulated = {name: np.fmax.reduce(history[name], axis=1) for name in CLOCK if name in history}
    return columns | {"uplink_bytes": up, "downlink_bytes": down} | simulated


def _column(values: list[Any]) -> Any:
    """Numbers as floats or integers, anything else as text."""
    if all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        return np.array(values, np.int64)
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return np.array(values, np.float64)
    return [str(v) for v in values]


def _curves(history: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The evaluated rounds of all trials, one row each; round counts rounds done."""
    evaluated = list(finals(history, round_axis=1))
    due = ~np.all([np.isnan(history[n]) for n in evaluated], axis=0)
    trial, index = np.nonzero(due)
    columns = {"trial": trial, "round": index + 1}
    return columns | {name: v[trial, index] for name, v in history.items()}


def _timing(timing: Timing) -> dict[str, float]:
    return {name: round(value, 6) for name, value in timing._asdict().items()}


def _manifest(kind: str, experiment: Experiment, axes: list[str], privacy: list[dict], timing: dict) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": experiment.name,
        "title": experiment.title or experiment.name,
        "experiment": experiment.model_dump(mode="python", exclude={"name", "title"}),
        "axes": axes,
        "privacy": privacy,
        "timing": timing,
        "provenance": provenance(),
    }
