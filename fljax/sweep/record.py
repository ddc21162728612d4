"""From what ran to what is kept: the columns of a shard, and what a shard and a manifest say."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fljax.config import Experiment
from fljax.core.provenance import provenance
from fljax.privacy.events import Event
from fljax.privacy.selection import PROCEDURE, select_event
from fljax.privacy.statement import PrivacyStatement
from fljax.sim.defence import detection
from fljax.sim.devices import CLOCK
from fljax.sim.engine import Timing, bytes_sent, finals, steady
from fljax.sim.outcome import Outcome
from fljax.sweep.files import Columns, as_table
from fljax.sweep.plan import Plan
from fljax.sweep.run import Done, joined
from fljax.sweep.store import by_cell, write_results

now = cache(provenance)
"""Where the results of this process come from; asked once, since it starts git."""


def record_run(folder: Path, outcome: Outcome, controls: dict[str, dict[str, float]] | None = None) -> None:
    """Writes the results of one run, what its controls reached, and its final parameters as ``params.npz``."""
    from fljax.core.tree import named_leaves

    e = outcome.experiment
    timing = _timing(outcome.timing)
    manifest = describe("run", e, []) | {"privacy": [outcome.statement.to_dict() | {"cell": {}}], "timing": timing}
    if controls:
        manifest["controls"] = controls
    if outcome.encryption:
        manifest["encryption"] = outcome.encryption
    if secure := outcome.secure:
        manifest["secure"] = secure
    history = {n: v[None] for n, v in outcome.history.items()}
    write_results(
        folder,
        manifest=manifest,
        trials={"trial": np.arange(1), "run.seed": [e.seed], **_trials(history, [outcome.statement])},
        curves=_curves(history, np.arange(1)),
    )
    temporary = folder / ".params.npz.tmp"
    with open(temporary, "wb") as file:
        arrays: dict[str, Any] = {n: np.asarray(x) for n, x in named_leaves(outcome.params).items()}
        np.savez(file, **arrays)
    os.replace(temporary, folder / "params.npz")


def shard_tables(plan: Plan, done: Done) -> dict[str, Columns]:
    """The tables of a finished batch; the swept values are there as JSON, the plan has a column for each of them."""
    history = joined(done.histories)
    rows = plan.shards[done.batch.shard]
    numbers = np.array([t.number for t in done.batch.trials])
    columns: dict[str, Any] = {"trial": numbers}
    columns |= {name: plan.rows[name][rows].tolist() for name in ("trial_id", "values")}
    columns |= _trials(history, [r.statement for r in done.resolved])
    return {
        "trials": as_table("trials", columns, ("trial",)),
        "curves": as_table("curves", _curves(history, numbers), ("trial", "round")),
    }


def shard_info(plan: Plan, done: Done) -> dict[str, Any]:
    """What a shard says of itself: settings of its first trial, statements of privacy, timing, provenance."""
    batch, said = done.batch, {}
    for trial, resolved in zip(batch.trials, done.resolved, strict=True):
        said.setdefault(id(resolved.statement), (resolved.statement, []))[1].append(trial.number)
    first, rows = batch.trials[0].experiment, plan.shards[batch.shard]
    return {
        "name": plan.experiment.name,
        "label": batch.label,
        "group": batch.group,
        "width": batch.width,
        "rate": batch.rate,
        "trials": [[t.number, str(plan.rows["trial_id"][i])] for t, i in zip(batch.trials, rows, strict=True)],
        "experiment": first.model_dump(mode="python", exclude={"name", "title", "sweep", "controls"}),
        "privacy": [
            {"statement": s.to_dict(), "event": s.event and dataclasses.asdict(s.event), "trials": numbers}
            for s, numbers in said.values()
        ],
        "timing": {"compile_s": done.compile_s, "calls": done.times},
        "provenance": now(),
    }


def describe(kind: str, experiment: Experiment, axes: list[str]) -> dict[str, Any]:
    """What a manifest says of an experiment before anything ran."""
    return {
        "kind": kind,
        "name": experiment.name,
        "title": experiment.title or experiment.name,
        "experiment": experiment.model_dump(mode="python", exclude={"name", "title"}),
        "axes": axes,
        "provenance": provenance(),
    }


def sum_up(plan: Plan, infos: Mapping[str, Mapping[str, Any]], axes: list[str]) -> dict[str, Any]:
    """What a manifest says of a finished sweep: privacy of every cell with the price of a choice, and timing.

    Args:
      plan: of the sweep. infos: what every shard says of itself. axes: dotted names of the axes.
    """
    asked: list[tuple[Event, float] | None] = []
    parts = [part for info in infos.values() for part in info["privacy"]]
    for part in parts:
        s = part["statement"]
        claimed = s["status"] == "valid" and part["event"] and s["delta"]
        asked += [(_event(part["event"]), s["delta"]) if claimed else None] * len(part["trials"])
    prices, told, at = _prices(asked), [], 0
    for part in parts:
        told.append(part | {"statement": part["statement"] | prices[at]})
        at += len(part["trials"])
    return {"privacy": by_cell(plan.rows, told, axes), "timing": timing_of(infos)}


def timing_of(infos: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds of each program and of all together."""
    programs = []
    for group in sorted({info["group"] for info in infos.values()}):
        members = [info for info in infos.values() if info["group"] == group]
        calls = [tuple(call) for info in members for call in info["timing"]["calls"]]
        seconds = sum(took for _, took in calls)
        timing = Timing(sum(info["timing"]["compile_s"] for info in members), steady(calls), seconds)
        trials = sum(info["files"]["trials.parquet"]["rows"] for info in members)
        programs.append({"label": members[0]["label"], "trials": trials, **_timing(timing)})
    return {name: sum(p[name] for p in programs) for name in ("compile_s", "total_s")} | {"programs": programs}


