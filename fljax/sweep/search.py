"""Adaptive search: batches of points that an optimiser asks for, run as ordinary shards, and told back to it.

Every cell of the sweep's other axes (a target epsilon, say) has a study of its own. One batch of all studies together
fills the vmapped programs. The folder is the memory: what was asked stands in the manifest, what came out in the
shards, and a study is made anew from both before every batch. A search that was killed therefore goes on as if it had
not been, and asks for the same points.

The optimiser is Optuna (extra ``sweep``). Searching on private data is not covered by the epsilon of a trial: the
statement of each trial prices the choice.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fljax.config import Experiment
from fljax.core.check import FljaxError, one_of
from fljax.sections import DrawnConfig, SearchConfig
from fljax.sweep.files import remove
from fljax.sweep.folder import check_shards, finish, missing, replan, stored_plan
from fljax.sweep.grid import Cell, Trial, allowed, cells, make_members, seeds, with_seeds, without_sweep
from fljax.sweep.lease import CLAIMS
from fljax.sweep.plan import Known, Plan, plan_of, trial_ids
from fljax.sweep.shards import SHARDS, STAGING
from fljax.sweep.store import FORMAT, MANIFEST, check_target, open_results, read_manifest, write_manifest

Go = Callable[[Path, Plan], None]
Asked = list[dict[str, Any]]


def check_search(experiment: Experiment) -> None:
    """Refuses a search whose package is missing, or whose fields are wrong, before anything is written."""
    _optuna()
    base, search = without_sweep(experiment), _search(experiment)
    for where in _studies(experiment):
        for share in (0.0, 0.5, 1.0 - 1e-9):
            make_members(base)({**where, **middle(search, share)})


def middle(search: SearchConfig, share: float = 0.5) -> Cell:
    """The point of a search that lies at the same share of all of its fields' ranges."""
    from fljax.sweep.draw import place

    return {name: place(drawn, share) for name, drawn in search.over.items()}


def search_into(folder: Path, experiment: Experiment, go: Go, *, restart: bool = False) -> None:
    """Runs an adaptive search; what is there already is not run again, and more points go on from there.

    Args:
      folder: of the results. experiment: with ``sweep.search``.
      go: runs what is missing of a plan in the folder.
      restart: run everything again.

    Raises:
      FljaxError: the folder holds another experiment or another search; Optuna is missing; a metric is unknown.
    """
    check_target(folder, experiment.name)
    check_search(experiment)
    search = _search(experiment)
    asked = [] if restart else _asked_before(folder, experiment)
    if restart:
        for name in (SHARDS, CLAIMS, STAGING):
            remove(folder / name)
    plan = stored_plan(folder) if asked else None
    if plan is not None:
        check_shards(folder, plan)
    for batch in range(math.ceil(search.points / search.batch)):
        if batch >= len(asked):
            asked.append(_ask(experiment, asked, None if plan is None else _outcomes(folder, search), batch))
            plan = _grown(experiment, asked, plan)
            replan(folder, plan, {"search": asked, "searched": _key(experiment)})
        assert plan is not None
        if missing(folder, plan):
            go(folder, plan)
    assert plan is not None
    finish(folder, plan)
    front = best(experiment, asked, _outcomes(folder, search))
    write_manifest(folder, read_manifest(folder) | {"front": front})


def _asked_before(folder: Path, experiment: Experiment) -> list[Asked]:
    """The batches that were asked for in this folder."""
    if not (folder / MANIFEST).exists():
        return []
    manifest = read_manifest(folder)
    if manifest["format"] < FORMAT:
        return []
    if manifest.get("searched") != _key(experiment):
        raise FljaxError(
            f"Expected {str(folder)!r} to hold this search; {experiment.name} has changed since. "
            "Choose another --out, or add --restart to replace it."
        )
    return list(manifest["search"])


def _key(experiment: Experiment) -> str:
    """What a search is known by: everything but the number of its points, of which there may be more later."""
    search = _search(experiment)
    return experiment.replace(**{"sweep.search": search.model_dump(exclude_unset=True) | {"points": 1}}).fingerprint()


def _search(experiment: Experiment) -> SearchConfig:
    if experiment.sweep is None or experiment.sweep.search is None:
        raise FljaxError(f"Expected {experiment.name} to hold sweep.search, the fields to search.")
    return experiment.sweep.search


def _studies(experiment: Experiment) -> list[Cell]:
    """The cells of the other axes: each has a study."""
    assert experiment.sweep is not None
    return cells(experiment.sweep)


def _grown(experiment: Experiment, asked: Sequence[Asked], old: Plan | None) -> Plan:
    """The plan with all that was asked for; trials that were planned before stay where they are."""
    trials = _trials(experiment, asked)
    known: dict[str, Known] = {}
    if old is not None:
        r = old.rows
        columns = zip(r["trial_id"], r["trial"], r["shard"], r["width"], r["rate"], strict=True)
        for place, (name, number, shard, width, rate) in enumerate(columns):
            known[str(name)] = Known(int(number), str(shard), int(width), float(rate), place)
    free = None if old is None else int(old.rows["trial"].max()) + 1
    drawn = _search(experiment).over.get("sampler.rate")
    rate = None if drawn is None else drawn.high or max(float(v) for v in drawn.choice if isinstance(v, int | float))
    return plan_of(experiment, trials, known, free, rate)


