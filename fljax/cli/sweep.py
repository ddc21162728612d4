"""``fljax sweep``, ``fljax worker``, ``fljax query``: trials planned, run and kept by any number of workers; asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from fljax.cli.arguments import overridden
from fljax.cli.shared import ExperimentCommand, lines, print_json


@dataclass(frozen=True)
class Sweep(ExperimentCommand):
    """Run all trials of an experiment with a sweep, as one compiled program per static structure.

    What is finished in the results folder is not run again: the same command goes on where an earlier one was stopped
    or killed, and more seeds or values on an axis run the new trials only.

    Attributes:
      dry_run: show trials, programs, memory, time and the privacy of every cell, and stop.
      measure: with --dry-run, compile the programs and run three rounds of each, for memory and time.
      restart: run all trials again; the folder's shards are removed.
      executor: where shards run: in processes here, as jobs of Slurm, or on a Ray cluster.
      workers: processes, jobs or tasks; each does one shard at a time.
      option: settings of Slurm's jobs, such as partition=gpu time=240 gpus_per_node=1 mem=16G.
    """

    dry_run: bool = False
    measure: bool = True
    restart: bool = False
    executor: Literal["local", "slurm", "ray"] = "local"
    workers: int = 1
    option: tuple[str, ...] = ()

    def execute(self, overrides: list[str]) -> None:
        """Runs the sweep and writes table, figures and page."""
        from fljax.sim.engine import use_compilation_cache
        from fljax.sweep.executors import check_executor, run_missing
        from fljax.sweep.folder import begin, finish, say_what_is_there
        from fljax.sweep.plan import Plan
        from fljax.sweep.preview import preview
        from fljax.sweep.run import Kept
        from fljax.sweep.search import search_into
        from fljax.sweep.store import check_target

        experiment = overridden(self.experiment, overrides, data_dir=self.data_dir, fast=self.fast)
        out = self.out or Path("results") / experiment.name
        check_target(out, experiment.name)
        check_executor(self.executor, self.workers, self.option)
        if self.dry_run:
            use_compilation_cache()
            shown = preview(experiment, out, measure=self.measure, quiet=self.quiet)
            print_json(shown) if self.json else print(lines(shown))
            return
        use_compilation_cache()
        searched = experiment.sweep is not None and experiment.sweep.search is not None
        kept = Kept({}, {}) if searched else None

        def go(folder: Path, plan: Plan) -> None:
            run_missing(folder, plan, self.executor, self.workers, self.option, self.quiet, kept)

        if searched:
            search_into(out, experiment, go, restart=self.restart)
        else:
            plan = begin(out, experiment, restart=self.restart)
            say_what_is_there(out, plan, self.quiet)
            go(out, plan)
            finish(out, plan)
        self._show(out)

    def _show(self, out: Path) -> None:
        from fljax.report.page import write_report
        from fljax.report.tables import print_table, summarise
        from fljax.sweep.store import open_results

        page, results = write_report(out, endings=()), open_results(out)
        programs, front = results.manifest["timing"]["programs"], results.manifest.get("front")
        if self.json:
            said = {"name": results.name, "trials": len(results.plan["trial"]), "programs": programs, "out": str(out)}
            print_json(said if front is None else said | {"front": front})
            return
        if front is None:
            print_table(summarise(results))
        else:
            print(lines({"front": _rounded(front)}))
        for p in programs:
            compiled, ran = f"compiled in {p['compile_s']:.1f} s", f"ran in {p['total_s']:.1f} s"
            print(f"{p['label']}: {p['trials']} trials, {compiled}, {ran}")
        print(page)


def _rounded(front: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points of a front for people: four digits, the largest first objective first."""
    ordered = sorted(front, key=lambda entry: -next(iter(entry["objectives"].values())))
    rows = [{**entry["cell"], **entry["point"], **entry["objectives"]} for entry in ordered]
    return [{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]


@dataclass(frozen=True)
class Worker:
    """Do free shards of a sweep that was begun, until there are none: one worker of many, on any machine.

    Attributes:
      folder: results folder of the sweep, on a disk that all workers share.
      wait: stay until the last shard is finished, and take over from workers that die.
      quiet: no progress.
    """

    folder: tyro.conf.Positional[Path]
    wait: bool = False
    quiet: bool = False

    def execute(self) -> None:
        """Claims, runs and keeps shards; the last worker completes the manifest."""
        from fljax.sim.engine import use_compilation_cache
        from fljax.sweep.folder import finish, missing, stored_plan, work

        use_compilation_cache()
        plan = stored_plan(self.folder)
        done = work(self.folder, plan, quiet=self.quiet, wait=self.wait)
        left = len(missing(self.folder, plan))
        finish(self.folder, plan)
        print(f"{self.folder}: {done} shards done here, {left} of {len(plan.shards)} left")


@dataclass(frozen=True)
class Query:
    """Ask the results of a run or a sweep in SQL (DuckDB): tables trials and curves; dotted names in double quotes.

    Attributes:
      folder: a results folder, finished or not.
      query: such as 'select "privacy.epsilon", avg(test_accuracy) from trials group by 1 order by 1'.
      json: print one JSON object on stdout: columns and rows.
      csv: print the rows as CSV.
      rows: most rows that the table shows.
    """

    folder: tyro.conf.Positional[Path]
    query: tyro.conf.Positional[str] = "select * from trials order by trial"
    json: bool = False
    csv: bool = False
    rows: int = 40

    def execute(self) -> None:
        """Prints the answer."""
        from fljax.sweep.store import open_results

        results = open_results(self.folder)
        answer = {name: column.tolist() for name, column in results.sql(self.query).items()}
        found = list(zip(*answer.values(), strict=True))
        if self.json:
            print_json({"columns": list(answer), "rows": found, "missing_trials": results.missing})
        elif self.csv:
            _print_csv(list(answer), found)
        else:
            _print_rows(list(answer), found, self.rows)
            if results.missing:
                print(f"{results.missing} trials are not finished.")


def _print_csv(names: list[str], rows: list[tuple[Any, ...]]) -> None:
    import csv
    import sys

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerows([names, *rows])


def _print_rows(names: list[str], rows: list[tuple[Any, ...]], most: int) -> None:
    """A table for the terminal; numbers in full where they are whole, to six digits where they are not."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in names:
        table.add_column(Text(name), overflow="fold")
    for row in rows[:most]:
        table.add_row(*(Text(f"{v:.6g}" if isinstance(v, float) else str(v)) for v in row))
    Console().print(table)
    if len(rows) > most:
        print(f"{len(rows) - most} more rows; --rows {len(rows)} shows all, --csv and --json print all.")