def selection_prices(statements: list[PrivacyStatement]) -> list[dict[str, Any]]:
    """What it would cost to release only the best of the trials that share an event and a delta, for each trial.

    Returns:
      For each statement ``selection_trials``, how many trials share its event; ``epsilon_selection``, for so many
      expected trials; ``selection_procedure``, what that covers. Empty where no epsilon is stated, and for a trial that
      is alone. Every event is asked about once.
    """
    return _prices([(s.event, s.delta) if s.status == "valid" and s.event and s.delta else None for s in statements])


def _prices(asked: Sequence[tuple[Event, float] | None]) -> list[dict[str, Any]]:
    """``selection_prices`` of the trials' events and deltas."""
    counts = Counter(question for question in asked if question is not None)
    known: dict[Any, dict[str, Any]] = {}
    for (event, delta), trials in counts.items():
        price = select_event(event, delta, trials) if trials > 1 else math.inf
        if math.isfinite(price):
            numbers = {"selection_trials": trials, "epsilon_selection": price}
            known[event, delta] = numbers | {"selection_procedure": PROCEDURE}
    return [known.get(question, {}) for question in asked]


def _event(kept: Mapping[str, Any]) -> Event:
    """An event from what a shard keeps of it."""

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    plain = {name: tuples(value) for name, value in kept.items() if name != "beside"}
    return Event(**plain, beside=tuple(_event(event) for event in kept.get("beside") or ()))


def _trials(history: dict[str, np.ndarray], statements: list[PrivacyStatement]) -> dict[str, Any]:
    """One row per trial: final metrics [R], privacy, bytes."""
    up, down = bytes_sent(history, round_axis=1)
    columns: dict[str, Any] = finals(history, round_axis=1)
    columns["epsilon"] = np.array([math.nan if s.epsilon is None else s.epsilon for s in statements], np.float64)
    columns["delta"] = np.array([math.nan if s.delta is None else s.delta for s in statements], np.float64)
    noise = [math.nan if s.noise_multiplier is None else s.noise_multiplier for s in statements]
    columns["noise_multiplier"] = np.array(noise, np.float64)
    columns["privacy_status"] = [s.status for s in statements]
    # Running totals, NaN where a trial did not have them or was over.
    simulated = {name: np.fmax.reduce(history[name], axis=1) for name in CLOCK if name in history}
    return columns | {"uplink_bytes": up, "downlink_bytes": down} | simulated | detection(history)


def _curves(history: dict[str, np.ndarray], numbers: np.ndarray) -> dict[str, np.ndarray]:
    """The evaluated rounds of all trials, one row each; round counts rounds done."""
    evaluated = list(finals(history, round_axis=1))
    due = ~np.all([np.isnan(history[n]) for n in evaluated], axis=0)
    trial, index = np.nonzero(due)
    columns = {"trial": numbers[trial], "round": index + 1}
    return columns | {name: v[trial, index] for name, v in history.items()}


def _timing(timing: Timing) -> dict[str, float]:
    return {name: round(value, 6) for name, value in timing._asdict().items()}


def same_origin(infos: Mapping[str, Mapping[str, Any]]) -> str:
    """How finished shards differ in origin from this process, where bits may differ; empty if they do not."""
    here = now()
    for info in infos.values():
        for name in ("fljax", "jax", "numpy", "device", "cpu"):
            there = info.get("provenance", {}).get(name)
            if there != here[name]:
                return f"{name} {there} there, {here[name]} here"
    return ""
