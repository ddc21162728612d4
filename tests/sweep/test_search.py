"""Adaptive search: it finds what it looks for, is the same after a kill, grows, and refuses what it cannot do."""

import sys

import numpy as np
import pytest
from small_sweep import experiment, fake_runner

from fljax.core.check import FljaxError
from fljax.sweep import folder as sweep_folder
from fljax.sweep.folder import run_here
from fljax.sweep.search import search_into
from fljax.sweep.store import open_results

pytest.importorskip("optuna")

SEARCH = {
    "over": {"client.lr": {"low": 0.01, "high": 1.0, "scale": "log"}},
    "objectives": {"test_accuracy": "max"},
    "points": 12,
    "batch": 4,
}


def go(folder, plan):
    run_here(folder, plan, quiet=True)


def searched(**fields):
    return experiment({"seeds": 2, "search": {**SEARCH, **fields}})


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """(folder, how many shards ran) of searches whose trials cost nothing; accuracy grows with the learning rate."""
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setattr(sweep_folder, "make_runner", fake_runner(log))
    return tmp_path / "out", lambda: len(log.read_text().splitlines())


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_every_point_is_a_trial_for_every_seed_and_the_best_is_told(ran, sampler):
    out, _ = ran
    search_into(out, searched(sampler=sampler), go)
    results = open_results(out)
    lr = results.trials["client.lr"]
    assert len(lr) == 24 and len(set(lr)) == 12 and results.axes == ["client.lr"]
    assert lr.min() >= 0.01 and lr.max() <= 1.0
    (best,) = results.manifest["front"]
    assert best["point"]["client.lr"] == lr.max()
    np.testing.assert_allclose(best["objectives"]["test_accuracy"], lr.max() + 0.0005, atol=1e-5)


def test_what_was_told_changes_what_is_asked(ran):
    """The last batch of the optimiser lies higher than the first, which is random; accuracy grows with the rate."""
    out, _ = ran
    search_into(out, searched(sampler="tpe", points=32, batch=8), go)
    trials = open_results(out).trials
    by_number = [trials["client.lr"][trials["trial"] // 16 == batch].mean() for batch in range(4)]
    assert by_number[3] > 2 * by_number[0]


def test_a_killed_search_asks_for_the_same_points(ran, tmp_path):
    out, _ = ran
    search_into(out, searched(), go)
    calls = []

    def go_twice(folder, plan):
        calls.append(len(plan.shards))
        if len(calls) == 2:
            raise KeyboardInterrupt
        go(folder, plan)

    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        search_into(cut, searched(), go_twice)
    assert open_results(cut).missing == 8
    search_into(cut, searched(), go)
    whole, resumed = open_results(out), open_results(cut)
    for name, column in whole.trials.items():
        np.testing.assert_array_equal(column, resumed.trials[name], err_msg=name)
    assert whole.manifest["search"] == resumed.manifest["search"]


def test_a_second_start_runs_nothing_and_more_points_go_on(ran):
    out, count = ran
    search_into(out, searched(), go)
    done, before = count(), open_results(out).trials["client.lr"]
    search_into(out, searched(), go)
    assert count() == done
    search_into(out, searched(points=16), go)
    after = open_results(out)
    np.testing.assert_array_equal(after.trials["client.lr"][:24], before)
    assert len(after.trials["client.lr"]) == 32
    with pytest.raises(FljaxError, match="has changed since"):
        search_into(out, searched(batch=3), go)


def test_a_front_for_every_cell_of_the_other_axes(ran):
    out, _ = ran
    search = {**SEARCH, "objectives": {"test_accuracy": "max", "uplink_bytes": "min"}, "points": 4}
    grid = {"privacy.clip": [0.5, 1.0]}
    search_into(out, experiment({"grid": grid, "search": search}), go)
    results = open_results(out)
    assert len(results.trials["trial"]) == 8
    assert [entry["cell"]["privacy.clip"] for entry in results.manifest["front"]] == [0.5, 1.0]  # equal bytes: one each


def test_choices_may_be_anything_and_repeat(ran):
    out, _ = ran
    over = {"client.steps": {"choice": [1, 2]}, "model.name": {"choice": ["logistic", "mlp"]}}
    search_into(out, searched(over=over, points=8, sampler="random"), go)
    trials = open_results(out).trials
    assert len(trials["trial"]) <= 8 and set(trials["model.name"]) <= {"logistic", "mlp"}
    assert len({*zip(trials["client.steps"], trials["model.name"], trials["run.seed"], strict=True)}) == len(
        trials["trial"]
    )


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"over": {"client.rl": {"low": 0.1, "high": 1.0}}}, "unknown key client.rl"),
        ({"over": {"client.lr": {"low": -1.0, "high": 1.0}}}, "client.lr"),
        ({"over": {"seed": {"low": 0, "high": 9, "integer": True}}}, "sweep.seeds"),
    ],
)
def test_a_search_that_makes_no_sense_writes_nothing(ran, fields, says):
    out, _ = ran
    with pytest.raises(FljaxError, match=says) as error:
        search_into(out, searched(**fields), go)
    assert "\n" not in str(error.value) and not out.exists()


def test_an_unknown_objective_is_one_line(ran):
    out, _ = ran
    with pytest.raises(FljaxError, match=r"objective='test_acuracy'.*Perhaps you meant 'test_accuracy'"):
        search_into(out, searched(objectives={"test_acuracy": "max"}), go)


def test_without_optuna_the_extra_is_named(ran, monkeypatch):
    out, _ = ran
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(FljaxError, match=r"pip install 'fljax\[sweep\]'"):
        search_into(out, searched(), go)
    assert not out.exists()
