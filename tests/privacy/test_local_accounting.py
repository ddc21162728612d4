"""Epsilon of local randomisers: against closed forms, against dp_accounting's own composition, and what is stated."""

import math
from functools import cache

import numpy as np
import pytest
from scipy.special import gammaln
from scipy.stats import norm

from fljax.core.check import FljaxError
from fljax.core.transform import Noise
from fljax.core.types import SamplingLaw
from fljax.privacy import calibrate, epsilon, epsilon_series, make_event, state_privacy

FULL = SamplingLaw("full", 1.0, 1000)
DELTA = 1e-5
GRID = 1e-4


def pure(upload: float) -> Noise:
    return Noise("pure", 1 / upload, "local")


def gaussian(z: float) -> Noise:
    return Noise("gaussian", z, "local")


def responses(upload: float, uploads: int, delta: float) -> float:
    """Exact epsilon of so many randomised responses on a bit that never changes, by bisection.

    delta(e) = sum_j binom(T, j) max(0, P^j Q^(T-j) - exp(e) Q^j P^(T-j)), P = 1 - Q = e^upload / (1 + e^upload): the
    optimal composition of pure mechanisms, Kairouz, Oh, Viswanath, arXiv 1311.0776.
    """
    j = np.arange(uploads + 1)
    log_p, log_q = -np.log1p(np.exp(-upload)), -upload - np.log1p(np.exp(-upload))
    log_count = gammaln(uploads + 1) - gammaln(j + 1) - gammaln(uploads - j + 1)
    one = log_count + j * log_p + (uploads - j) * log_q
    other = log_count + j * log_q + (uploads - j) * log_p

    def too_small(e):
        return np.maximum(np.exp(one) - np.exp(e + other), 0).sum() > delta

    low, high = 0.0, uploads * upload
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if too_small(middle) else (low, middle)
    return high


@pytest.mark.parametrize("upload", [0.1, 1.0, 4.0])
def test_one_upload_spends_its_own_epsilon(upload):
    """Up to the grid of losses, which rounds up, and to delta, which is spent too."""
    got = epsilon(FULL, pure(upload), 1, DELTA)
    exact = responses(upload, 1, DELTA)
    assert exact * (1 - 1e-9) <= got <= upload + 2 * GRID
    assert exact == pytest.approx(upload, abs=1e-4)


@pytest.mark.parametrize(("upload", "uploads"), [(0.05, 400), (0.5, 10), (0.5, 100), (2.0, 5), (3.0, 30)])
def test_many_uploads_compose_as_randomised_responses_do(upload, uploads):
    """Never below the closed form, 1 % above it at the most, and never above plain addition."""
    got, exact = epsilon(FULL, pure(upload), uploads, DELTA), responses(upload, uploads, DELTA)
    assert exact * (1 - 1e-9) <= got <= exact * 1.01 + 2 * GRID
    assert got <= uploads * upload + 2 * GRID


def test_the_event_is_that_of_dp_accounting():
    import dp_accounting as dp

    event = make_event(FULL, pure(1.5), 20)
    flip = 2 / (math.exp(1.5) + 1)
    assert event.dp_event.count == 20 and event.dp_event.event.num_buckets == 2
    assert event.dp_event.event.noise_parameter == pytest.approx(flip, rel=1e-12)
    accountant = dp.pld.PLDAccountant(dp.NeighboringRelation.REPLACE_ONE)
    for _ in range(20):  # one by one: version 0.6.0 ignores the count of a repeated randomised response
        accountant.compose(dp.RandomizedResponseDpEvent(flip, 2))
    assert epsilon(FULL, pure(1.5), 20, DELTA) == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-6)


@cache
def gaussian_epsilon(ratio: float, delta: float) -> float:
    """Exact epsilon of a Gaussian whose sensitivity is ``ratio`` standard deviations, Balle and Wang, 2018."""
    low, high = 0.0, 500.0
    for _ in range(80):
        e = (low + high) / 2
        spent = norm.cdf(ratio / 2 - e / ratio) - math.exp(e + norm.logcdf(-ratio / 2 - e / ratio))
        low, high = (e, high) if spent > delta else (low, e)
    return high


