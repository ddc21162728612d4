"""A budget ends a run at the last round that it allows, neither earlier nor later."""

import json

import numpy as np
import pytest

from fljax.cli import main
from fljax.cli.arguments import load_experiment
from fljax.config import validate
from fljax.core.check import FljaxError
from fljax.core.types import SamplingLaw
from fljax.privacy.accounting import epsilon
from fljax.privacy.budget import affordable_rounds

DELTA = 1e-3
LAWS = [SamplingLaw("poisson", 0.3, 143), SamplingLaw("full", 1.0, 143), SamplingLaw("cyclic", 13 / 143, 143)]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.kind)
@pytest.mark.parametrize("budget", [0.5, 2.0, 5.0])
def test_bisection_finds_what_counting_finds(law, budget):
    spent = [epsilon(law, 3.0, t, DELTA) for t in range(1, 13)]
    assert affordable_rounds(law, 3.0, 12, DELTA, budget) == sum(e <= budget for e in spent)


def test_a_budget_that_lasts_changes_nothing():
    assert affordable_rounds(LAWS[0], 3.0, 12, DELTA, 100.0) == 12


@pytest.mark.parametrize("budget", [0.0, -1.0, np.nan])
def test_a_budget_is_positive(budget):
    with pytest.raises(FljaxError, match="budget="):
        affordable_rounds(LAWS[0], 3.0, 12, DELTA, budget)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"privacy": {"mechanism": "central_gaussian", "clip": 1.0, "budget": 2.0}}, "needs noise_multiplier"),
        (
            {
                "privacy": {"mechanism": "central_gaussian", "clip": 1.0, "noise_multiplier": 1.0, "budget": 2.0},
                "sweep": {"seeds": 2},
            },
            "single runs",
        ),
    ],
)
def test_contradictory_budgets_are_one_line(fields, says):
    with pytest.raises(FljaxError, match=says):
        validate(fields)


@pytest.mark.slow
def test_a_run_stops_before_the_round_that_would_exceed_its_budget(capsys, tmp_path):
    out = tmp_path / "out"
    flags = ["--privacy.epsilon", "None", "--privacy.noise-multiplier", "1.6", "--privacy.budget", "2.0"]
    assert main(["run", "digits_dp_fedavg", *flags, "--json", "--quiet", "--out", str(out)]) == 0
    said = json.loads(capsys.readouterr().out)
    done = said["privacy"]["rounds"]
    assert 0 < done < load_experiment("digits_dp_fedavg").rounds
    assert f"stopped after {done} of 100 rounds" in said["stopped"]
    with np.load(out / ".checkpoint.npz") as kept:  # the state is there, after exactly these rounds
        assert len(kept["history/participants"]) == done
        assert "state/params/dense_0/kernel" in kept.files
    law = SamplingLaw("truncated_poisson", 0.3, 143, 76)
    assert said["privacy"]["epsilon"] == pytest.approx(epsilon(law, 1.6, done, DELTA), rel=1e-9)
    assert epsilon(law, 1.6, done, DELTA) <= 2.0 < epsilon(law, 1.6, done + 1, DELTA)


def test_a_budget_below_one_round_is_refused(capsys, tmp_path):
    flags = ["--privacy.epsilon", "None", "--privacy.noise-multiplier", "1.6", "--privacy.budget", "0.1"]
    assert main(["run", "digits_dp_fedavg", *flags, "--quiet", "--out", str(tmp_path / "out")]) == 2
    assert "privacy.budget=0.1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
