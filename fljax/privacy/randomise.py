"""Local randomisers with a pure epsilon, on one vector: what a client sends in place of its update.

Each function bounds its own input, whatever it is, and returns an unbiased estimate of the bounded vector:
``P(output | v) <= e^eps P(output | v')`` for every two inputs v, v'. They are written for one client and in float32;
``fljax.privacy.local`` makes stages of them.

Two things are done for the sake of the small numbers. Decisions are drawn from 64 random bits: a float32 uniform has a
grid of 2^-23, on which an event of probability 1e-9 either never happens (no finite epsilon) or happens too often. And
every randomiser spends ``usable(eps) < eps``, which leaves room for the rounding of float32 in its probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core import tree
from fljax.core.check import in_range
from fljax.core.types import Array, Key

MARGIN = 1e-5
"""What is set aside for rounding, absolute and relative; errors of the log-probabilities are below a third of it."""
SMALLEST = 1e-3
"""Smallest epsilon of one upload; below it the margin would be more than 1 %."""

Randomiser = Callable[[Key, Array, Array, Array, Array | None], Array]
"""(key, values [P], clip, epsilon, support [P] or None) -> [P] what is sent."""


def usable(epsilon: Array) -> Array:
    """The epsilon to spend of a given one: less by 1e-5 and by a share of 1e-5. Infinite stays infinite."""
    return epsilon * (1.0 - MARGIN) - MARGIN


# ---- bounds ----------------------------------------------------------------------------------------------------------


def clip_l1(values: Array, clip: Array) -> tuple[Array, Array, Array]:
    """Scales a vector to an L1 norm of at most S. Returns and guarantees as ``clip_tree``: not finite becomes zero."""
    size = jnp.sum(jnp.abs(values))
    scale = jnp.where(size > clip, clip / jnp.maximum(size, jnp.finfo(jnp.float32).tiny), 1.0)
    return tree.zero_unless(jnp.isfinite(size), values * scale), size, size > clip


def clip_linf(values: Array, clip: Array) -> tuple[Array, Array, Array]:
    """Cuts every coordinate to [-S, S]. Returns and guarantees as ``clip_l1``; the norm is the largest coordinate."""
    size = jnp.max(jnp.abs(values))
    return tree.zero_unless(jnp.isfinite(size), jnp.clip(values, -clip, clip)), size, size > clip


def clip_l2(values: Array, clip: Array) -> tuple[Array, Array, Array]:
    """Scales a vector to an L2 norm of at most S. Returns and guarantees as ``clip_l1``."""
    size = tree.norm(values)
    scale = jnp.where(size > clip, clip / jnp.maximum(size, jnp.finfo(jnp.float32).tiny), 1.0)
    return tree.zero_unless(jnp.isfinite(size), values * scale), size, size > clip


def count(values: Array, support: Array | None) -> Array:
    """() float32: how many coordinates the support has."""
    return jnp.float32(values.size) if support is None else jnp.sum(support > 0).astype(jnp.float32)


def _within(values: Array, support: Array | None) -> Array:
    values = values.astype(jnp.float32)
    return values if support is None else jnp.where(support > 0, values, 0.0)


# ---- decisions -------------------------------------------------------------------------------------------------------


def threshold(logit: Array) -> tuple[Array, Array]:
    """The rarer outcome of a Bernoulli(sigmoid(logit)) as a number of 64-bit words, in two halves of 32 bits.

    Rounded towards fewer yes: down where yes is the rarer outcome, up (and never to zero) where no is.
    """
    rare = jax.nn.sigmoid(-jnp.abs(logit)) * jnp.float32(2.0**32)
    high = jnp.floor(rare)
    low = jnp.floor((rare - high) * jnp.float32(2.0**32))  # exact: a float32 has 24 bits
    return high.astype(jnp.uint32), low.astype(jnp.uint32) + (logit > 0).astype(jnp.uint32)


def bernoulli(key: Key, logit: Array) -> Array:
    """() bool, True with probability sigmoid(logit), never with more: False has probability 2^-64 at the least."""
    high, low = threshold(logit)
    bits = jax.random.bits(key, (2,), jnp.uint32)
    rare = (bits[0] < high) | ((bits[0] == high) & (bits[1] < low))
    return jnp.where(logit > 0, ~rare, rare)


# ---- Laplace ---------------------------------------------------------------------------------------------------------


def laplace(key: Key, values: Array, clip: Array, epsilon: Array, support: Array | None = None) -> Array:
    """The vector, clipped to an L1 norm of S, plus independent Laplace noise of scale ``2 S / eps``.

    Any vector of that norm may become any other, at an L1 distance of 2 S. Dwork, McSherry, Nissim, Smith, TCC 2006.

    Args:
      key: consumed.
      values: [P].
      clip: () S.
      epsilon: () eps of this one vector.
      support: [P] of 0 and 1, public, or None: coordinates outside are sent as zero and are not counted.

    Returns:
      [P] float32, unbiased for the clipped vector.
    """
    clipped, *_ = clip_l1(_within(values, support), clip)
    return _within(clipped + 2.0 * clip / usable(epsilon) * _standard_laplace(key, values.shape), support)


def _standard_laplace(key: Key, shape: tuple[int, ...]) -> Array:
    """Laplace of scale 1 from 31 bits and a sign: up to 22 scales, where jax.random.laplace ends at 16."""
    bits = jax.random.bits(key, shape, jnp.uint32)
    size = -jnp.log(((bits >> 1).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-31))
    return jnp.where(bits & 1, -size, size)


# ---- one coordinate --------------------------------------------------------------------------------------------------


def krr(
    key: Key, values: Array, clip: Array, epsilon: Array, support: Array | None = None, *, levels: int = 2
) -> Array:
    """k-ary randomised response on one coordinate, drawn uniformly.

    The coordinate x in [-S, S] is rounded at random to a neighbouring one of k levels (unbiased). The level is sent
    with probability ``e^eps / (e^eps + k - 1)``, any other with ``1 / (e^eps + k - 1)``. With the level y that arrives,
    the estimate of the vector is ``d y (e^eps + k - 1) / (e^eps - 1)`` at the position and zero elsewhere. The position
    is drawn without a look at the data and costs nothing.

    Args:
      key, values, clip, epsilon, support: as for ``laplace``; the clip is for each coordinate.
      levels: k >= 2. (static)

    Returns:
      [P] float32 with one entry that is not zero, unbiased for the clipped vector.

    Source: Kairouz, Oh, Viswanath, NeurIPS 2014 (k-RR); Wang et al., arXiv 1907.00782 (drawn coordinates).
    """
    where, step, decide, lie = (jax.random.fold_in(key, i) for i in range(4))
    clipped, *_ = clip_linf(_within(values, support), clip)
    place = draw_place(where, values.size, support)
    level = jnp.clip((clipped[place] / clip + 1.0) / 2.0, 0.0, 1.0) * (levels - 1)
    lower = jnp.floor(level)
    level = lower.astype(jnp.int32) + (jax.random.uniform(step) < level - lower)
    logit = keep_logit(epsilon, levels)
    sent = jnp.where(bernoulli(decide, logit), level, jax.random.randint(lie, (), 0, levels))
    y = 2.0 * sent.astype(jnp.float32) / (levels - 1) - 1.0
    scale = count(values, support) * clip * (1.0 + jnp.exp(-logit))
    return jnp.zeros(values.shape, jnp.float32).at[place].set(y * scale, mode="drop")


def keep_logit(epsilon: Array, levels: int) -> Array:
    """Log-odds of keeping the true level; otherwise any of the k levels, the true one included, is drawn.

    Keeping has probability ``(e^eps - 1) / (e^eps + k - 1)``, so that the log-odds are log((e^eps - 1) / k).
    """
    eps = usable(epsilon)
    return eps + jnp.log(-jnp.expm1(-eps)) - jnp.log(jnp.float32(levels))


def draw_place(key: Key, size: int, support: Array | None) -> Array:
    """() int32: a coordinate of the support, uniformly; ``size`` if the support is empty."""
    if support is None:
        return jax.random.randint(key, (), 0, size)
    upto = jnp.cumsum(support > 0)
    return jnp.searchsorted(upto, jax.random.randint(key, (), 0, upto[-1]) + 1)


def duchi(key: Key, values: Array, clip: Array, epsilon: Array, support: Array | None = None) -> Array:
    """One bit on one coordinate: +B or -B with ``P(+B | x) = 1/2 + x (e^eps - 1) / (2 S (e^eps + 1))``.

    ``B = d S (e^eps + 1) / (e^eps - 1)``. Rounding x to -S or S at random and flipping the sign with probability
    ``1 / (e^eps + 1)`` has these very probabilities: it is ``krr`` with two levels.

    Args, returns: as for ``krr``.

    Source: Duchi, Jordan, Wainwright, "Minimax optimal procedures for locally private estimation", JASA 2018, as the
    one-dimensional mechanism on a drawn coordinate of Wang et al., ICDE 2019 (arXiv 1907.00782).
    """
    return krr(key, values, clip, epsilon, support, levels=2)


# ---- a direction -----------------------------------------------------------------------------------------------------

_NODES, _WEIGHTS = (3.25 * np.asarray(x) for x in np.polynomial.legendre.leggauss(64))  # on [-3.25, 3.25]
_HEIGHTS = np.arange(0.0, 12.05, 0.1, dtype=np.float32)
_PROPOSALS = 128
"""The first that fits is taken; each fits with a probability above 0.3, and none with one below 1e-19."""


class Cap(NamedTuple):
    """A cap of the unit sphere around a direction, and how often to stay in it.

    height: () s >= 0, gamma on a scale on which the inner product of two random directions is nearly a standard normal.
    gamma: () the cap is {<v, u> >= gamma}; ``1 - gamma^2 = exp(-s^2 / (d - 1))``.
    share: () log of P_cap, the cap's share of the sphere.
    logit: () log-odds of p, the probability of the cap.
    mean: () M = E <v, u>.
    """

    height: Array
    gamma: Array
    share: Array
    logit: Array
    mean: Array


def plan_cap(epsilon: Array, dimension: Array) -> Cap:
    """The cap with the largest M among 121 heights, each with the p that spends epsilon exactly.

    With ``I(s) = integral_s^inf e^{-x^2/2} x / t(x) dx`` and ``t(x)^2 = 1 - e^{-x^2/(d-1)}`` (the inner product,
    substituted), ``P_cap = I(s) / (2 I(0))``, ``p / (1 - p) = e^eps P_cap / (1 - P_cap)`` and
    ``M = e^{-s^2/2} / (2 I(0)) (p / P_cap - (1 - p) / (1 - P_cap))``. This is the M of the paper, without differences
    of log-gamma functions, which lose all digits in float32.

    Args:
      epsilon: () what the cap may spend.
      dimension: () d >= 2, float32, may be traced.

    Guarantees:
      ``privunit_epsilon(d, gamma, p) <= epsilon``, and M to 3e-4 relative (3e-5 from epsilon 0.01 on), for d up to 1e7.
    """
    s = jnp.asarray(_HEIGHTS)
    tail = _tail(s, dimension)  # I(s) e^{s^2/2}
    share = jnp.log(tail / (2.0 * tail[0])) - jnp.square(s) / 2.0
    logit = usable(epsilon) + share - jnp.log1p(-jnp.exp(share))
    inside, outside = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
    mean = inside / tail - outside * jnp.exp(-jnp.square(s) / 2.0) / (2.0 * tail[0] * -jnp.expm1(share))
    best = jnp.argmax(mean)
    return Cap(s[best], _inner(s[best], dimension), share[best], logit[best], mean[best])


def _inner(x: Array, dimension: Array) -> Array:
    """t(x), the inner product at height x."""
    return jnp.sqrt(-jnp.expm1(-jnp.square(x) / (dimension - 1.0)))


def _tail(s: Array, dimension: Array) -> Array:
    """[n] heights -> [n] integral_0^6.5 e^{-(s y + y^2/2)} x / t(x) dy at x = s + y, by 64 nodes."""
    y = jnp.asarray(_NODES + 3.25, jnp.float32)[None, :]
    x = s[:, None] + y
    density = jnp.exp(-(s[:, None] + y / 2.0) * y) * x / _inner(x, dimension)
    return jnp.sum(jnp.asarray(_WEIGHTS, jnp.float32)[None, :] * density, axis=1)


def privunit(key: Key, values: Array, clip: Array, epsilon: Array, support: Array | None = None) -> Array:
    """PrivUnit_2 on a vector of L2 norm at most S: a random point of a sphere, more often near the vector.

    A vector v of norm r becomes the unit vector ``v / r`` with probability (1 + r/S) / 2, else ``-v / r``, so that S
    times its mean is v. That vector u has all of epsilon: with probability p a uniform point V of the cap
    {<V, u> >= gamma} is sent, else one of the rest of the sphere, as ``S V / M``. The norm costs nothing of its own: a
    mixture of outputs that are eps-DP is eps-DP. A zero vector takes any direction, one that does not depend on data.

    Args:
      key, values, clip, epsilon, support: as for ``laplace``, with the L2 norm; the support has two coordinates at
        the least (fewer give NaN, which a round replaces by silence of everybody).

    Returns:
      [P] float32 of norm S / M, unbiased for the clipped vector.

    Source: Bhowmick et al., arXiv 1812.00984 (PrivUnit_2, with p and gamma by search instead of its sufficient
    conditions); the randomised sign is that of Duchi, Jordan, Wainwright, JASA 2018, section 4.2.3.
    """
    sign, inner, rest = (jax.random.fold_in(key, i) for i in range(3))
    clipped, *_ = clip_l2(_within(values, support), clip)
    size, d = tree.norm(clipped), count(values, support)
    anything = _within(jnp.ones(values.shape, jnp.float32), support) / jnp.sqrt(d)
    u = jnp.where(size > 1e-18, clipped / jnp.maximum(size, 1e-18), anything)
    u = jnp.where(jax.random.uniform(sign) < (1.0 + jnp.minimum(size / clip, 1.0)) / 2.0, u, -u)
    cap = plan_cap(epsilon, d)
    t = draw_inner(inner, cap, d)
    across = _within(jax.random.normal(rest, values.shape, jnp.float32), support)
    across = across - jnp.vdot(across, u) * u
    return clip / cap.mean * (t * u + jnp.sqrt(1.0 - t * t) * across / tree.norm(across))


def draw_inner(key: Key, cap: Cap, dimension: Array) -> Array:
    """() t = <V, u>: in the cap with probability p, and there, or in the rest, as for a uniform direction V.

    Exact rejection for every d >= 2. With ``t = +-t(x)`` a uniform direction has the density e^{-x^2/2} x / t(x) in
    x > 0. It lies below ``e^{-x^2/2} (sqrt(d - 1) + x)``, a mixture of a half-normal and a Rayleigh variable; what lies
    on the wrong side is rejected too. For small caps ``x^2 = s^2 + 2 w``, w exponential, kept with probability
    gamma / t.
    """
    decide, normal, exponential, mix, uniform = (jax.random.fold_in(key, i) for i in range(5))
    n = jax.random.normal(normal, (_PROPOSALS,))
    w = jax.random.exponential(exponential, (_PROPOSALS,))
    accept = jax.random.uniform(uniform, (_PROPOSALS,))
    inside, small = bernoulli(decide, cap.logit), cap.share < jnp.log(0.25)

    root = jnp.sqrt(dimension - 1.0)
    rayleigh = jax.random.uniform(mix, (_PROPOSALS,)) * (1.0 + root * np.sqrt(np.pi / 2.0)) < 1.0
    x = jnp.where(rayleigh, jnp.sqrt(2.0 * w), jnp.abs(n))
    size = _inner(x, dimension)
    whole = jnp.where(inside, size, jnp.sign(n) * size)
    kept = (accept * (root + x) * size < x) & jnp.where(inside, whole >= cap.gamma, whole < cap.gamma)

    tail = _inner(jnp.sqrt(jnp.square(cap.height) + 2.0 * w), dimension)
    drawn = jnp.where(inside & small, tail, whole)
    return drawn[jnp.argmax(jnp.where(inside & small, accept * tail < cap.gamma, kept))]


def privunit_epsilon(dimension: int, gamma: float, p: float) -> float:
    """The exact epsilon of PrivUnit_2: ``log(p / (1 - p)) + log((1 - P_cap) / P_cap)``, on the host in float64.

    ``P_cap = I_{1 - gamma^2}((d - 1) / 2, 1 / 2) / 2`` with the regularised incomplete beta function.

    Args:
      dimension: d >= 2. gamma: in [0, 1), the cap is {<v, u> >= gamma}. p: in (0, 1), the probability of the cap.

    Raises:
      FljaxError: a value out of range.
    """
    from scipy.special import betainc

    in_range(2, np.inf, dimension=dimension)
    in_range(0, 1, closed="left", gamma=gamma)
    in_range(0, 1, closed="neither", p=p)
    share = betainc((dimension - 1) / 2, 0.5, 1.0 - gamma**2) / 2.0
    return float(np.log(p) - np.log1p(-p) + np.log1p(-share) - np.log(share))
