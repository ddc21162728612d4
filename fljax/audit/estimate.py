"""From the scores of canaries to epsilon: an estimate, and a lower bound that holds with stated confidence.

Scores are standard normal for a canary that is not in the model (see ``scores``). The estimate takes the scores of the
canaries that are in to be normal as well and reads epsilon off the two distributions. The lower bound takes nothing
for granted: it counts how well the canaries that are in are guessed by their scores.

Sources: Andrew et al., arXiv 2302.03098 (estimate); Steinke, Nasr, Jagielski, arXiv 2305.08846 and Mahloujifar, Melis,
Chaudhuri, arXiv 2410.22235 (bounds in one run).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fljax.core.check import FljaxError, in_range, positive

SIGNIFICANCE = 0.05
"""Probability with which ``lower`` may exceed the true epsilon."""
SURE = 3.09
"""Standard errors of the mean below it, one-sided 99.9 %, for the low end of the estimate."""


class Estimate(NamedTuple):
    """What normal scores say. epsilon: the estimate. low: with the mean at the low end of its 99.9 % confidence
    interval. mean, sd: of the canaries that are in, as measured, in standard deviations of those that are not."""

    epsilon: float
    low: float
    mean: float
    sd: float


class Bounds(NamedTuple):
    """What counting says. name: the bound in ``lower``, chosen before the scores are seen. lower: epsilon is at least
    that, but for ``SIGNIFICANCE``. clopper_pearson: as if every canary had been a run of its own; not a certificate."""

    name: str
    lower: float
    clopper_pearson: float


def epsilon_two_gaussians(mean_0: float, sd_0: float, mean_1: float, sd_1: float, delta: float) -> float:
    """The smallest epsilon >= 0 for which N(mean_0, sd_0^2) and N(mean_1, sd_1^2) are (epsilon, delta)-close.

    Both directions: ``max_P,Q  P(A) - e^epsilon Q(A) <= delta`` with ``A = {log p/q > epsilon}``, an interval or its
    complement. Float64, in logarithms. For equal standard deviations it is the analytic Gaussian mechanism (Balle and
    Wang, ICML 2018).

    Raises:
      FljaxError: a standard deviation that is not positive, delta outside (0, 1).
    """
    from scipy.optimize import brentq

    positive(sd_0=sd_0, sd_1=sd_1)
    in_range(0, 1, closed="neither", delta=delta)
    shift, ratio = (mean_1 - mean_0) / sd_0, sd_1 / sd_0

    def excess(epsilon: float) -> float:
        there = _delta(epsilon, shift, ratio)
        back = _delta(epsilon, -shift / ratio, 1.0 / ratio)
        return max(there, back) - delta

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2.0
    root: Any = brentq(excess, 0.0, high, xtol=1e-10, rtol=1e-12)
    return float(root)


def _delta(epsilon: float, mean: float, sd: float) -> float:
    """Hockey-stick divergence of N(0, 1) from N(mean, sd^2) at e^epsilon."""
    # log p/q - epsilon = a x^2 + b x + c
    a, b = 0.5 * (sd**-2 - 1.0), -mean / sd**2
    region = _positive_region(a, b, 0.5 * (mean / sd) ** 2 + math.log(sd) - epsilon)
    if region is None:
        return 0.0
    p, q = _log_mass(region, 0.0, 1.0), _log_mass(region, mean, sd)
    gap = epsilon + q - p
    return math.exp(p) * -math.expm1(gap) if gap < 0 else 0.0


def _positive_region(a: float, b: float, c: float) -> tuple[float, float, bool] | None:
    """Where ``a x^2 + b x + c > 0``: (low, high, True) between the two, (low, high, False) outside of them.

    None where that is nowhere or everywhere.
    """
    discriminant = b * b - 4.0 * a * c
    if discriminant <= 0:
        return None
    if a == 0:
        return (-c / b, math.inf, True) if b > 0 else (-math.inf, -c / b, True)
    half = -0.5 * (b + math.copysign(math.sqrt(discriminant), b))  # no cancellation, also for a near 0
    low, high = sorted((c / half, half / a))
    return low, high, a < 0


def _log_mass(region: tuple[float, float, bool], mean: float, sd: float) -> float:
    """log of the probability that a normal falls into a region."""
    from scipy.special import log_ndtr

    low, high, inside = (region[0] - mean) / sd, (region[1] - mean) / sd, region[2]
    if not inside:
        return float(np.logaddexp(log_ndtr(low), log_ndtr(-high)))
    if low > 0:  # mirror, so that the difference is one of small numbers
        low, high = -high, -low
    above, below = float(log_ndtr(high)), float(log_ndtr(low))
    return above + math.log1p(-math.exp(below - above)) if above > below else -math.inf


def estimate_epsilon(scores: np.ndarray, signs: np.ndarray, delta: float) -> Estimate:
    """Epsilon by a normal fit. An estimate: it is right where scores are normal and the canaries see the worst case.

    Args:
      scores: [k] standard normal for canaries that are not in the model.
      signs: [k] 1 is in, 0 out by absence, -1 out with the opposite update (see ``Canaries``). Absent ones are not
        used: their distribution is known.
      delta: in (0, 1).

    Against absence epsilon is that of N(0, 1) and N(mean, sd^2); against the opposite, of N(-mean, sd^2) and
    N(mean, sd^2), fitted to all canaries. The sd is 1, and differs from it only as far as the scores prove it (see
    ``proven_sd``): at small delta epsilon hangs on the tails, and 5 % too much of spread would double a small one. The
    low end takes sd = 1, so that it rests on the mean alone.
    """
    used = (scores * signs)[signs != 0]
    if len(used) < 2:
        raise FljaxError(f"Expected at least 2 canaries in the round, found {len(used)}. Use more canaries.")
    mean, sd = float(np.mean(used)), float(np.std(used, ddof=1))
    least = max(mean - SURE * sd / math.sqrt(len(used)), 0.0)
    opposite = bool(np.any(signs < 0))

    def between(mean: float, sd: float) -> float:
        return epsilon_two_gaussians(-mean if opposite else 0.0, sd if opposite else 1.0, mean, sd, delta)

    return Estimate(between(mean, proven_sd(sd, len(used))), between(least, 1.0), mean, sd)


def proven_sd(sd: float, count: int) -> float:
    """The standard deviation nearest to 1 within the two-sided 99 % confidence interval of a measured one."""
    from scipy.stats import chi2

    low, high = (sd * math.sqrt((count - 1) / chi2.ppf(p, count - 1)) for p in (0.995, 0.005))
    return float(np.clip(1.0, low, high))


def load_auditor() -> Any:
    """``jax_privacy.auditing.CanaryScoreAuditor``.

    Raises FljaxError where the optional package is missing.
    """
    try:
        from jax_privacy.auditing import CanaryScoreAuditor
    except ImportError:
        raise FljaxError("Expected jax_privacy for the bounds of an audit. Run: pip install 'fljax[dp]'") from None
    return CanaryScoreAuditor


def lower_bounds(scores: np.ndarray, signs: np.ndarray, delta: float, *, gaussian: bool) -> Bounds:
    """Epsilon that is certified by guessing from the scores which canaries are in, all from a single run.

    Args:
      scores, signs, delta: as for ``estimate_epsilon``; the signs are independent fair coins.
      gaussian: whether the claim to be tested is a Gaussian mechanism without sampling, whose trade-off curve is known
        from (epsilon, delta). Then the bound is that of f-DP for this curve, else the one for any (epsilon, delta).

    Guarantees:
      If the mechanism keeps its claim, ``lower`` exceeds epsilon with probability at most ``SIGNIFICANCE``: one bound,
      chosen by the claim and not by the scores, with a Bonferroni correction for the choice of the threshold.

    ``epsilon_from_gdp`` of jax_privacy 2.0 is not used: it is above zero for scores that carry nothing.
    """
    auditor = load_auditor()(scores[signs > 0], scores[signs <= 0])
    bound = auditor.epsilon_one_run_fdp if gaussian else auditor.epsilon_one_run
    return Bounds(
        "one_run_fdp" if gaussian else "one_run",
        float(bound(significance=SIGNIFICANCE, delta=delta)),
        float(auditor.epsilon_clopper_pearson(significance=SIGNIFICANCE, delta=delta)),
    )
