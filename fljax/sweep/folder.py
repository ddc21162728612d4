"""A sweep in its results folder: begun or taken up again, worked on shard by shard, by any number of workers, finished.

    plan = begin(folder, experiment)      what is missing is known from here on
    work(folder, plan)                    claims free shards, runs and keeps them, until none is free
    finish(folder, plan)                  the manifest says that all are there

A kill at any moment loses at most the shards in flight, and of those what was done since their last checkpoint.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fljax.config import Experiment, validate
from fljax.core.check import FljaxError
from fljax.sim.interrupt import Interrupted, stop_requests
from fljax.sim.progress import Progress
from fljax.sweep.files import remove, writing
from fljax.sweep.grid import axes, expand
from fljax.sweep.lease import CLAIMS, claimed
from fljax.sweep.plan import Known, Plan, axis_columns, load_rows, make_plan, save_plan, trial_ids
from fljax.sweep.record import describe, same_origin, shard_info, shard_tables, sum_up
from fljax.sweep.run import Kept, Saved, make_runner
from fljax.sweep.shards import SHARDS, STAGING, finished_shards, is_there, quarantine, read_info, write_shard
from fljax.sweep.store import FORMAT, MANIFEST, check_target, open_results, read_manifest, sweep_out, write_manifest

PROGRESS = ".progress"
"""Folder of the checkpoints of batches that are running."""
POLL_S = 0.5


def begin(folder: Path, experiment: Experiment, *, restart: bool = False) -> Plan:
    """Makes or finds the plan of a sweep, and sees to it that every finished shard is sound.

    Args:
      folder: of the results; created where missing.
      experiment: with its sweep. The same sweep goes on; one with other axes or seeds keeps the trials that it shares
        with what is there, and runs the others.
      restart: run everything again; what is there is removed.

    Raises:
      FljaxError: as ``make_plan`` does; the folder holds another experiment, or this one with other settings; it was
        written by a newer version. Nothing is changed then.
    """
    check_target(folder, experiment.name)
    old = None if restart else _found(folder, experiment)
    if old is not None and old[1].experiment.fingerprint() == experiment.fingerprint():
        plan = old[1]
        if check_shards(folder, plan) and old[0].get("state") == "complete":
            write_manifest(folder, old[0] | {"state": "running"})
        return plan
    if old is not None:
        plan = _extended(folder, experiment, old[1])
    else:
        plan = make_plan(experiment)
    if restart:
        for name in (SHARDS, PROGRESS, CLAIMS, STAGING):
            remove(folder / name)
    replan(folder, plan)
    return plan


def _extended(folder: Path, experiment: Experiment, old: Plan) -> Plan:
    """A plan for other trials of a sweep: those that the folder knows stay where they are.

    Finished shards keep all of their trials that are wanted, unfinished ones stay where all of theirs are: a batch has
    its fixed set of trials.
    """
    check_shards(folder, old)
    wanted = set(trial_ids(expand(experiment)))
    free = int(old.rows["trial"].max()) + 1
    known: dict[str, Known] = {}
    finished = sorted(path.parent.name for path in folder.glob(f"{SHARDS}/*/shard.json"))
    for shard in finished:
        info = read_info(folder, shard)
        for place, (number, name) in enumerate(info["trials"]):
            free = max(free, number + 1)
            if name in wanted and name not in known:
                known[name] = Known(number, shard, info["width"], info["rate"], place)
    if finished and not known:
        raise FljaxError(
            f"Expected {str(folder)!r} to hold trials of these settings; {experiment.name} has changed since. "
            "Choose another --out, or add --restart to replace them."
        )
    for shard in missing(folder, old):
        rows = old.shards[shard]
        ids = [str(old.rows["trial_id"][i]) for i in rows]
        if wanted.issuperset(ids) and known.keys().isdisjoint(ids):
            width, rate = int(old.rows["width"][rows[0]]), float(old.rows["rate"][rows[0]])
            numbers = [int(old.rows["trial"][i]) for i in rows]
            known |= {n: Known(k, shard, width, rate, p) for p, (n, k) in enumerate(zip(ids, numbers, strict=True))}
    return make_plan(experiment, known, free)


def replan(folder: Path, plan: Plan, more: dict[str, Any] | None = None) -> None:
    """Puts a plan in place: from here on the folder holds its trials, finished or not. more: for the manifest."""
    sweep = plan.experiment.sweep
    assert sweep is not None
    entry = save_plan(folder, plan.rows | axis_columns(plan.rows))
    said = {"state": "running", "plan": entry} | (more or {})
    write_manifest(folder, describe("sweep", plan.experiment, axes(sweep)) | said)
    sweep_out(folder)


def _found(folder: Path, experiment: Experiment) -> tuple[dict[str, Any], Plan] | None:
    """The manifest and the plan that are in the folder; None where there are none of this format."""
    if not (folder / MANIFEST).exists():
        return None
    manifest = read_manifest(folder)
    if manifest["format"] < FORMAT:
        return None  # finished results of an older version are replaced, as they were by that version
    return manifest, stored_plan(folder, manifest)


def stored_plan(folder: Path, manifest: dict[str, Any] | None = None) -> Plan:
    """The plan that a folder holds, with the experiment as it was planned.

    Raises FljaxError in one line: no sweep there, damaged, of a newer version.
    """
    if manifest is None:
        if not (folder / MANIFEST).exists():
            raise FljaxError(f"Expected {str(folder)!r} to hold a sweep. Begin one with `fljax sweep ... --out`.")
        manifest = read_manifest(folder)
    rows = load_rows(folder, manifest)
    if "values" not in rows:
        raise FljaxError(f"Expected {str(folder)!r} to hold a sweep, found a run. Choose another folder, or --restart.")
    known = {"name": manifest["name"], "title": manifest.get("title", "")}
    return Plan(validate(known | manifest["experiment"], str(folder / MANIFEST)), rows)


def check_shards(folder: Path, plan: Plan) -> list[str]:
    """Looks at every finished shard; damaged ones are set aside, said, and will be done anew. Returns their ids."""
    damaged = []
    for shard in plan.shards:
        if is_there(folder, shard):
            try:
                read_info(folder, shard)
            except FljaxError as error:
                place = quarantine(folder, shard)
                print(f"{error} It is set aside as {place}.", file=sys.stderr)
                damaged.append(shard)
    return damaged


def missing(folder: Path, plan: Plan) -> list[str]:
    """Shards that are not finished."""
    there = finished_shards(folder)
    return [shard for shard in plan.shards if shard not in there]


def work(
    folder: Path,
    plan: Plan,
    *,
    quiet: bool = False,
    wait: bool = False,
    tell: Callable[[int], None] | None = None,
    kept: Kept | None = None,
) -> int:
    """Does free shards until there are none.

    Args:
      folder: of the results. plan: of the sweep.
      quiet: no progress.
      wait: where other workers are at the last shards, wait for them, and take over from those that die.
      tell: called after every shard with the number of trials that are finished, by whomever.
      kept: data and executables that a later call can use.

    Returns:
      How many shards this worker finished.

    Raises:
      FljaxError: a shard cannot be written. Interrupted: Ctrl-C or SIGTERM; a checkpoint is written before.
    """
    left, finished = missing(folder, plan), 0
    with stop_requests(quiet) as check:
        runner = make_runner(plan, left, quiet, check, kept)
        group = -1
        while left:
            mine = _claim_and_do(folder, plan, left, group, runner)
            group, finished = (group, finished) if mine is None else (mine, finished + 1)
            left = missing(folder, plan)
            if tell is not None:
                tell(len(plan.rows["trial"]) - sum(len(plan.shards[shard]) for shard in left))
            if mine is None and left:
                if not wait:
                    break
                time.sleep(POLL_S)
                check(f"while others are at the last {len(left)} shards")
    return finished


def _claim_and_do(folder: Path, plan: Plan, left: list[str], group: int, runner: Callable) -> int | None:
    """Does the first free shard, those of the structure that is compiled first; returns its structure, or None."""
    for shard in _in_turn(plan, left, group):
        with claimed(folder, shard) as mine:
            if mine and not is_there(folder, shard):
                _do(folder, plan, shard, runner)
                return int(plan.rows["group"][plan.shards[shard][0]])
    return None


def _in_turn(plan: Plan, left: list[str], group: int) -> Iterator[str]:
    """Shards in the order in which they should be tried: those of the structure that is compiled first."""
    groups = [int(plan.rows["group"][plan.shards[shard][0]]) for shard in left]
    yield from (shard for shard, other in zip(left, groups, strict=True) if other == group)
    yield from (shard for shard, other in zip(left, groups, strict=True) if other != group)


def _do(folder: Path, plan: Plan, shard: str, runner: Callable) -> None:
    """Runs a shard and keeps it."""
    checkpoint = folder / PROGRESS / f"{shard}.npz"
    saved = Saved(checkpoint, {"fingerprint": shard, "name": plan.experiment.name})
    with writing(folder):
        done = runner(shard, saved)
    write_shard(folder, shard, shard_tables(plan, done), shard_info(plan, done))
    checkpoint.unlink(missing_ok=True)


def finish(folder: Path, plan: Plan) -> bool:
    """Writes the manifest of a sweep whose shards are all there; False, and nothing is written, where some are not."""
    if missing(folder, plan):
        return False
    manifest = read_manifest(folder)
    if manifest.get("state") != "complete":
        infos = {shard: read_info(folder, shard, check=False) for shard in plan.shards}
        write_manifest(folder, manifest | sum_up(plan, infos, manifest["axes"]) | {"state": "complete"})
    for hidden in (PROGRESS, CLAIMS, STAGING):
        remove(folder / hidden)
    return True


def sweep_into(folder: Path, experiment: Experiment, *, restart: bool = False, quiet: bool = False) -> Any:
    """Runs a sweep in this process and keeps it in a folder; what is there already is not run again.

    Args:
      folder: of the results. experiment: with its sweep. restart: run everything again. quiet: no progress.
    Returns:
      The results, as ``fljax.results(folder)`` opens them.

    Raises:
      FljaxError: as ``begin`` and ``work``. Interrupted: the same call goes on from the last checkpoint.
    """
    plan = begin(folder, experiment, restart=restart)
    say_what_is_there(folder, plan, quiet)
    run_here(folder, plan, quiet)
    finish(folder, plan)
    return open_results(folder)


def run_here(folder: Path, plan: Plan, quiet: bool = False, kept: Kept | None = None) -> None:
    """Does what is missing in this process, with progress."""
    left = missing(folder, plan)
    if not left:
        return
    total = len(plan.rows["trial"])
    before = total - sum(len(plan.shards[shard]) for shard in left)
    with Progress(total, plan.experiment.name, quiet, before) as bar:
        try:
            work(folder, plan, quiet=quiet, wait=True, tell=bar.update, kept=kept)
        except Interrupted as stop:
            done = total - sum(len(plan.shards[shard]) for shard in missing(folder, plan))
            said = f"{str(stop).strip()}, {done} of {total} trials are kept in {folder}"
            raise Interrupted(said, stop.signal) from None


def say_what_is_there(folder: Path, plan: Plan, quiet: bool = False) -> None:
    """Says on stderr what need not be run again, and whether it comes from elsewhere."""
    left = missing(folder, plan)
    there = [shard for shard in plan.shards if shard not in set(left)]
    if quiet or not there:
        return
    trials = sum(len(plan.shards[shard]) for shard in there)
    infos = {shard: read_info(folder, shard, check=False) for shard in there}
    origin = same_origin(infos)
    note = f" Last bits may differ between them and the others: {origin}." if origin and left else ""
    print(f"{folder}: {trials} of {len(plan.rows['trial'])} trials are there already.{note}", file=sys.stderr)
