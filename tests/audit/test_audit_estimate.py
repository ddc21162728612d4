"""Epsilon from scores: closed forms, published numbers, a pure Gaussian mechanism, and bounds that do not overclaim."""

import sys
from functools import cache

import dp_accounting as dp
import numpy as np
import pytest
from scipy import stats

from fljax.audit.estimate import epsilon_two_gaussians, estimate_epsilon, load_auditor, lower_bounds, proven_sd
from fljax.audit.scores import normal_scores, regression_scores
from fljax.core.check import FljaxError

DELTA = 1e-5


# ---- two Gaussians ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [2000, 10**6])
def test_published_epsilon_of_a_unit_shift(dimension):
    """2.317789: one_shot_epe of google-research/federated, mean = sd = d^-1/2 against N(0, 1/d)."""
    sd = dimension**-0.5
    assert epsilon_two_gaussians(0.0, sd, sd, sd, 1e-2) == pytest.approx(2.317789, abs=1e-6)


@pytest.mark.parametrize("shift", [0.1, 0.25, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("delta", [1e-10, 1e-5, 1e-2])
def test_equal_deviations_are_the_analytic_gaussian_mechanism(shift, delta):
    want = dp.get_epsilon_gaussian(1 / shift, delta)
    assert epsilon_two_gaussians(0.0, 1.0, shift, 1.0, delta) == pytest.approx(want, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    ("mean", "sd"), [(1.0, 1.3), (1.0, 0.7), (0.0, 1.5), (-2.0, 0.9), (0.3, 1.0 + 1e-9), (0.0, 0.5), (2.0, 3.0)]
)
def test_unequal_deviations_by_numerical_integration(mean, sd):
    """At the epsilon that comes out, the larger of both hockey-stick divergences, summed on a grid, is delta."""
    epsilon = epsilon_two_gaussians(0.0, 1.0, mean, sd, DELTA)
    x = np.linspace(-40, 40, 2_000_001)
    p, q = stats.norm.pdf(x), stats.norm.pdf(x, mean, sd)
    deltas = [np.sum(np.maximum(a - np.exp(epsilon) * b, 0)) * (x[1] - x[0]) for a, b in ((p, q), (q, p))]
    assert max(deltas) == pytest.approx(DELTA, rel=1e-3)


def test_identical_distributions_have_epsilon_zero_and_delta_is_monotone():
    assert epsilon_two_gaussians(0.0, 1.0, 0.0, 1.0, DELTA) == 0
    values = [epsilon_two_gaussians(0.0, 1.0, 1.0, 1.2, delta) for delta in (1e-12, 1e-8, 1e-5, 1e-3, 1e-1)]
    assert values == sorted(values, reverse=True) and len(set(values)) == 5


@pytest.mark.parametrize(("scale", "offset"), [(1e-3, 0.0), (7.0, -3.0), (1e4, 2e5)])
def test_affine_maps_change_nothing(scale, offset):
    plain = epsilon_two_gaussians(0.0, 1.0, 0.8, 1.1, DELTA)
    moved = epsilon_two_gaussians(offset, scale, offset + 0.8 * scale, 1.1 * scale, DELTA)
    assert moved == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("bad", [(0.0, 0.0, 1.0, 1.0, 0.1), (0.0, 1.0, 1.0, -1.0, 0.1), (0.0, 1.0, 1.0, 1.0, 1.0)])
def test_impossible_distributions_are_refused(bad):
    with pytest.raises(FljaxError, match="Expected"):
        epsilon_two_gaussians(*bad)


# ---- the pure mechanism ----------------------------------------------------------------------------------------------

DIMENSION, COUNT, RUNS = 4096, 300, 24


@cache
def directions():
    """[k, d] unit vectors, and their inner products."""
    c = np.random.default_rng(0).normal(size=(COUNT, DIMENSION))
    c /= np.linalg.norm(c, axis=1, keepdims=True)
    return c, c @ c.T


@cache
def played(sigma: float, out: float = 0.0):
    """[(scores, signs)] of Gaussian mechanisms of noise sigma on the sum of the canaries, without a round."""
    c, gram = directions()
    rng, seen = np.random.default_rng(1), []
    for _ in range(RUNS):
        signs = np.where(rng.random(COUNT) < 0.5, 1.0, out)
        change = signs @ c + sigma * rng.normal(size=DIMENSION)
        seen.append((regression_scores(gram, c @ change / np.linalg.norm(change), DIMENSION), signs))
    return seen


@pytest.mark.parametrize(("sigma", "true"), [(4.0, 0.9265), (2.0, 1.9914), (1.0, 4.3775), (0.5, 9.9974)])
def test_estimate_of_a_gaussian_mechanism(sigma, true):
    """Mean of 24 runs within 12 % (25 % for the smallest, where the error of one run is 32 %): over 3 standard errors.

    Canaries cost a share k/d = 7 % of the signal's variance, so that the estimate is a little low.
    """
    assert dp.get_epsilon_gaussian(sigma, DELTA) == pytest.approx(true, rel=1e-3)
    found = np.array([estimate_epsilon(*run, DELTA)[:2] for run in played(sigma)])
    assert abs(found[:, 0].mean() / true - 1) < (0.25 if sigma == 4 else 0.12)
    assert np.all(found[:, 1] < true) and np.all(found[:, 1] < found[:, 0])


def test_opposite_canaries_are_twice_as_far_apart():
    """Replacing a client by its opposite is a Gaussian mechanism of half the noise: true epsilon 4.38 at sigma = 2."""
    found = [estimate_epsilon(*run, DELTA).epsilon for run in played(2.0, -1.0)]
    assert abs(np.mean(found) / dp.get_epsilon_gaussian(1.0, DELTA) - 1) < 0.10


def test_canaries_without_a_trace_have_epsilon_near_zero():
    """Scores of those that are out, called in: the low end is 0, the estimate what 3600 normals leave of it."""
    scores = np.concatenate([scores[signs == 0] for scores, signs in played(1.0)])
    found = estimate_epsilon(scores, np.ones(len(scores)), 1e-2)
    assert found.epsilon < 0.1 and found.low == 0.0
    assert stats.kstest(scores, "norm").pvalue > 1e-6


@pytest.mark.parametrize(("sd", "count", "want"), [(1.05, 250, 1.0), (0.95, 250, 1.0), (1.4, 20, 1.0)])
def test_a_spread_within_chance_is_taken_as_one(sd, count, want):
    assert proven_sd(sd, count) == want


def test_a_spread_beyond_chance_counts_as_far_as_it_is_proven():
    """The end of the interval puts the measured value at its 99.5 % or 0.5 % quantile."""
    for sd, quantile in ((2.0, 0.995), (0.5, 0.005)):
        taken = proven_sd(sd, 100)
        assert stats.chi2.cdf(99 * (sd / taken) ** 2, 99) == pytest.approx(quantile)
    normals = 2.0 + 1.5 * stats.norm.ppf((np.arange(4000) + 0.5) / 4000)
    want = epsilon_two_gaussians(0.0, 1.0, 2.0, 1.5, DELTA)
    assert estimate_epsilon(normals, np.ones(4000), DELTA).epsilon == pytest.approx(want, rel=0.06)


def test_the_estimate_uses_only_canaries_that_are_in():
    scores, signs = np.array([1.0, 2.0, 3.0, -9.0]), np.array([1.0, 1.0, 1.0, 0.0])
    assert estimate_epsilon(scores, signs, DELTA) == estimate_epsilon(scores[:3], signs[:3], DELTA)
    with pytest.raises(FljaxError, match="at least 2"):
        estimate_epsilon(scores, np.zeros(4), DELTA)


# ---- certified bounds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "one_run", "fdp"), [(0, 0, 0), (1, 1.13346, 2.164749), (2, 2.311945, 4.7218075), (4, 4.395568, 9.133752)]
)
def test_published_bounds_of_normal_quantiles(shift, one_run, fdp):
    """The numbers of jax_privacy's own tests: 10 000 quantiles each, delta 1e-6, significance 0.05."""
    n = 10_000
    quantiles = stats.norm.ppf((np.arange(n) + 0.5) / n)
    scores, signs = np.concatenate([quantiles + shift, quantiles]), np.repeat([1.0, 0.0], n)
    assert lower_bounds(scores, signs, 1e-6, gaussian=False).lower == pytest.approx(one_run, abs=2e-4)
    found = lower_bounds(scores, signs, 1e-6, gaussian=True)
    assert found.name == "one_run_fdp" and found.lower == pytest.approx(fdp, abs=2e-4)


def test_bounds_stay_below_the_truth_and_come_near():
    """20 sound runs: a bound above epsilon has probability 0.05 at most in each; more than 7 of 20 with 1e-5."""
    true = dp.get_epsilon_gaussian(1.0, DELTA)
    runs = played(1.0)[:20]
    tested = {gaussian: [lower_bounds(*run, DELTA, gaussian=gaussian).lower for run in runs] for gaussian in (0, 1)}
    for lower in tested.values():
        assert np.sum(np.array(lower) > true) <= 7
    assert np.mean(tested[True]) > np.mean(tested[False]) > 0.8, "the table of the sources has 1.66 and 1.24"


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_privacy.auditing", None)
    with pytest.raises(FljaxError, match=r"pip install 'fljax\[dp\]'"):
        load_auditor()


# ---- normal scores ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freedom", [5, 50, 2000])
def test_normal_scores_have_the_tail_of_a_cosine(freedom):
    """P(cosine of two random directions in freedom + 1 dimensions > r) is a beta tail, and the score's normal tail."""
    r = np.array([0.01, 0.1, 0.3, 0.6, 0.9])
    tail = stats.beta.sf((1 + r) / 2, freedom / 2, freedom / 2)
    score = normal_scores(r * np.sqrt(freedom / (1 - r**2)), freedom)
    inside = tail > 1e-280
    np.testing.assert_allclose(stats.norm.sf(score[inside]), tail[inside], rtol=1e-8)
    np.testing.assert_allclose(normal_scores(-score, freedom), -normal_scores(score, freedom))
    assert np.all(np.diff(score) > 0) and np.all(np.isfinite(score))
