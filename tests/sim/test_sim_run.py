"""Whole runs: interrupted and resumed, and as members of a sweep."""

import numpy as np
import pytest
import small_run
import tiny

from fljax.core.check import FljaxError
from fljax.sim import checkpoint
from fljax.sim.run import run
from fljax.sweep.run import run_sweep

SEED = 1


class Stopped(Exception):
    """A run that was killed."""


@pytest.fixture(scope="module")
def whole():
    """One run from beginning to end."""
    return run(small_run.experiment(seed=SEED), quiet=True)


@pytest.fixture(scope="module")
def sweep():
    """Two learning rates x two sampling rates x two seeds, three trials at a time: the last batch is filled up."""
    grid = {"grid": {"client.lr": [0.3, 0.1], "sampler.rate": [0.6, 0.2]}, "seeds": [0, SEED]}
    return run_sweep(small_run.experiment(**{"sweep": grid, "perf.trials_per_batch": 3}), quiet=True)


def test_a_run_is_its_parts(whole):
    """What ``run`` gives is what driving its call by hand gives: history, and the deployed parameters."""
    by_hand = small_run.drive_it(seed=SEED)
    measured = {name: v for name, v in whole.history.items() if name != "epsilon_spent"}
    assert small_run.same_history(measured, by_hand.history)
    assert tiny.same_bits(whole.params, by_hand.state.params)
    assert whole.final["test_accuracy"] == by_hand.history["test_accuracy"][-1]


def test_a_run_that_is_killed_and_resumed_is_the_same_run(whole, tmp_path, monkeypatch):
    """Killed right after the second checkpoint; resumed with another number of rounds per call."""
    save = checkpoint.save

    def save_and_die(path, running, header):
        save(path, running, header)
        if running.done == 6:
            raise Stopped

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    monkeypatch.setattr("fljax.sim.run.KEEP_EVERY_S", 0.0)
    with pytest.raises(Stopped):
        run(small_run.experiment(seed=SEED), out=tmp_path, quiet=True)
    monkeypatch.undo()
    other_calls = small_run.experiment(**{"seed": SEED, "perf.rounds_per_call": 2})
    resumed = run(other_calls, out=tmp_path, resume=True, quiet=True)
    assert tiny.same_bits(resumed.params, whole.params)
    assert small_run.same_history(resumed.history, whole.history)

    with pytest.raises(FljaxError, match="another experiment"):
        run(small_run.experiment(seed=SEED + 1), out=tmp_path, resume=True, quiet=True)


def test_members_of_a_sweep_are_single_runs(sweep, whole):
    """Exactly the same cohorts and counts; other metrics to 1e-4, because the batched program rounds differently."""
    assert [t.values for t in sweep.trials] == [
        {"client.lr": lr, "sampler.rate": rate, "run.seed": seed}
        for lr in (0.3, 0.1)
        for rate in (0.6, 0.2)
        for seed in (0, SEED)
    ]
    for trial in sweep.trials:
        single = small_run.drive_it(seed=trial.experiment.seed, numbers=trial.experiment.hparams()).history
        member = {name: values[trial.number] for name, values in sweep.history.items()}
        spent = member.pop("epsilon_spent")
        assert member.keys() == single.keys() and np.all(np.diff(spent) >= 0) and spent[0] > 0
        for name in ("contacted", "answered", "participants", "uplink_values", "downlink_values"):
            np.testing.assert_array_equal(member[name], single[name])
        for name, values in single.items():
            np.testing.assert_allclose(member[name], values, rtol=1e-4, atol=1e-5, equal_nan=True, err_msg=name)
    for name, values in whole.history.items():
        np.testing.assert_allclose(sweep.history[name][1], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_trials_of_one_structure_share_one_program(sweep):
    assert [(t.label, t.trials) for t in sweep.timings] == [("all trials", 8)]


def test_seeds_and_numbers_make_different_trials(sweep):
    ends = [row[-1] for row in sweep.history["test_loss"]]
    assert len(set(ends)) == len(ends)