def _trials(experiment: Experiment, asked: Sequence[Asked]) -> list[Trial]:
    """Every point that was asked for, with every seed; a point that was asked for twice once."""
    sweep = experiment.sweep
    assert sweep is not None
    base = without_sweep(experiment)
    passes = allowed(sweep, base)
    points = [{**part["cell"], **point["values"]} for batch in asked for part in batch for point in part["points"]]
    found = with_seeds([p for p in points if passes(p)], seeds(sweep), make_members(base))
    distinct = list(dict(zip(trial_ids(found), found, strict=True)).values())
    if not distinct:
        raise FljaxError(f"Expected sweep.where={list(sweep.where)!r} to leave a point of the search; it leaves none.")
    return [trial._replace(number=i) for i, trial in enumerate(distinct)]


def _outcomes(folder: Path, search: SearchConfig) -> dict[str, list[float]]:
    """Cell and point as text -> mean over the seeds of every objective.

    Raises FljaxError where an objective is not a metric of the trials.
    """
    results = open_results(folder)
    trials = results.trials
    numbers = [name for name, column in trials.items() if column.dtype.kind in "iuf" and "." not in name]
    for name in search.objectives:
        one_of(numbers, objective=name)
    values = dict(zip(results.plan["trial"].tolist(), results.plan["values"].tolist(), strict=True))
    rows: dict[str, list[list[float]]] = {}
    for i, number in enumerate(trials["trial"].tolist()):
        point = {name: v for name, v in json.loads(values[number]).items() if name != "run.seed"}
        rows.setdefault(_text(point), []).append([float(trials[name][i]) for name in search.objectives])
    return {point: np.mean(several, axis=0).tolist() for point, several in rows.items()}


def _text(point: Mapping[str, Any]) -> str:
    from fljax.sweep.files import encode

    return json.dumps(encode(point), sort_keys=True)


# ---- Optuna ---------------------------------------------------------------------------------------------------------


def _ask(experiment: Experiment, asked: Sequence[Asked], told: dict[str, list[float]] | None, batch: int) -> Asked:
    """The next batch: for every study its points, with what the sampler wants to know of them later."""
    optuna, search = _optuna(), _search(experiment)
    count = min(search.batch, search.points - batch * search.batch)
    parts = []
    for number, cell in enumerate(_studies(experiment)):
        study = _study(search, number, batch, cell, asked, told or {})
        points = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            for _ in range(count):
                trial = study.ask(_distributions(search))
                values = {name: _value(search.over[name], v) for name, v in trial.params.items()}
                points.append({"values": values, "params": trial.params, "attrs": _attrs(study, trial)})
        parts.append({"cell": cell, "points": points})
    return parts


def _attrs(study: Any, trial: Any) -> dict[str, Any]:
    """What a sampler noted of a trial that it proposed, such as its generation."""
    return dict(study.get_trials(deepcopy=False)[trial.number].system_attrs)


def _study(
    search: SearchConfig, number: int, batch: int, cell: Cell, asked: Sequence[Asked], told: Mapping[str, list[float]]
) -> Any:
    """A study as it stands before a batch, from what was asked and told."""
    optuna = _optuna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        directions = [{"max": "maximize", "min": "minimize"}[d] for d in search.objectives.values()]
        study = optuna.create_study(directions=directions, sampler=_sampler(search, number, batch))
        for part in (part for parts in asked for part in parts if part["cell"] == cell):
            for point in part["points"]:
                values = told.get(_text({**cell, **point["values"]}))
                good = values is not None and all(map(math.isfinite, values))
                trial = optuna.trial.create_trial(
                    params=point["params"],
                    distributions=_distributions(search),
                    system_attrs=point["attrs"],
                    values=values if good else None,
                    state=optuna.trial.TrialState.COMPLETE if good else optuna.trial.TrialState.FAIL,
                )
                study.add_trial(trial)
    return study


def _sampler(search: SearchConfig, number: int, batch: int) -> Any:
    """The optimiser, with a seed of its own in every batch of every study."""
    samplers = _optuna().samplers
    seed = int(np.random.SeedSequence([search.seed, number, batch]).generate_state(1)[0])
    kind = search.sampler
    if kind == "auto":
        kind = "tpe" if len(search.objectives) == 1 else "nsga2"
    if kind == "random":
        return samplers.RandomSampler(seed=seed)
    if kind == "tpe":
        return samplers.TPESampler(seed=seed, constant_liar=True, n_startup_trials=min(10, search.batch))
    return samplers.NSGAIISampler(seed=seed, population_size=max(search.batch, 2))


def _distributions(search: SearchConfig) -> dict[str, Any]:
    """What Optuna knows of the fields; a choice is known by its place, so that it may be anything."""
    d = _optuna().distributions
    found: dict[str, Any] = {}
    for name, drawn in search.over.items():
        if drawn.choice:
            found[name] = d.CategoricalDistribution(tuple(range(len(drawn.choice))))
        elif drawn.integer:
            found[name] = d.IntDistribution(int(drawn.low or 0), int(drawn.high or 0), log=drawn.scale == "log")
        else:
            found[name] = d.FloatDistribution(drawn.low, drawn.high, log=drawn.scale == "log")
    return found


def _value(drawn: DrawnConfig, param: Any) -> Any:
    return drawn.choice[param] if drawn.choice else param


def best(experiment: Experiment, asked: Sequence[Asked], told: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """The points of each study that no other point beats in every objective: its Pareto front, or its best point."""
    search, found = _search(experiment), []
    for number, cell in enumerate(_studies(experiment)):
        study = _study(search, number, 0, cell, asked, told)
        seen = {}
        for trial in study.best_trials:
            point = {name: _value(search.over[name], v) for name, v in trial.params.items()}
            reached = dict(zip(search.objectives, trial.values, strict=True))
            seen[_text(point)] = {"cell": cell, "point": point, "objectives": reached}
        found += seen.values()
    return found


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise FljaxError("Expected the package optuna to be installed: `pip install 'fljax[sweep]'`.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
