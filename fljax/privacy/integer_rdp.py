"""Epsilon of integer noise that clients add in shares: Renyi curves of the discrete Gaussian and of Skellam noise.

Sensitivities and standard deviations are in units of one integer step. Integer orders alone, float64, no import but
NumPy and SciPy.

Sources: discrete Gaussian shares: Kairouz, Liu, Steinke, arXiv 2102.06387, Theorem 1; Skellam: Agarwal, Kairouz, Liu,
arXiv 2110.04995, Theorem 3.5; cohorts drawn without replacement: Wang, Balle, Kasiviswanathan, arXiv 1808.00087,
Theorem 9; conversion: Canonne, Kamath, Steinke, arXiv 2004.00010, Proposition 12.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fljax.core.check import FljaxError
from fljax.privacy.events import Event

INTEGER = ("discrete_gaussian", "skellam")
"""The mechanisms that are accounted for here."""

DETAIL = ("dimension", "l2", "l1", "unit", "shares")
"""What the accountant needs besides z, see ``integer_curve``."""

ORDERS = (*range(2, 129), 256)


def discrete_gaussian_rdp(l2: float, l1: float, std: float, shares: int, dimension: int, orders: np.ndarray):
    """Renyi divergence of a sum to which each of n clients added discrete Gaussian noise of standard deviation sigma.

    With ``a = l2 / (sqrt(n) sigma)``, ``b = l1 / (sqrt(n) sigma)`` and
    ``tau = 10 sum_{k=1}^{n-1} exp(-2 pi^2 sigma^2 k / (k+1))`` it is the least of ``alpha a^2 / 2 + tau d``,
    ``alpha (a^2 + 2 b tau + tau^2 d) / 2`` and ``alpha (a + sqrt(d) tau)^2 / 2``. tau is how far a sum of discrete
    Gaussians is from a discrete Gaussian.

    Args:
      l2, l1: how far one neighbour moves the sum, in both norms.
      std: sigma of ONE share, > 0. shares: n. dimension: d. orders: [A] alpha > 1.

    Returns:
      [A] float64.
    """
    k = np.arange(1, shares)
    tau = 10.0 * np.sum(np.exp(-2 * (np.pi * std) ** 2 * k / (k + 1)))
    a, b = (norm / (np.sqrt(shares) * std) for norm in (l2, l1))
    halves = np.minimum(a**2 + 2 * b * tau + tau**2 * dimension, (a + np.sqrt(dimension) * tau) ** 2)
    return np.minimum(orders * a**2 / 2 + tau * dimension, orders * halves / 2)


def skellam_rdp(l2: float, l1: float, variance: float, orders: np.ndarray):
    """Renyi divergence of Skellam noise of total variance mu on a sum of integers, for integer orders.

    ``alpha l2^2 / (2 mu) + min(((2 alpha - 1) l2^2 + 6 l1) / (4 mu^2), 3 l1 / (2 mu))``

    Args, returns: as ``discrete_gaussian_rdp``; variance is that of the whole sum, > 0.
    """
    extra = np.minimum(((2 * orders - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
    return orders * l2**2 / (2 * variance) + extra


def without_replacement(rate: float, curve: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Amplification of any Renyi curve by cohorts of a fixed size, drawn without replacement; replace_one.

    ``RDP(a) = 1/(a-1) log(1 + q^2 binom(a,2) min(4 (e^r(2) - 1), 2 e^r(2)) + sum_{j=3}^a 2 q^j binom(a,j) e^s(j))``
    with s(j) = (j-1) r(j).

    Args:
      rate: q = cohort / population in (0, 1].
      curve: orders [A] -> r [A] of the mechanism on a cohort of which one member may be replaced.

    Returns:
      [len(ORDERS)], never above the curve itself.
    """
    from scipy.special import gammaln, logsumexp

    orders = np.array(ORDERS)
    plain = curve(orders.astype(float))
    if rate >= 1:
        return plain
    j = np.arange(2, ORDERS[-1] + 1)
    r = curve(j.astype(float))
    second = min(np.log(4.0) + r[0] + np.log(-np.expm1(-r[0])), np.log(2.0) + r[0])
    weight = np.concatenate([[second], np.log(2.0) + (j[1:] - 1) * r[1:]]) + j * np.log(rate)
    top = orders[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        binomial = gammaln(top + 1) - gammaln(j + 1) - gammaln(np.maximum(top - j, 0) + 1)
    terms = np.where(j <= top, binomial + weight, -np.inf)
    amplified = np.logaddexp(0.0, logsumexp(terms, axis=1)) / (orders - 1)
    return np.minimum(amplified, plain)


def to_epsilon(rdp: np.ndarray, delta: float) -> np.ndarray:
    """(epsilon, delta) from Renyi divergences at ``ORDERS``: [..., len(ORDERS)] -> [...].

    ``epsilon = min_a r(a) + log(1 - 1/a) - log(delta a) / (a - 1)``, and at least 0.
    """
    orders = np.array(ORDERS, float)
    values = rdp + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    return np.maximum(values.min(axis=-1), 0.0)


def integer_curve(event: Event) -> np.ndarray:
    """Renyi divergence of one round at ``ORDERS``, sampling included.

    ``event.detail`` holds ``unit`` (the clip in integer steps: the noise of the sum has standard deviation z unit),
    ``l2`` and ``l1`` (the largest norms of what one client adds to the sum, rounding included), ``dimension`` and
    ``shares`` (n, clients whose noise is certain to arrive). Where a client is replaced by another, both of their
    contributions change: the sensitivities are doubled.

    Raises:
      FljaxError: a number is missing in the detail.
    """
    detail = dict(event.detail)
    missing = [name for name in DETAIL if name not in detail]
    if missing:
        raise FljaxError(
            f"Expected the detail of {event.mechanism!r} noise to name {missing[0]!r}. Take the stage's claim."
        )
    times = 2.0 if event.relation == "replace_one" else 1.0
    l2, l1, shares = times * detail["l2"], times * detail["l1"], int(detail["shares"])
    std = event.noise * detail["unit"]

    def curve(orders: np.ndarray) -> np.ndarray:
        if event.mechanism == "skellam":
            return skellam_rdp(l2, l1, std**2, orders)
        return discrete_gaussian_rdp(l2, l1, std / np.sqrt(shares), shares, int(detail["dimension"]), orders)

    return without_replacement(event.rate, curve)


def integer_epsilon(event: Event, rounds: Sequence[int] | np.ndarray, delta: float) -> np.ndarray:
    """Epsilon of integer noise after given numbers of rounds.

    Args:
      event: of a mechanism in ``INTEGER``.
      rounds: [R], how often the round is composed; ``event.rounds`` is not used.
      delta: in (0, 1).

    Returns:
      [R] float64, an upper bound in ``event.relation``; infinity without noise.
    """
    times = np.asarray(rounds, float)
    if event.noise == 0:
        return np.full(times.shape, np.inf)
    return to_epsilon(times[:, None] * integer_curve(event), delta)
