"""From a sweep to its trials: every cell with every seed, in the order of the file, one group for each structure."""

import jax
import numpy as np
import pytest

from fljax.config import Experiment
from fljax.core.check import FljaxError
from fljax.sweep.grid import axes, expand, group


def sweep(**fields) -> Experiment:
    return Experiment(name="swept").replace(sweep=fields)


def test_trials_come_in_the_order_of_the_file_with_seeds_innermost():
    trials = expand(sweep(grid={"client.lr": [0.1, 0.2], "rounds": [5, 7]}, seeds=2))
    assert [t.number for t in trials] == list(range(8))
    assert [tuple(t.values.values()) for t in trials] == [
        (lr, rounds, seed) for lr in (0.1, 0.2) for rounds in (5, 7) for seed in (0, 1)
    ]
    for trial in trials:
        e = trial.experiment
        assert (e.client.lr, e.rounds, e.seed) == tuple(trial.values.values())
        assert e.sweep is None


def test_zipped_fields_change_together_as_the_first_axis():
    experiment = sweep(
        zip={"privacy.clip": [0.1, 1.0], "client.lr": [0.5, 0.05]},
        grid={"sampler.rate": [0.2, 0.3]},
    ).replace(**{"privacy.mechanism": "central_gaussian"})
    trials = expand(experiment)
    found = [(t.experiment.privacy.clip, t.experiment.client.lr, t.experiment.sampler.rate) for t in trials]
    assert found == [(0.1, 0.5, 0.2), (0.1, 0.5, 0.3), (1.0, 0.05, 0.2), (1.0, 0.05, 0.3)]
    assert axes(experiment.sweep) == ["privacy.clip", "sampler.rate"]


def test_a_sweep_without_axes_is_its_seeds():
    trials = expand(sweep(seeds=(4, 2)))
    assert [t.experiment.seed for t in trials] == [4, 2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"zip": {"client.lr": [0.1, 0.2], "rounds": [5]}}, "equally long"),
        ({"grid": {"client.lr": []}}, "client.lr of sweep.grid to hold at least one value"),
        ({"zip": {"client.lr": []}}, "client.lr of sweep.zip to hold at least one value"),
        ({"grid": {"client.lr": [[0.1, 0.2]]}}, "client.lr is a traced number"),
        ({"grid": {"client.lr": [0.1], "model.hidden": ["a"]}}, "in the cell client.lr = 0.1, model.hidden = a"),
        ({"grid": {"client.lr": [0.1]}, "zip": {"client.lr": [0.1]}}, "one axis"),
        ({"seeds": 0}, "sweep.seeds"),
        ({"seeds": (1, 1)}, "each once"),
        ({"seeds": (-1,)}, "seed"),
        ({"seeds": (2**31,)}, "seed"),
        ({"grid": {"client.rl": [0.1]}}, "unknown key client.rl"),
        ({"grid": {"client.lr": [-1.0]}}, "client.lr"),
        ({"grid": {"privacy.clip": [1.0]}}, "central_gaussian"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused_by_name(fields, message):
    with pytest.raises(FljaxError, match=message) as error:
        expand(sweep(**fields))
    assert "\n" not in str(error.value)


def test_an_experiment_without_a_sweep_is_not_expanded():
    with pytest.raises(FljaxError, match="holds no sweep"):
        expand(Experiment())


def test_numbers_and_seeds_share_a_program_and_structure_does_not():
    """Five fields that are traced make one group; each of the three structures makes one of its own."""
    traced = {"client.lr": [0.1, 0.2], "sampler.rate": [0.1, 0.2], "server.momentum": [0.0, 0.9]}
    assert [g.label for g in group(expand(sweep(grid=traced, seeds=2)))] == ["all trials"]

    groups = group(expand(sweep(grid={"client.lr": [0.1, 0.2], "model.name": ["logistic", "mlp"], "rounds": [5, 6]})))
    assert [g.label for g in groups] == [
        f"model.name={name}, rounds={rounds}" for name in ("logistic", "mlp") for rounds in (5, 6)
    ]
    for members in groups:
        assert [t.experiment.client.lr for t in members.trials] == [0.1, 0.2]
    numbers = sorted(t.number for g in groups for t in g.trials)
    assert numbers == list(range(8))


def test_every_seed_that_is_allowed_has_numbers_of_its_own():
    """A key holds 32 bits of a seed: larger ones would silently repeat the runs of smaller ones."""
    with pytest.raises(FljaxError, match="seed"):
        Experiment().replace(seed=2**32 + 5)
    top = Experiment().replace(seed=2**31 - 1).seed
    keys = [np.asarray(jax.random.key_data(jax.random.key(s))) for s in (0, 5, top)]
    assert len({tuple(k) for k in keys}) == 3