def test_gaussian_uploads_move_by_twice_the_bound():
    """z = 2 locally is what z = 1 is centrally, 4.377178; ten uploads are one with noise of 1 / sqrt(10)."""
    assert epsilon(FULL, gaussian(2.0), 1, DELTA) == pytest.approx(4.377178, rel=1e-4)
    assert epsilon(FULL, gaussian(8.0), 1, 1e-6) == pytest.approx(1.060702, rel=1e-4)
    assert epsilon(FULL, gaussian(20.0), 100, DELTA) == pytest.approx(4.377178, rel=1e-4)
    for z, uploads in ((3.0, 10), (1.0, 1), (40.0, 25)):
        exact = gaussian_epsilon(2 * math.sqrt(uploads) / z, DELTA)
        assert epsilon(FULL, gaussian(z), uploads, DELTA) == pytest.approx(exact, rel=2e-4)


@pytest.mark.parametrize("noise", [pure(0.7), gaussian(9.0)], ids=["pure", "gaussian"])
def test_sampling_amplifies_nothing_and_only_turns_count(noise):
    """The server sees who sends: a Poisson sampler of rate 0.01 costs what everybody in every round costs."""
    full = epsilon(FULL, noise, 12, DELTA)
    assert epsilon(SamplingLaw("poisson", 0.01, 1000), noise, 12, DELTA) == full
    assert epsilon(SamplingLaw("fixed_size", 0.1, 1000), noise, 12, DELTA) == full
    assert epsilon(SamplingLaw("cyclic", 0.1, 1000), noise, 120, DELTA) == full
    assert epsilon(SamplingLaw("cyclic", 0.1, 1000), noise, 121, DELTA) > full


@pytest.mark.parametrize("template", [pure(1.0), gaussian(1.0)], ids=["pure", "gaussian"])
@pytest.mark.parametrize(("target", "law", "rounds"), [(8.0, FULL, 10), (1.0, SamplingLaw("cyclic", 0.2, 1000), 23)])
def test_calibration_never_overshoots_and_wastes_little(template, target, law, rounds):
    z = calibrate(law, target, rounds, DELTA, template)
    spent = epsilon(law, template._replace(multiplier=z), rounds, DELTA)
    assert 0.98 * target < spent <= target
    assert epsilon(law, template._replace(multiplier=0.99 * z), rounds, DELTA) > target


def test_one_upload_may_spend_the_whole_target():
    assert 1 / calibrate(FULL, 2.0, 1, DELTA, pure(1.0)) == pytest.approx(2.0, rel=5e-3)


@pytest.mark.parametrize(("noise", "mechanism"), [(pure(0.4), "pure"), (gaussian(9.0), "gaussian")])
def test_the_statement_names_trust_unit_and_relation(noise, mechanism):
    stated = state_privacy(SamplingLaw("cyclic", 0.1, 1000), noise, 35, DELTA)
    assert (stated.status, stated.trust, stated.unit, stated.mechanism) == ("valid", "local", "user", mechanism)
    assert stated.relation == "replace_one" and stated.rounds == 35
    assert "at most 4 of them, no amplification by sampling" in stated.sampler
    assert stated.epsilon == epsilon(FULL, noise, 4, DELTA)
    assert "per user (replace_one; every client noises its own upload" in stated.sentence()
    reason = state_privacy(FULL, noise, 10, DELTA, values_only="masks are not covered").status
    assert reason == "values_only"


def test_no_noise_is_no_privacy_and_hopeless_noise_is_refused():
    assert state_privacy(FULL, Noise("pure", 0.0, "local"), 10, DELTA).status == "none"
    assert epsilon(FULL, Noise("pure", 0.0, "local"), 10, DELTA) == math.inf
    assert state_privacy(FULL, pure(1e5), 10, DELTA).status == "refused"
    with pytest.raises(FljaxError, match="Expected delta"):
        epsilon(FULL, pure(1.0), 1, 0.01)


def test_the_live_series_ends_at_the_coarse_epsilon_and_never_falls():
    for noise in (pure(0.5), gaussian(9.0)):
        series = epsilon_series(FULL, noise, 30, DELTA)
        final = epsilon(FULL, noise, 30, DELTA)
        assert np.all(np.diff(series) >= 0)
        assert final * (1 - 1e-9) <= series[-1] <= 1.15 * final
