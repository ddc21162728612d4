"""A statement carries an epsilon exactly when one may be said, with everything it depends on."""

import json
import math

import pytest

from fljax.core.check import FljaxError
from fljax.core.transform import Noise
from fljax.core.types import SamplingLaw
from fljax.privacy import PrivacyStatement, epsilon, fixed_size_bound, make_event, state_privacy
from fljax.privacy.statement import CAVEATS, NO_POPULATION, PROVEN_FIXED_SIZE, TRUST, _round_up
from fljax.privacy.validity import VALUES_ONLY

LAW = SamplingLaw("poisson", 0.1, 100)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLJAX_CACHE", str(tmp_path))


def test_valid():
    statement = state_privacy(LAW, 1.0, 100, 1e-3)
    assert (statement.status, statement.reason, statement.unit) == ("valid", "", "user")
    assert statement.epsilon == epsilon(LAW, 1.0, 100, 1e-3) == pytest.approx(4.784, abs=1e-3)
    assert (statement.relation, statement.population) == ("add_or_remove_one", 100)
    assert set(CAVEATS) <= set(statement.caveats) and NO_POPULATION not in statement.caveats
    line = statement.sentence()
    assert "\n" not in line and "add_or_remove_one" in line and "Poisson" in line and "PLD" in line and "0.001" in line


def test_an_absent_delta_is_chosen_and_said():
    statement = state_privacy(LAW, 1.0, 100, None)
    assert statement.delta == pytest.approx(100**-1.1)
    assert statement.epsilon == pytest.approx(3.72, abs=0.01)
    assert any("population^-1.1 = 0.00631" in caveat for caveat in statement.caveats)


def test_an_unknown_population_is_said():
    assert NO_POPULATION in state_privacy(LAW._replace(population=None), 1.0, 10, 1e-5).caveats
    refused = state_privacy(LAW._replace(population=None), 1.0, 10, None)
    assert refused.status == "refused" and "delta=None" in refused.reason


@pytest.mark.parametrize("noise", [0, 0.0, None])
def test_no_noise(noise):
    statement = state_privacy(LAW, noise, 100, 1e-3, ["and a reason"])
    assert (statement.status, statement.epsilon, statement.reason) == ("none", None, "no noise was asked for")
    assert set(CAVEATS) <= set(statement.caveats)


def test_reasons_refuse():
    statement = state_privacy(LAW, 1.0, 100, 1e-3, ["The mask is private.", "Weights are not bounded."])
    assert (statement.status, statement.epsilon) == ("refused", None)
    assert statement.reason == "The mask is private. Weights are not bounded."
    assert "4.78" not in statement.sentence() and "The mask is private" in statement.sentence()


@pytest.mark.parametrize(
    ("law", "noise", "rounds", "delta", "reason"),
    [
        (LAW, 1.0, 10, 0.01, "delta=0.01 < 1/population"),
        (LAW, math.nan, 10, 1e-3, "noise_multiplier=nan"),
        (LAW, 1.0, 0, 1e-3, "rounds=0"),
        (SamplingLaw("shuffle", 0.1, 100), 1.0, 10, 1e-3, "sampler='shuffle'"),
        (LAW, 1e-4, 100, 1e-3, "noise_multiplier=0.0001 to give epsilon <= 1e5"),
    ],
)
def test_what_the_accountant_refuses_is_refused(law, noise, rounds, delta, reason):
    statement = state_privacy(law, noise, rounds, delta)
    assert (statement.status, statement.epsilon) == ("refused", None)
    assert reason in statement.reason and "\n" not in statement.sentence()
    json.dumps(statement.to_dict(), allow_nan=False)


def test_fixed_size_says_its_premise_and_the_proven_bound():
    law = SamplingLaw("fixed_size", 0.1, 100)
    statement = state_privacy(law, 3.0, 20, 1e-3)
    assert statement.relation == "replace_one" and "half the noise" in statement.sampler
    assert statement.epsilon == fixed_size_bound(law, 3.0, 20, 1e-3) > epsilon(law, 3.0, 20, 1e-3)
    assert PROVEN_FIXED_SIZE in statement.caveats
    everyone = state_privacy(SamplingLaw("fixed_size", 1.0, 100), 3.0, 20, 1e-3)  # both directions are the same
    assert PROVEN_FIXED_SIZE not in everyone.caveats
    assert everyone.epsilon == epsilon(SamplingLaw("fixed_size", 1.0, 100), 3.0, 20, 1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"status": "fine"}, "status='fine'"),
        ({"status": "refused", "reason": "r", "epsilon": 1.0}, "epsilon=1.0 to be None"),
        ({"status": "none", "reason": "r", "epsilon": 1.0}, "epsilon=1.0 to be None"),
        ({"status": "none", "reason": "r", "epsilon": math.inf}, "epsilon=inf to be None"),
        ({"status": "refused"}, "reason=''"),
        ({"status": "valid", "delta": 1e-5}, "epsilon=None to be a finite number"),
        ({"status": "valid", "delta": 1e-5, "epsilon": math.inf}, "epsilon=inf"),
        ({"status": "valid", "delta": 1e-5, "epsilon": math.nan}, "epsilon=nan"),
        ({"status": "valid", "epsilon": 1.0}, "delta=None"),
        ({"status": "values_only", "epsilon": 1.0, "delta": 1e-5}, "reason=''"),
    ],
)
def test_contradictions_cannot_be_built(values, message):
    with pytest.raises(FljaxError, match=message):
        PrivacyStatement(**values)


