"""The best of several trials: between what it truly costs, computed exactly for small mechanisms, and what RDP says."""

import math

import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.core.transform import Noise
from fljax.core.types import SamplingLaw
from fljax.privacy import selection, selection_epsilon
from fljax.privacy.accounting import stated_epsilon
from fljax.privacy.events import Event
from fljax.privacy.mechanisms import make_event
from fljax.privacy.selection import best_of, select_event

LAW = SamplingLaw("poisson", 0.1, 100)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLJAX_CACHE", str(tmp_path))


def hockey_stick(p, q, epsilon):
    return np.maximum(p - math.exp(epsilon) * q, 0).sum()


def profile_of(p, q):
    return lambda at: np.array([max(hockey_stick(p, q, e), hockey_stick(q, p, e)) for e in np.atleast_1d(at)])


def smallest_epsilon(profile, delta):
    low, high = 0.0, 50.0
    if profile(low)[0] <= delta:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if profile(middle)[0] <= delta else (middle, high)
    return high


def best_output(p, trials):
    """The exact law of the best of a geometric number of draws of p, the last outcome being the best."""
    stop = 1 / trials
    reached = np.concatenate([[0.0], np.cumsum(p)])
    return np.diff(stop * reached / (1 - (1 - stop) * reached))


@pytest.mark.parametrize("trials", [1.5, 4.0, 30.0])
def test_the_bound_holds_for_the_exact_law_of_small_mechanisms(trials):
    """2 x 60 random pairs on 8 ordered outcomes: Laplace-like ones, and ones with outcomes of infinite loss."""
    rng = np.random.default_rng(0)
    tightest = math.inf
    for number in range(120):
        p = rng.dirichlet(np.full(8, 0.7))
        q = p * np.exp(rng.uniform(-1, 1, 8) * rng.choice([0.1, 0.5, 2.0]))
        if number % 2:
            q[rng.integers(8)] = 0.0
        q /= q.sum()
        for delta in (1e-6, 1e-2, 0.3):
            one = profile_of(p, q)
            strict = smallest_epsilon(one, delta / trials)
            if strict > 49:
                continue
            truth = smallest_epsilon(profile_of(best_output(p, trials), best_output(q, trials)), delta)
            bound = best_of(strict, one, trials)
            assert truth <= bound + 1e-9
            tightest = min(tightest, bound - truth)
    assert tightest < 0.15  # somewhere it is sharp, so that a smaller bound would fail


def test_a_worst_case_is_met():
    """Pure epsilon, with all that is likely under one neighbour at the top: the bound has a slack of less than 25 %."""
    eps, trials = 1.0, 50.0
    top = 1e-3
    p = np.array([1 - math.e * top, math.e * top])
    q = np.array([1 - top, top])
    truth = smallest_epsilon(profile_of(best_output(p, trials), best_output(q, trials)), 1e-9)
    bound = best_of(eps, profile_of(p, q), trials)
    assert truth <= bound <= eps + 2 * math.log(trials)


@pytest.mark.parametrize(
    ("law", "z", "rounds", "delta"),
    [
        (LAW, 1.674, 100, 1e-3),
        (SamplingLaw("full", 1.0), 4.0, 1, 1e-5),
        (SamplingLaw("poisson", 0.01), 1.0, 1000, 1e-5),
    ],
)
def test_it_stays_below_repeat_and_select_of_google(law, z, rounds, delta):
    """Renyi divergences lose, privacy profiles do not: the same procedure by dp_accounting is 10 to 50 % larger."""
    import dp_accounting as dp

    event = make_event(law, z, rounds)
    for trials in (2, 20):
        repeated = dp.dp_event.RepeatAndSelectDpEvent(event.dp_event, trials, 1.0)  # shape 1: geometric
        loose = dp.rdp.RdpAccountant().compose(repeated).get_epsilon(delta)
        tight = selection_epsilon(law, z, rounds, delta, trials)
        assert 0.5 * loose < tight < loose


DETAIL = (("dimension", 64.0), ("l2", 1003.0), ("l1", 8024.0), ("unit", 1000.0), ("shares", 10.0))


EVENTS = pytest.mark.parametrize(
    ("law", "noise"),
    [
        (LAW, Noise("gaussian", 2.0)),
        (SamplingLaw("truncated_poisson", 0.1, 100, 26), Noise("gaussian", 2.0)),
        (SamplingLaw("fixed_size", 0.1, 100), Noise("gaussian", 4.0)),
        (SamplingLaw("cyclic", 0.1, 100), Noise("gaussian", 2.0)),
        (SamplingLaw("full", 1.0, 100), Noise("pure", 20.0, "local")),
        (SamplingLaw("fixed_size", 0.1, 100), Noise("skellam", 4.0, "distributed", DETAIL)),
    ],
    ids=lambda v: v.kind,
)


@EVENTS
def test_the_bound_starts_from_one_trial_at_delta_over_k(law, noise, monkeypatch):
    """What ``best_of`` is given: epsilon of a trial at delta / K, and its profile, which is delta / K there."""
    given = {}
    monkeypatch.setattr(selection, "best_of", lambda strict, profile, trials: given.update(at=strict, d=profile) or 9.0)
    assert selection_epsilon(law, noise, 20, 1e-3, 50) == 9.0
    assert given["at"] == pytest.approx(stated_epsilon(law, noise, 20, 1e-3 / 50), rel=3e-2)
    assert float(given["d"](np.array([given["at"]]))[0]) == pytest.approx(1e-3 / 50, rel=1e-2)


@EVENTS
def test_every_event_has_a_price_that_rises_with_the_trials(law, noise):
    one = stated_epsilon(law, noise, 20, 1e-3)
    costs = [selection_epsilon(law, noise, 20, 1e-3, k) for k in (1, 2, 100)]
    assert costs[0] == one and costs == sorted(costs) and costs[1] > one
    assert costs[-1] < 6 * one + 2 * math.log(100)


def test_truncation_that_never_happens_costs_nothing():
    """Below 1e-9 a round: the event with the cut costs what the one without costs, to the grid."""
    cut = selection_epsilon(SamplingLaw("truncated_poisson", 0.1, 100, 40), 2.0, 20, 1e-3, 10)
    assert cut == pytest.approx(selection_epsilon(LAW, 2.0, 20, 1e-3, 10), rel=1e-2)


def test_no_noise_is_infinite():
    assert selection_epsilon(LAW, 0.0, 10, 1e-3, 5) == math.inf
    assert select_event(Event("full", "add_or_remove_one", "all", 1.0, 0.0, 3), 1e-3, 1) == math.inf


@pytest.mark.parametrize("trials", [0, 0.5, -3, math.nan, math.inf])
def test_a_number_of_trials_is_at_least_one(trials):
    with pytest.raises(FljaxError, match=r"trials=.*>= 1") as caught:
        selection_epsilon(LAW, 2.0, 10, 1e-3, trials)
    assert "\n" not in str(caught.value)


def test_delta_is_checked():
    with pytest.raises(FljaxError, match=r"delta=0\.1 < 1/population"):
        selection_epsilon(LAW, 2.0, 10, 0.1, 5)
