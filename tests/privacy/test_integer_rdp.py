"""Renyi curves of integer noise: published numbers, exact divergences by brute force, other accountants."""

import numpy as np
import pytest
from scipy.special import comb, ive, logsumexp

from fljax.core.check import FljaxError
from fljax.core.transform import Noise
from fljax.core.types import Hparams, SamplingLaw
from fljax.privacy import integer_rdp as rdp
from fljax.privacy.accounting import epsilon, epsilon_series
from fljax.privacy.calibration import calibrate
from fljax.privacy.distributed import distributed_noise
from fljax.privacy.integers import rounded_bound
from fljax.privacy.mechanisms import make_event
from fljax.server.sampler import fixed_size

ORDERS = np.array(rdp.ORDERS, float)


def curves(scale, clients, z, dimension):
    """The two curves for a client added or removed: sensitivities not doubled."""
    l2 = rounded_bound(scale, dimension)
    l1 = l2 * min(dimension**0.5, l2)
    skellam = lambda a: rdp.skellam_rdp(l2, l1, (z * scale) ** 2, a)  # noqa: E731
    std = z * scale / clients**0.5
    gaussian = lambda a: rdp.discrete_gaussian_rdp(l2, l1, std, clients, dimension, a)  # noqa: E731
    return l2 / scale, skellam, gaussian


def poisson_sampled(rate, curve):
    """Zhu and Wang, ICML 2019, Theorem 5, as its authors write it; not above the curve itself."""
    values = []
    for order in rdp.ORDERS:
        r = curve(np.arange(order + 1.0))
        terms = [
            (order - 1) * np.log1p(-rate) + np.log(order * rate - rate + 1),
            np.log(comb(order, 2)) + 2 * np.log(rate) + (order - 2) * np.log1p(-rate) + r[2],
        ]
        for j in range(3, order + 1):
            binomial = np.log(3.0) + np.log(comb(order, j))
            terms.append(binomial + (order - j) * np.log1p(-rate) + j * np.log(rate) + (j - 1) * r[j])
        values.append(logsumexp(terms) / (order - 1))
    return np.minimum(values, curve(ORDERS))


PUBLISHED = [  # scale, clients, z, d, rate, rounds, delta -> inflated L2, Skellam, discrete Gaussian
    (100, 100, 1, 1024, 1, 1, 1e-5, 1.018430, 4.846011, 4.845728),
    (1e3, 100, 1, 2**20, 1, 1, 1e-5, 1.124125, 5.411873, 5.411868),
    (1e4, 100, 1, 2**20, 1, 1, 1e-5, 1.001362, 4.759545, 4.759545),
    (1e3, 100, 1, 2**20, 100 / 3400, 1500, 1 / 3400, 1.124125, 10.03532, 10.03531),
    (50, 100, 0.5, 2**20, 1, 1, 1e-5, 10.29963, 435.9838, 434.4562),
    (1e4, 100, 0.7, 2**20, 0.01, 100, 1e-5, 1.001362, 3.614250, 3.614250),
]
"""Computed with distributed_dp/accounting_utils.py of google-research/federated: C = 1, beta = e^-1/2, add/remove."""


@pytest.mark.parametrize("row", PUBLISHED)
def test_published_values(row):
    scale, clients, z, dimension, rate, rounds, delta, *expected = row
    inflated, *both = curves(scale, clients, z, dimension)
    found = [inflated]
    for curve in both:
        one = curve(ORDERS) if rate == 1 else poisson_sampled(rate, curve)
        found.append(rdp.to_epsilon(rounds * one, delta))
    np.testing.assert_allclose(found, expected, rtol=6e-7)  # seven digits


# ---- the curves are upper bounds: exact divergences in one dimension -------------------------------------------------

GRID = np.arange(-400, 401)


def exact(log_pmf, shift, order):
    """Renyi divergence between a law on the integers and its shifts to both sides, the larger one."""
    moved = np.roll(log_pmf, shift)
    kept = slice(250, -250)
    p, q = log_pmf[kept], moved[kept]
    return max(logsumexp(order * a + (1 - order) * b) for a, b in ((p, q), (q, p))) / (order - 1)