def test_values_only_never_reads_like_a_guarantee():
    statement = PrivacyStatement("values_only", VALUES_ONLY, epsilon=1.0, delta=1e-5)
    assert statement.sentence().startswith("ε = 1 bounds the perturbed values conditional on the transmitted mask; ")
    assert "no (ε,δ)-DP guarantee holds for the round" in statement.sentence() and "-DP per" not in statement.sentence()


def test_values_only_is_never_stated_as_valid():
    statement = state_privacy(LAW, 1.0, 100, 1e-3, values_only=VALUES_ONLY)
    assert (statement.status, statement.reason) == ("values_only", VALUES_ONLY)
    assert statement.epsilon == epsilon(LAW, 1.0, 100, 1e-3)
    refused = state_privacy(LAW, 1.0, 100, 1e-3, ["The mask is private."], VALUES_ONLY)
    assert (refused.status, refused.epsilon) == ("refused", None)


def test_every_statement_warns_of_what_is_not_covered():
    """Random numbers that an attacker might know, metrics without noise, and the choice of the best cell."""
    for statement in (
        state_privacy(LAW, 1.0, 10, 1e-3),
        state_privacy(LAW, 0, 10, 1e-3),
        PrivacyStatement("none", "r"),
    ):
        said = " ".join(statement.caveats)
        assert "random numbers" in said and "not hardened" in said
        assert "Metrics" in said and "not covered" in said
        assert "sweep" in said and "not counted" in said


SHARES = (("dimension", 64.0), ("l2", 1003.0), ("l1", 8024.0), ("unit", 1000.0), ("shares", 8.0))


@pytest.mark.parametrize(
    ("law", "noise", "says"),
    [
        (LAW, Noise("gaussian", 2.0), "The server is trusted"),
        (LAW, Noise("gaussian", 40.0, "local"), "The server need not be trusted"),
        (LAW, Noise("pure", 20.0, "local"), "The server need not be trusted"),
        (SamplingLaw("fixed_size", 0.1, 100), Noise("skellam", 4.0, "distributed", SHARES), "at least 8 clients"),
    ],
)
def test_a_statement_says_whom_its_clients_trust(law, noise, says):
    statement = state_privacy(law, noise, 10, 1e-3)
    assert (statement.status, statement.trust, statement.unit) == ("valid", noise.trust, "user")
    assert sum(says in caveat for caveat in statement.caveats) == 1
    others = [words[:24] for trust, words in TRUST.items() if trust != noise.trust]
    assert not any(caveat.startswith(tuple(others)) for caveat in statement.caveats)


@pytest.mark.parametrize("law", [LAW, SamplingLaw("truncated_poisson", 0.1, 100, 30)], ids=lambda law: law.kind)
def test_a_cohort_that_stands_for_a_larger_one_is_that_of_the_larger_population(law):
    """A tenth of the cohort: epsilon, delta and population are those of 1,000 clients, and the statement says so."""
    noise = Noise("gaussian", 1.0, "central", (("noise_scale", 0.1),))
    large = SamplingLaw("poisson", 0.1, 1000)
    statement = state_privacy(law, noise, 100, None)
    assert statement.epsilon == epsilon(large, 1.0, 100, 1000**-1.1) == state_privacy(large, 1.0, 100, None).epsilon
    assert (statement.population, statement.delta) == (1000, pytest.approx(1000**-1.1))
    (said,) = [c for c in statement.caveats if "stand for" in c]
    assert "simulated population of 1000 clients and not of the 100" in said and "10 times as large" in said
    assert "simulated population" in statement.sampler
    assert not any("stand for" in c for c in state_privacy(large, 1.0, 100, None).caveats)
    assert state_privacy(law, noise, 100, 2e-3).status == "refused"  # above 1 / 1000


@pytest.mark.parametrize("kind", ["fixed_size", "cyclic", "full"])
def test_only_poisson_cohorts_can_stand_for_larger_ones(kind):
    law = SamplingLaw(kind, 1.0 if kind == "full" else 0.1, 100)
    refused = state_privacy(law, Noise("gaussian", 1.0, "central", (("noise_scale", 0.1),)), 100, 1e-4)
    assert refused.status == "refused" and f"noise_scale=0.1 to be 1 for sampler '{kind}'" in refused.reason


def test_the_event_is_kept_beside_the_numbers():
    statement = state_privacy(LAW, 1.0, 10, 1e-3)
    assert statement.event == make_event(LAW, 1.0, 10) and "event" not in statement.to_dict()
    assert state_privacy(LAW, 1.0, 10, 0.5).event is None


def test_to_dict_is_json():
    values = state_privacy(LAW, 1.0, 10, 1e-3).to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["status"] == "valid" and isinstance(values["caveats"], list)


@pytest.mark.parametrize("value", [1.82824, 0.00123451, 9.9999, 12345.6, 0.1, 7.0, 2.0000001])
def test_epsilon_is_rounded_up(value):
    assert value * (1 - 1e-9) <= float(_round_up(value)) <= value * 1.001
