"""The plan of a sweep: which trials there are, and in which batches they run. It is made once and kept.

A trial is known by the hash of its resolved experiment: the same settings and seed are the same trial, wherever they
come from. Code and library versions are provenance, not identity. A batch has a fixed set of trials, a fixed width and
a fixed number of cohort slots, because the last bits of a result depend on them; its id is the hash of all three.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fljax.config import Experiment
from fljax.core.check import FljaxError
from fljax.sections import PerfConfig
from fljax.sweep.files import (
    Columns,
    connect,
    decode,
    digest,
    digest_of,
    encode,
    flush,
    plain,
    quote,
    remove,
    write_table,
    writing,
)
from fljax.sweep.grid import Cell, Trial, expand, group, make_members, without_sweep

PLAN = ".plan-{}.parquet"
PLAN_COLUMNS = ("trial", "trial_id", "shard", "group", "label", "width", "rate", "values")
"""Columns of a plan beside those of the swept fields."""


class Batch(NamedTuple):
    """What one shard holds: trials of one structure that run as one vmapped batch.

    shard: its id. group: number of the structure. label: of the structure, for people. width: trials of the vmapped
    program, the last ones repeats where there are fewer. rate: largest sampling rate, for the slots of a cohort.
    """

    shard: str
    group: int
    label: str
    width: int
    rate: float
    trials: list[Trial]


@dataclass(frozen=True, eq=False)
class Plan:
    """The trials of a sweep and their batches.

    Attributes:
      experiment: with its sweep.
      rows: one row per trial, in the order in which they run: trial, trial_id, shard, group, label, width, rate, values
        (the swept values as JSON); in a folder also a column for every swept field.
    """

    experiment: Experiment
    rows: Columns

    @cached_property
    def shards(self) -> dict[str, np.ndarray]:
        """Id of every shard -> its rows, in the order in which they run."""
        ids, first, inverse = np.unique(self.rows["shard"].astype(str), return_index=True, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        parts = dict(zip(ids, np.split(order, np.cumsum(np.bincount(inverse))[:-1]), strict=True))
        return {str(ids[i]): parts[ids[i]] for i in np.argsort(first)}

    @cached_property
    def _member(self) -> Callable[[Cell], Experiment]:
        return make_members(without_sweep(self.experiment))

    def values(self, row: int) -> Cell:
        """The swept values of a row, with ``run.seed``."""
        return decode(json.loads(self.rows["values"][row]))

    def batch(self, shard: str) -> Batch:
        """What a shard is to hold.

        Raises FljaxError where the settings no longer make the trials that were planned.
        """
        rows, r = self.shards[shard], self.rows
        trials = []
        for i in rows:
            values = self.values(i)
            cell = {name: v for name, v in values.items() if name != "run.seed"}
            experiment = self._member(cell).model_copy(update={"seed": values["run.seed"]})
            trials.append(Trial(int(r["trial"][i]), values, experiment))
        if trial_ids(trials[:1]) != [str(r["trial_id"][rows[0]])]:
            raise FljaxError(
                f"Expected {self.experiment.name} to make the trials that were planned, by another version of fljax. "
                "Add --restart to run all of them again."
            )
        i = rows[0]
        return Batch(shard, int(r["group"][i]), str(r["label"][i]), int(r["width"][i]), float(r["rate"][i]), trials)


def trial_ids(trials: list[Trial]) -> list[str]:
    """What each trial is known by: the fingerprint of its experiment, seed included."""
    return [trial.experiment.fingerprint() for trial in trials]


class Known(NamedTuple):
    """Where a trial was planned or done before: its number, shard, and the width and rate of that batch."""

    number: int
    shard: str
    width: int
    rate: float
    place: int


def make_plan(experiment: Experiment, known: Mapping[str, Known] | None = None, free: int | None = None) -> Plan:
    """Divides the trials of a sweep into groups of one structure, and those into batches.

    Args:
      experiment: with its sweep.
      known: trials that stay in the batches where they are, by id.
      free: the first number that is free for other trials (default: trials are numbered in their order).

    Raises:
      FljaxError: as ``expand`` does, or where two cells are the same experiment.
    """
    return plan_of(experiment, expand(experiment), known, free)


def plan_of(
    experiment: Experiment,
    trials: list[Trial],
    known: Mapping[str, Known] | None = None,
    free: int | None = None,
    rate: float | None = None,
) -> Plan:
    """``make_plan`` of trials that are expanded already. rate: largest sampling rate (default: that of the trials)."""
    ids, known = trial_ids(trials), known or {}
    by_id = dict(zip(ids, trials, strict=True))
    if len(by_id) < len(ids):
        twice = next(t for i, t in zip(ids, trials, strict=True) if by_id[i] is not t)
        raise FljaxError(f"Expected every trial once, found {twice.values} twice. Remove one of its axis values.")
    names = {id(t): i for i, t in zip(ids, trials, strict=True)}
    rows: list[tuple] = []
    for index, members in enumerate(group(trials)):
        pairs = [(names[id(t)], t) for t in members.trials]
        stay = sorted((pair for pair in pairs if pair[0] in known), key=lambda pair: known[pair[0]].place)
        rows += [_row(known[name], name, t, index, members.label) for name, t in stay]
        new = [pair for pair in pairs if pair[0] not in known]
        width = batch_width(experiment.perf, len(new))
        slots = max(t.experiment.sampler.rate for t in members.trials) if rate is None else rate
        for begin in range(0, len(new), width):
            part = new[begin : begin + width]
            shard = digest_of([[name for name, _ in part], width, slots])[:16]
            for name, t in part:
                number, free = (t.number, None) if free is None else (free, free + 1)
                rows.append(_row(Known(number, shard, width, slots, 0), name, t, index, members.label))
    return Plan(experiment, _columns(rows))


def batch_width(perf: PerfConfig, trials: int) -> int:
    """Trials of a vmapped batch: at most ``perf.trials_per_batch``, and as many on each of ``perf.trial_devices``."""
    devices, most = perf.trial_devices, perf.trials_per_batch
    if most < devices:
        raise FljaxError(f"Expected perf.trials_per_batch={most} >= perf.trial_devices={devices}. Use {devices}.")
    return devices * min(most // devices, max(1, math.ceil(trials / devices)))


def _row(known: Known, name: str, trial: Trial, index: int, label: str) -> tuple:
    values = json.dumps(encode(trial.values))
    return (known.number, name, known.shard, index, label, known.width, known.rate, values)


def _columns(rows: list[tuple]) -> Columns:
    columns = dict(zip(PLAN_COLUMNS, zip(*rows, strict=True), strict=True))
    numbers = {"trial": np.int64, "group": np.int64, "width": np.int64, "rate": np.float64}
    return {name: np.array(values, numbers.get(name, object)) for name, values in columns.items()}


def axis_columns(rows: Columns) -> Columns:
    """A column for every swept field of a plan: of whole numbers, numbers, or else text."""
    each = [decode(json.loads(text)) for text in rows["values"]]
    columns: Columns = {}
    for name in dict.fromkeys(name for values in each for name in values):
        values = [v.get(name) for v in each]
        kinds = {type(v) for v in values}
        if kinds == {int}:
            columns[name] = np.array(values, np.int64)
        elif kinds <= {int, float, type(None)}:
            columns[name] = np.array([math.nan if v is None else v for v in values], np.float64)
        else:
            columns[name] = np.array(["" if v is None else str(v) for v in values], object)
    return columns


def save_plan(folder: Path, rows: Columns) -> dict[str, Any]:
    """Writes the rows of a plan under a name of its own; returns what the manifest says of it."""
    content = hashlib.sha256()
    for name, column in rows.items():
        content.update(name.encode() + b"\0" + "\n".join(map(str, column.tolist())).encode())
    path = folder / PLAN.format(content.hexdigest()[:16])
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{uuid.uuid4().hex[:8]}.tmp")  # several workers may begin at once
        try:
            write_table(staged, rows)
            entry = {"file": path.name, "rows": len(rows["trial"]), "sha256": digest(staged)}
            staged.replace(path)
        finally:
            remove(staged)
        flush(folder)
    return entry


def load_rows(folder: Path, manifest: dict[str, Any]) -> Columns:
    """The rows of the plan that a manifest speaks of.

    Raises FljaxError in one line where the file is missing or damaged.
    """
    path = plan_path(folder, manifest)
    with connect() as connection:
        answer = connection.execute(f"SELECT * FROM read_parquet({quote(path)})").fetchnumpy()
    return {name: plain(values) for name, values in answer.items()}


def plan_path(folder: Path, manifest: dict[str, Any]) -> Path:
    """Where the plan of a manifest lies, checked against its digest."""
    entry = manifest.get("plan") if isinstance(manifest.get("plan"), dict) else {}
    path = folder / str(entry.get("file"))
    if not path.is_file() or digest(path) != entry.get("sha256"):
        state = "damaged or changed" if path.is_file() else "missing"
        raise FljaxError(f"Expected {str(path)!r} as its manifest describes it; it is {state}. Add --restart.")
    return path