def summed_gaussian(std, clients):
    """log pmf of the sum of discrete Gaussians, by convolution on a log scale."""
    one = -(GRID**2) / (2 * std**2)
    one = one - logsumexp(one)
    total = one
    for _ in range(clients - 1):
        total = logsumexp([np.roll(total, k) + one[400 + k] for k in range(-200, 201)], axis=0)
    return total


@pytest.mark.parametrize("clients", [1, 2, 4])
@pytest.mark.parametrize("std", [0.45, 0.6, 0.8, 1.5])
def test_the_gaussian_curve_bounds_the_sum_of_shares(std, clients):
    """Small shares are far from a discrete Gaussian in sum: there tau counts, and the bound is not tight.

    Coordinates are independent: the divergence of d of them, each moved alike, is d times that of one.
    """
    law = summed_gaussian(std, clients)
    for shift in (1, 2, 5):
        found = np.array([exact(law, shift, order) for order in range(2, 20)])
        for d in (1, 50, 5000):
            norms = shift * d**0.5, shift * d
            bound = rdp.discrete_gaussian_rdp(*norms, std, clients, d, np.arange(2.0, 20.0))
            assert np.all(d * found <= bound * (1 + 1e-9))
            if std >= 1.5:
                np.testing.assert_allclose(d * found, bound, rtol=2e-3)


@pytest.mark.parametrize("variance", [0.5, 3.0, 40.0])
def test_the_skellam_curve_bounds_the_exact_divergence(variance):
    law = np.log(np.maximum(ive(np.abs(GRID), variance), 1e-300))
    for shift in (1, 2, 5):
        bound = rdp.skellam_rdp(shift, shift, variance, np.arange(2.0, 9.0))
        found = np.array([exact(law, shift, order) for order in range(2, 9)])
        assert np.all(found <= bound * (1 + 1e-9))
        if variance == 40 and shift == 1:
            np.testing.assert_allclose(found, bound, rtol=0.1)


# ---- amplification ---------------------------------------------------------------------------------------------------


def test_amplification_is_the_theorem_term_by_term():
    """Wang, Balle, Kasiviswanathan, Theorem 9, in plain floating point at small orders."""
    rate, curve = 0.05, lambda a: 0.15 * a
    found = rdp.without_replacement(rate, curve)
    for order in (2, 3, 7):
        total = 1 + rate**2 * comb(order, 2) * min(4 * (np.exp(0.3) - 1), 2 * np.exp(0.3))
        total += sum(rate**j * comb(order, j) * 2 * np.exp((j - 1) * 0.15 * j) for j in range(3, order + 1))
        np.testing.assert_allclose(found[order - 2], min(np.log(total) / (order - 1), 0.15 * order), rtol=1e-9)
    np.testing.assert_array_equal(rdp.without_replacement(1.0, curve), curve(ORDERS))
    assert np.all(found <= curve(ORDERS)) and np.all(np.diff(found) > 0)
    assert np.all(rdp.without_replacement(0.5, lambda a: 50.0 * a) <= 50 * ORDERS)  # no overflow


@pytest.mark.parametrize(("rate", "z", "rounds"), [(0.1, 0.6, 1), (0.01, 1.0, 100), (0.02, 1.5, 300), (0.2, 4.0, 10)])
def test_amplification_against_another_accountant(rate, z, rounds):
    """dp_accounting bounds the Gaussian alone, by a theorem that is tighter for it: never above ours, not far below.

    It takes no account of the doubled sensitivity of a replacement (its issue 378), hence z/2.
    """
    import dp_accounting as dp

    relation = dp.NeighboringRelation.REPLACE_ONE
    accountant = dp.rdp.RdpAccountant(list(rdp.ORDERS), relation)
    event = dp.SampledWithoutReplacementDpEvent(100_000, round(rate * 100_000), dp.GaussianDpEvent(z / 2))
    theirs = accountant.compose(event, rounds).get_epsilon(1e-5)
    ours = float(rdp.to_epsilon(rounds * rdp.without_replacement(rate, lambda a: a / 2 * (2 / z) ** 2), 1e-5))
    plain = float(rdp.to_epsilon(rounds * ORDERS / 2 * (2 / z) ** 2, 1e-5))
    assert min(theirs, plain) * (1 - 1e-6) <= ours <= plain * (1 + 1e-9)
    assert ours <= 2.0 * theirs


# ---- events ----------------------------------------------------------------------------------------------------------

