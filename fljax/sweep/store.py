"""The results of a run or a sweep: one folder with a manifest and append-only shards, written and read by DuckDB.

    results/<name>/
      manifest.json          what ran: kind, name, title, experiment, axes, privacy, timing, provenance; its plan
      .plan-<digest>.parquet which trials there are, and which shard holds them
      shards/<id>/           trials.parquet, curves.parquet, shard.json (see fljax/sweep/shards.py)
      quarantine/            shards that were found damaged, and were done anew

**Crash safety.** Everything is written under a temporary name, flushed, and renamed. The manifest names its plan, the
plan names its shards, and neither is changed in place: a writer that is killed at any point leaves the old results or
the new ones, never a mixture. Every file has a SHA-256 digest that is checked when the results are opened.

**Numbers.** JSON is strict. What it cannot say is written as the strings ``"Infinity"``, ``"-Infinity"`` and ``"NaN"``
and restored to floats on reading (these three words are therefore reserved). In the tables NaN and NULL are one thing,
a missing value: NaN in columns of numbers, ``""`` in columns of text. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fljax.core.check import FljaxError
from fljax.sweep.files import (
    Columns,
    as_table,
    connect,
    decode,
    encode,
    plain,
    quote,
    read_json,
    remove,
    write_json,
    writing,
)
from fljax.sweep.plan import PLAN_COLUMNS, load_rows, save_plan
from fljax.sweep.shards import SHARDS, TABLES, is_there, read_info, table_path, write_shard

FORMAT = 2
"""Version of the folder's layout; a reader refuses newer ones."""

MANIFEST = "manifest.json"
LEAKAGE = "leakage.json"
"""What attacks found (``fljax leakage``); it may lie in the folder before the results do."""
_NO_METRICS = ("trial", "epsilon", "delta", "noise_multiplier")


def check_target(folder: str | Path, name: str) -> None:
    """Raises FljaxError unless results of the experiment ``name`` may be written to the folder; changes nothing.

    Allowed are: a folder that does not exist or is empty, one that holds results of the same name, and one in which an
    earlier write of the same name was interrupted. Hidden entries are not looked at. Call it before a long
    computation, so that the refusal does not come after it.
    """
    folder = Path(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FljaxError(f"Expected folder={str(folder)!r} to be a folder, found a file. Choose another --out.")
    visible = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".") and p.name != LEAKAGE)
    if visible == [SHARDS] and not any((folder / SHARDS).iterdir()):
        return  # a first write that was interrupted at once
    held = _held_name(folder) if visible else name
    if held is None:
        raise FljaxError(f"Expected {str(folder)!r} to be empty or of fljax, found {visible[0]!r}. Choose another one.")
    if held != name:
        raise FljaxError(f"Expected {str(folder)!r} to be of {name!r}, found results of {held!r}. Choose another one.")


def _held_name(folder: Path) -> str | None:
    """Of which experiment the folder holds results, whole or half in place; None where nothing was put in place."""
    if (folder / MANIFEST).exists():
        return read_manifest(folder)["name"]
    for path in sorted(folder.glob(f"{SHARDS}/*/shard.json")):  # a first write that was interrupted
        try:
            return read_info(folder, path.parent.name, check=False)["name"]
        except (FljaxError, KeyError):
            continue
    return None


