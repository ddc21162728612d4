"""A sweep of 300 cells: as one vmapped program, as a loop over one compiled program, and as separate processes.

    python -m benchmarks.sweep --out benchmarks/results

The sweep is ``digits_tuning`` as the command line runs it, kept in a folder and reported. The loop runs some of its
trials one after the other with one compiled program, the processes run some of them as `fljax run`; both are multiplied
up to all trials. Seconds of the processor stand beside those of the clock, which other programs disturb.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax

from fljax.cli.arguments import load_experiment
from fljax.core.provenance import provenance
from fljax.report.page import write_report
from fljax.sim.engine import use_compilation_cache
from fljax.sweep.folder import begin
from fljax.sweep.grid import expand
from fljax.sweep.plan import plan_of
from fljax.sweep.record import shard_info, shard_tables
from fljax.sweep.run import make_runner
from fljax.sweep.shards import write_shard
from fljax.sweep.store import open_results

NAME = "digits_tuning"


class Took(NamedTuple):
    """Seconds of the clock, and of the processor (this process and those that it waited for)."""

    wall_s: float
    cpu_s: float


def now() -> Took:
    """Both clocks."""
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(time.perf_counter(), own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime)


def since(start: Took, times: float = 1.0) -> dict[str, float]:
    """What was taken since, multiplied."""
    end = now()
    return Took(times * (end.wall_s - start.wall_s), times * (end.cpu_s - start.cpu_s))._asdict()


def fljax(*words: str) -> None:
    """A command in a process of its own."""
    subprocess.run([sys.executable, "-m", "fljax", *words], check=True, stdout=subprocess.DEVNULL)


def whole_sweep(folder: Path) -> dict:
    """The command from a warm cache, and how much of it was neither compiling nor running."""
    start = now()
    fljax("sweep", NAME, "--quiet", "--out", str(folder))
    took = since(start)
    results = open_results(folder)
    timing = results.manifest["timing"]
    start = now()
    fljax("report", str(folder))
    report = since(start)
    start = now()
    write_report(folder, endings=())  # as the sweep does when it ends, imports included
    page = since(start)
    start = now()
    fljax("sweep", NAME, "--quiet", "--out", str(folder))
    again = since(start)
    shares = {f"page_share_{clock}": page[clock] / took[clock] for clock in page}
    ran = {"compile_s": timing["compile_s"], "run_s": timing["total_s"], "trials": len(results.trials["trial"])}
    return {**took, **ran, "page": page, **shares, "report_again": report, "second_start": again}


def batches(folder: Path) -> dict:
    """The same program over batches of trials, without compiling: the run alone, and what keeping its shards takes."""
    plan = begin(folder, load_experiment(NAME))
    runner, shards = make_runner(plan, list(plan.shards), quiet=True), list(plan.shards)
    runner(shards[0], None)
    run, keep, trials = Took(0.0, 0.0), Took(0.0, 0.0), 0
    for shard in shards[1:3]:
        start = now()
        done = runner(shard, None)
        run = Took(*(a + b for a, b in zip(run, since(start).values(), strict=True)))
        start = now()
        write_shard(folder, shard, shard_tables(plan, done), shard_info(plan, done))
        keep = Took(*(a + b for a, b in zip(keep, since(start).values(), strict=True)))
        trials += len(done.histories)
    times = len(plan.rows["trial"]) / trials
    share = {"store_share_wall": keep.wall_s / run.wall_s, "store_share_cpu": keep.cpu_s / run.cpu_s}
    return Took(times * run.wall_s, times * run.cpu_s)._asdict() | share | {"measured_trials": trials}


def loop(trials: int) -> dict:
    """One compiled program, one trial at a time."""
    experiment = load_experiment(NAME).replace(**{"perf.trials_per_batch": 1})
    every = expand(experiment)
    plan = plan_of(experiment, every[:: len(every) // (trials + 1)][: trials + 1])
    runner, shards = make_runner(plan, list(plan.shards), quiet=True), list(plan.shards)
    runner(shards[0], None)  # compiles, and calibrates the noise
    start = now()
    for shard in shards[1:]:
        runner(shard, None)
    return since(start, len(every) / (len(shards) - 1)) | {"measured_trials": len(shards) - 1}


def processes(folder: Path, trials: int) -> dict:
    """One process a trial, from a warm cache."""
    experiment = load_experiment(NAME)
    every = expand(experiment)
    picked = every[:: len(every) // trials][:trials]
    start = None
    for i, trial in enumerate([picked[0], *picked]):
        if i == 1:
            start = now()  # the first one fills the caches
        values = trial.values | {"seed": trial.values["run.seed"], "sweep": "None"}
        del values["run.seed"]
        flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        fljax("run", NAME, *flags, "--quiet", "--out", str(folder / str(i)))
    assert start is not None
    return since(start, len(every) / len(picked)) | {"measured_trials": len(picked)}


def main() -> None:
    """Prints what was measured, and writes it as JSON where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", type=int, default=20, help="trials of the loop that are measured")
    parser.add_argument("--processes", type=int, default=3, help="processes that are measured")
    parser.add_argument("--cold", action="store_true", help="do not run the sweep once before, to fill the caches")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    use_compilation_cache()
    found = {}
    with tempfile.TemporaryDirectory() as place:
        if not args.cold:
            fljax("sweep", NAME, "--quiet", "--out", str(Path(place) / "warm"))
        for name, measure in {
            "sweep": lambda: whole_sweep(Path(place) / "sweep"),
            "batches": lambda: batches(Path(place) / "batches"),
            "loop": lambda: loop(args.loop),
            "processes": lambda: processes(Path(place), args.processes),
        }.items():
            found[name] = measure()
            print(name, json.dumps(found[name]), flush=True)
    for clock in ("wall_s", "cpu_s"):
        found[f"processes_over_sweep_{clock}"] = round(found["processes"][clock] / found["sweep"][clock], 2)
        found[f"loop_over_batches_{clock}"] = round(found["loop"][clock] / found["batches"][clock], 2)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(found | {"provenance": provenance()}, indent=1)
        (args.out / f"sweep_{jax.default_backend()}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