DETAIL = {"dimension": 64.0, "l2": 104.0, "l1": 832.0, "unit": 100.0, "shares": 20.0}


def noise(kind="skellam", z=4.0, **changes):
    return Noise(kind, z, "distributed", tuple((DETAIL | changes).items()))


FULL = SamplingLaw("full", 1.0, 20)
PART = SamplingLaw("fixed_size", 0.02, 1000)
TURNS = SamplingLaw("cyclic", 0.02, 1000)


@pytest.mark.parametrize("kind", rdp.INTEGER)
def test_a_replaced_client_moves_the_sum_twice(kind):
    event = make_event(FULL, noise(kind), 7)
    assert (event.relation, event.unit, event.trust, event.rounds) == ("replace_one", "user", "distributed", 7)
    if kind == "skellam":
        one = rdp.skellam_rdp(2 * 104.0, 2 * 832.0, 400.0**2, ORDERS)
    else:
        one = rdp.discrete_gaussian_rdp(2 * 104.0, 2 * 832.0, 400.0 / 20**0.5, 20, 64, ORDERS)
    np.testing.assert_allclose(epsilon(FULL, noise(kind), 7, 1e-5), rdp.to_epsilon(7 * one, 1e-5), rtol=1e-12)
    gaussian = rdp.to_epsilon(7 * ORDERS / 2 * (2 * 1.04 / 4.0) ** 2, 1e-5)  # the same bound, continuous noise
    np.testing.assert_allclose(epsilon(FULL, noise(kind), 7, 1e-5), gaussian, rtol=1e-3)


def test_sampling_laws():
    """Full: every round counts. Cyclic: a client's turns count. Fixed size: every round, amplified."""
    full, part, turns = (make_event(law, noise(), 100) for law in (FULL, PART, TURNS))
    assert (full.rounds, part.rounds, turns.rounds) == (100, 100, 2)
    assert (full.rate, part.rate, turns.rate) == (1.0, 0.02, 1.0)
    values = [epsilon(law, noise(), 100, 1e-5) for law in (FULL, PART, TURNS)]
    assert values[1] < values[0] and values[2] < values[0]
    everybody = SamplingLaw("fixed_size", 1.0, 20)
    assert epsilon(everybody, noise(), 100, 1e-5) == values[0]
    for kind, capacity in (("poisson", None), ("truncated_poisson", 40)):
        with pytest.raises(FljaxError, match="cohorts of a fixed size"):
            make_event(SamplingLaw(kind, 0.02, 1000, capacity), noise(), 10)


def test_epsilon_over_rounds_ends_in_the_reported_one():
    series = epsilon_series(PART, noise(), 50, 1e-5)
    assert np.all(np.diff(series) > 0)
    np.testing.assert_allclose(series[-1], epsilon(PART, noise(), 50, 1e-5), rtol=1e-12)
    assert np.isinf(epsilon(PART, noise(z=0.0), 50, 1e-5))


@pytest.mark.parametrize("change", [{"l2": 110.0}, {"unit": 90.0}, {"dimension": 2.0**30, "shares": 1e4, "unit": 10.0}])
def test_epsilon_depends_on_the_detail(change):
    assert epsilon(FULL, noise("discrete_gaussian", **change), 3, 1e-5) > epsilon(
        FULL, noise("discrete_gaussian"), 3, 1e-5
    )


def test_an_incomplete_detail_is_refused():
    with pytest.raises(FljaxError, match="to name 'l2'"):
        epsilon(FULL, noise()._replace(detail=(("dimension", 64.0),)), 3, 1e-5)


@pytest.mark.parametrize("kind", rdp.INTEGER)
@pytest.mark.parametrize(("law", "target"), [(FULL, 2.0), (PART, 0.7), (PART, 20.0), (TURNS, 8.0)])
def test_calibration_does_not_overshoot(kind, law, target):
    """The template is that of a real stage; its own multiplier is ignored."""
    stage = distributed_noise(kind, 5000, fixed_size(1000, 20))
    template = stage.claim(Hparams(clip=1.0, noise_multiplier=1.0, integer_step=1e-2)).noise
    z = calibrate(law, target, 60, 1e-5, template)
    assert epsilon(law, template._replace(multiplier=z), 60, 1e-5) <= target
    assert epsilon(law, template._replace(multiplier=0.99 * z), 60, 1e-5) > target