def write_results(
    folder: str | Path, *, manifest: Mapping[str, Any], trials: Mapping[str, Any], curves: Mapping[str, Any]
) -> None:
    """Writes results that are there as a whole, as one shard; what the folder held before is replaced.

    Args:
      folder: where to; created where missing.
      manifest: ``name`` (str) and ``kind`` (``run`` or ``sweep``) are required; the rest is free-form plain data.
        ``format``, ``state`` and ``plan`` are added here.
      trials: columns of equal length; ``trial`` (distinct integers) is required. A column is an array of numbers or of
        text, or a list of numbers (None = missing) or of text.
      curves: columns of equal length, ``trial`` and ``round`` among them; may have no rows.

    Raises:
      FljaxError: for bad columns, or where the folder holds something else (see check_target). Nothing is overwritten.
    """
    folder = Path(folder)
    manifest = _check_manifest(encode(manifest), "manifest")
    tables = {
        "trials": as_table("trials", trials, ("trial",)),
        "curves": as_table("curves", curves, ("trial", "round")),
    }
    ids = tables["trials"]["trial"]
    if len(np.unique(ids)) != len(ids) or len(ids) == 0:
        raise FljaxError(f"Expected trials['trial'] of {len(ids)} rows to be distinct, with one row at least.")
    check_target(folder, manifest["name"])
    shard = uuid.uuid4().hex[:16]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder, shard, tables, {"name": manifest["name"]})
    entry = save_plan(folder, {"trial": ids, "shard": np.array([shard] * len(ids), object)})
    write_manifest(folder, manifest | {"state": "complete", "plan": entry})
    sweep_out(folder)
    for path in folder.glob(f"{SHARDS}/*"):
        if path.name != shard:
            remove(path)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest, atomically: from here on the folder holds what it says."""
    with writing(folder):
        write_json(folder / MANIFEST, {**manifest, "format": FORMAT})


def sweep_out(folder: Path) -> None:
    """Removes plans that the manifest in place does not speak of, and the tables of format 1."""
    plan = read_manifest(folder)["plan"]["file"]
    for path in [*folder.glob(".plan-*.parquet"), *folder.glob("*.parquet")]:
        if path.name != plan:
            remove(path)


def open_results(folder: str | Path) -> Results:
    """Opens a results folder; a sweep that is not finished shows the shards that are.

    Args:
      folder: of a run or a sweep.
    Returns:
      The results; the tables are read when they are first asked for.

    Raises:
      FljaxError: one line, where the folder, the manifest or a table is missing, damaged or of another format.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise FljaxError(f"Expected {str(folder)!r} to hold fljax results, found no {MANIFEST}. Check the path.")
    manifest = read_manifest(folder)
    if manifest["format"] < FORMAT:
        raise FljaxError(f"Expected format={manifest['format']} of {str(folder)!r} to be {FORMAT}. Run it again.")
    plan = load_rows(folder, manifest)
    infos = {}
    for shard in dict.fromkeys(plan["shard"].tolist()):
        if manifest.get("state") == "complete" or is_there(folder, shard):
            infos[shard] = read_info(folder, shard)
    if not infos:
        raise FljaxError(f"Expected {str(folder)!r} to hold a finished shard, found none yet. Go on with the sweep.")
    return Results(folder, manifest, plan, infos)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises FljaxError in one line: missing, damaged, without a name, of a newer format.
    """
    path = folder / MANIFEST
    manifest = _check_manifest(read_json(path), str(path))
    version = manifest.get("format")
    if not isinstance(version, int) or not 1 <= version <= FORMAT:
        raise FljaxError(f"Expected format={version!r} of {str(path)!r} to be at most {FORMAT}. Use a newer fljax.")
    if version == FORMAT and not isinstance(manifest.get("plan"), dict):
        raise FljaxError(f"Expected {str(path)!r} to name its trials under 'plan'. Run the experiment again.")
    return manifest


def _check_manifest(manifest: Any, where: str) -> dict[str, Any]:
    if not isinstance(manifest, dict) or not isinstance(manifest.get("name"), str) or not manifest["name"]:
        raise FljaxError(f"Expected {where} to name its experiment under 'name'.")
    if manifest.get("kind") not in ("run", "sweep"):
        raise FljaxError(f"Expected kind={manifest.get('kind')!r} of {where} to be one of run, sweep.")
    return manifest


@dataclass(frozen=True, eq=False)
class Results:
    """The results of a run (a sweep of one trial) or of a sweep, as open_results reads them.

    Attributes:
      folder: where they lie.
      manifest: what ran, as a dictionary.
      plan: one row per trial, finished or not: trial, shard, and for a sweep trial_id and the swept values.
      shards: what every finished shard says of itself, by id.
    """

    folder: Path
    manifest: dict[str, Any]
    plan: Columns = field(repr=False)
    shards: dict[str, dict[str, Any]] = field(repr=False)

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.manifest["name"]

    @property
    def axes(self) -> list[str]:
        """Dotted names of the swept fields, without ``run.seed``."""
        return [axis for axis in self.manifest.get("axes") or [] if axis != "run.seed"]

    @property
    def missing(self) -> int:
        """Trials that are planned and not finished."""
        return int(np.sum(~np.isin(self.plan["shard"].astype(str), list(self.shards))))

    @cached_property
    def metrics(self) -> list[str]:
        """Names of the final metrics: the columns of numbers that are neither settings nor accounting."""
        trials = self.trials
        plain = [name for name in trials if "." not in name and name not in _NO_METRICS and name not in self.axes]
        return [name for name in plain if trials[name].dtype.kind in "iuf"]

    @cached_property
    def privacy(self) -> list[dict[str, Any]]:
        """The privacy statements, one per cell, each with the cell's axis values under ``cell``."""
        if self.manifest.get("state") == "complete":
            return spread(self.manifest.get("privacy") or [])
        parts = [part for info in self.shards.values() for part in info.get("privacy", [])]
        return spread(by_cell(self.plan, parts, self.axes))

    @cached_property
    def trials(self) -> Columns:
        """The table of trials by column, ordered by trial."""
        return self.sql("SELECT * FROM trials ORDER BY trial")

    @cached_property
    def curves(self) -> Columns:
        """The table of evaluated rounds by column, ordered by trial and round."""
        return self.sql("SELECT * FROM curves ORDER BY trial, round")

    def curve(self, trial: int) -> Columns:
        """The evaluated rounds of one trial, by column; only its shard is read.

        Raises FljaxError where there is no such trial, or it is not finished.
        """
        shards = self.plan["shard"][self.plan["trial"] == trial].tolist()
        if not shards or shards[0] not in self.shards:
            raise FljaxError(f"Expected trial={trial} to be one of the finished trials of {str(self.folder)!r}.")
        path = table_path(self.folder, shards[0], "curves")
        return self._ask(f"SELECT * FROM read_parquet({quote(path)}) WHERE trial = {int(trial)} ORDER BY round", ())

    def sql(self, query: str) -> Columns:
        """The answer to a DuckDB query over the views ``trials`` and ``curves``, by column.

        Dotted names want double quotes: ``SELECT "privacy.epsilon", avg(test_accuracy) FROM trials GROUP BY 1``.

        Raises:
          FljaxError: one line with DuckDB's reason.
        """
        return self._ask(query, TABLES)

    def _ask(self, query: str, tables: Sequence[str]) -> Columns:
        import duckdb

        try:
            with connect() as connection:
                if "values" in self.plan and tables:
                    columns = {n: v.astype(object) if v.dtype.kind == "U" else v for n, v in self._planned.items()}
                    connection.execute("CREATE TABLE planned AS SELECT * FROM columns")  # of the local variable
                    del columns
                for name in tables:
                    connection.execute(f"CREATE VIEW {name} AS {self._view(name)}")
                answer = connection.execute(query).fetchnumpy()
        except duckdb.Error as error:
            reason = str(error).split("\n", 1)[0].rstrip(".")
            raise FljaxError(f"Expected query={query!r} to run on {str(self.folder)!r}: {reason}.") from None
        return {name: plain(values) for name, values in answer.items()}

    def _view(self, table: str) -> str:
        """A table over all shards. Of a sweep the plan says which trials count, and what their swept values are."""
        paths = ", ".join(quote(table_path(self.folder, shard, table)) for shard in self.shards)
        source = f"read_parquet([{paths}], union_by_name = true)"
        if "values" not in self.plan:
            return f"SELECT * FROM {source}"
        if table == "trials":
            order = 'p.trial, s.trial_id, p.* EXCLUDE (trial), s.* EXCLUDE (trial, trial_id, "values")'
            return f"SELECT {order} FROM planned p JOIN {source} s USING (trial)"
        kept = sum(info["files"]["trials.parquet"]["rows"] for info in self.shards.values())
        if kept == len(self.plan["trial"]) - self.missing:
            return f"SELECT * FROM {source}"
        return f"SELECT * FROM {source} WHERE trial IN (SELECT trial FROM planned)"

    @cached_property
    def _planned(self) -> Columns:
        """Number and swept values of every trial."""
        return {name: v for name, v in self.plan.items() if name == "trial" or name not in PLAN_COLUMNS}

    def to_pandas(self, query: str = "SELECT * FROM trials ORDER BY trial") -> Any:
        """The answer to a query as a pandas DataFrame; pandas has to be installed."""
        try:
            import pandas  # pyrefly: ignore[missing-import]
        except ImportError:
            raise FljaxError("Expected pandas to be installed: `pip install pandas`. Or use sql().") from None
        return pandas.DataFrame(self.sql(query))

    def to_arrow(self, query: str = "SELECT * FROM trials ORDER BY trial") -> Any:
        """The answer to a query as an Arrow table; pyarrow has to be installed."""
        try:
            import pyarrow  # pyrefly: ignore[missing-import]
        except ImportError:
            raise FljaxError("Expected pyarrow to be installed: `pip install pyarrow`. Or use sql().") from None
        return pyarrow.table(self.sql(query))

    def groups(self, by: Sequence[str]) -> dict[tuple, np.ndarray]:
        """The rows of ``trials`` per cell.

        Args:
          by: columns that make a cell; none for one cell of all trials.
        Returns:
          From the values of the columns (None = missing), in rising order, to the indices of the cell's rows.
        """
        columns = [[_value(v) for v in self.trials[name].tolist()] for name in by]
        rows: dict[tuple, list[int]] = {}
        for i in range(len(self.trials["trial"])):
            rows.setdefault(tuple(column[i] for column in columns), []).append(i)
        return {key: np.array(rows[key]) for key in sorted(rows, key=lambda key: [_order(v) for v in key])}

    def _repr_html_(self) -> str:
        """A small table for notebooks: mean ± std over the seeds of each cell."""
        from fljax.sweep.show import results_view

        return results_view(self)


def by_cell(plan: Columns, parts: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> list[dict[str, Any]]:
    """Statements of privacy with the cells that they belong to, as a manifest keeps them.

    Args:
      plan: the rows of the plan. parts: ``statement`` and ``trials``, the numbers of the trials it is about.
      axes: names that make a cell.
    Returns:
      The statements, each with its ``cells``: [place, cell], where places are in the order of the trials.
    """
    about = {number: i for i, part in enumerate(parts) for number in part["trials"]}
    found: dict[str, dict[str, Any]] = {}
    seen: set[str] = set()
    for row in np.argsort(plan["trial"], kind="stable"):
        number = int(plan["trial"][row])
        if number not in about:
            continue
        values = decode(json.loads(plan["values"][row]))
        cell = {name: values.get(name) for name in axes}
        if (key := json.dumps(cell)) not in seen:
            seen.add(key)
            statement = parts[about[number]]["statement"]
            same = found.setdefault(json.dumps(encode(statement)), {**statement, "cells": []})
            same["cells"].append([len(seen), cell])
    return list(found.values())


def spread(said: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The statements of a manifest, one per cell and in the order of the cells."""
    each = []
    for statement in said:
        rest = {name: value for name, value in statement.items() if name != "cells"}
        each += [(place, rest | {"cell": cell}) for place, cell in statement.get("cells", [])]
    return [dict(s) for s in said if "cells" not in s] + [s for _, s in sorted(each, key=lambda pair: pair[0])]


def _value(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _order(value: Any) -> tuple:
    """Numbers first (inf last among them), then text, then missing values."""
    if value is None:
        return (2, 0, "")
    return (1, 0, value) if isinstance(value, str) else (0, value, "")
