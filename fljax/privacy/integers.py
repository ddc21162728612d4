"""Integers in place of real numbers: samplers of integer noise, randomized rotation, unbiased rounding, wrap-around.

Everything runs inside ``jit``, with int32 results and traced scales. Rejection samplers draw candidates in batches and
write those that are accepted one after another, so that no work is spent on places that are filled already.

Sources: discrete Gaussian: Canonne, Kamath, Steinke, arXiv 2004.00010, Algorithms 2 and 3; Poisson: Hormann, "The
transformed rejection method for generating Poisson random variables", 1993, with the saddle-point form of the
probabilities of Loader, 2000; rotation and rounding: Kairouz, Liu, Steinke, arXiv 2102.06387, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core.types import Array, Key

LARGEST_STD = 1e5  # of one draw of integer noise: up to here float32 resolves neighbouring integers in the tails
SMALL_RATE, TABLE = 10.0, 64  # below this rate: inversion by a table; P(Poisson(10) > 64) = 1e-28
ROUNDINGS = 64  # tries; each one succeeds with probability > 0.39


# ---- noise -----------------------------------------------------------------------------------------------------------


def discrete_gaussian(key: Key, shape: tuple[int, ...], std: Array) -> Array:
    """The discrete Gaussian: ``P(x) = exp(-x^2 / (2 sigma^2)) / normaliser`` for every integer x.

    A discrete Laplace candidate ``Y = +-(U + t V)`` with ``t = floor(sigma) + 1``, U uniform on 0..t-1 and V geometric
    is accepted with probability ``exp(-U/t) exp(-(|Y| - sigma^2/t)^2 / (2 sigma^2))``; minus zero is refused.

    Args:
      key: consumed.
      shape: static.
      std: () sigma >= 0, may be traced; 0 gives zeros.

    Returns:
      int32 of the shape.

    Guarantees:
      Acceptance is decided by integers and 32 random bits; each probability is right to about 1e-5 relative (float32
      exponentials, and ``t / 2^32`` from reducing 32 bits modulo t), for sigma <= 1e5 and |x| < 7 sigma.
    """
    asked = jnp.asarray(std, jnp.float32)
    sigma = jnp.where(asked > 0, asked, 1.0)
    whole = jnp.floor(sigma).astype(jnp.uint32) + 1
    t = whole.astype(jnp.float32)

    def propose(key: Key, n: int) -> tuple[Array, Array]:
        uniform, geometric, accept = jax.random.bits(key, (3, n), jnp.uint32)
        u = uniform % whole
        v = jnp.floor(-jnp.log(_unit(geometric >> 1, 31)))
        size = u.astype(jnp.float32) + t * v
        negative = (geometric & 1) == 1
        off = size - sigma * (sigma / t)
        odds = jnp.exp(-u.astype(jnp.float32) / t - jnp.square(off / sigma) / 2)
        value = jnp.where(negative, -size, size).astype(jnp.int32)
        return value, (_unit(accept, 32) < odds) & ~(negative & (value == 0))

    drawn = _fill(propose, key, math.prod(shape)).reshape(shape)
    return jnp.where(asked > 0, drawn, 0)


def skellam(key: Key, shape: tuple[int, ...], variance: Array) -> Array:
    """The difference of two independent Poisson variables of rate ``variance / 2``; sums of Skellams are Skellam.

    Args:
      key: consumed. shape: static. variance: () >= 0, may be traced; 0 gives zeros.

    Returns:
      int32 of the shape, with mean 0 and the variance. Large counts never appear: both variables are drawn as offsets
      from the same whole number, so that variances up to 1e10 are as good as small ones.
    """
    count = math.prod(shape)
    both = _poisson_offset(key, 2 * count, jnp.asarray(variance, jnp.float32) / 2)
    return (both[:count] - both[count:]).reshape(shape)


def poisson(key: Key, shape: tuple[int, ...], rate: Array) -> Array:
    """Poisson counts for any rate below 2^30; ``jax.random.poisson`` has a wrong variance above 5e4.

    Args:
      key: consumed. shape: static. rate: () >= 0, may be traced.

    Returns:
      int32 of the shape.

    Guarantees:
      Below rate 10 by inversion, each probability right to about 1e-6 + 2^-32. Above by rejection, where the step of
      float32 at the candidate's distance from the rate is the largest error: probabilities of single counts are right
      to about ``sqrt(rate) 2^-20`` relative, mean and variance far better.
    """
    base = jnp.floor(jnp.asarray(rate, jnp.float32)).astype(jnp.int32)
    return base + _poisson_offset(key, math.prod(shape), rate).reshape(shape)


def _poisson_offset(key: Key, count: int, rate: Array) -> Array:
    """[count] draws of Poisson(rate) - floor(rate)."""
    rate = jnp.asarray(rate, jnp.float32)
    return jax.lax.cond(
        rate < SMALL_RATE,
        lambda r: _poisson_by_table(key, count, jnp.minimum(r, SMALL_RATE)),
        lambda r: _poisson_by_rejection(key, count, jnp.maximum(r, SMALL_RATE)),
        rate,
    )


def _poisson_by_table(key: Key, count: int, rate: Array) -> Array:
    """Inversion: the number of k with u < P(X > k)."""
    ratios = rate / jnp.arange(1, TABLE, dtype=jnp.float32)
    masses = jnp.exp(-rate) * jnp.concatenate([jnp.ones(1), jnp.cumprod(ratios)])
    above = jnp.cumsum(masses[::-1])[::-1][1:]  # P(X > 0), P(X > 1), ...: summed from the small end
    uniform = _unit(jax.random.bits(key, (count,), jnp.uint32), 32)
    drawn = jnp.searchsorted(-above, -uniform, side="left").astype(jnp.int32)
    return drawn - jnp.floor(rate).astype(jnp.int32)


def _poisson_by_rejection(key: Key, count: int, rate: Array) -> Array:
    """Transformed rejection (PTRS) in the distance j from floor(rate), so that nothing large is ever subtracted."""
    base = jnp.floor(rate)
    rest, root = rate - base, jnp.sqrt(rate)
    b = 0.931 + 2.53 * root
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)

    def propose(key: Key, n: int) -> tuple[Array, Array]:
        first, second = jax.random.bits(key, (2, n), jnp.uint32)
        u = _unit(first, 32) - 0.5
        near = jnp.maximum(0.5 - jnp.abs(u), 2.0**-33)
        j = jnp.floor((2 * a / near + b) * u + rest + 0.43)
        level = jnp.log(_unit(second, 32) * inverse_alpha / (a / jnp.square(near) + b))
        inside = (j >= -base) & (jnp.abs(j) < 2.0**30)
        j = jnp.where(inside, j, 0.0)
        return j.astype(jnp.int32), inside & (level <= _log_poisson(base + j, (j - rest) / rate, rate))

    return _fill(propose, key, count)


def _log_poisson(k: Array, x: Array, rate: Array) -> Array:
    """log P(k) for rate >= 10, with x = k / rate - 1 given exactly: ``-rate h(x) - log(2 pi k) / 2 - Stirling's rest``.

    h(x) = (1 + x) log(1 + x) - x, by its series where the two terms cancel.
    """
    near = jnp.where(jnp.abs(x) < 0.1, x, 0.0)
    series = sum((-near) ** n / (n * (n - 1)) for n in range(2, 10))
    far = jnp.where(jnp.abs(x) < 0.1, 0.1, jnp.maximum(x, -0.999999))
    h = jnp.where(jnp.abs(x) < 0.1, series, (1 + far) * jnp.log1p(far) - far)
    large = jnp.maximum(k, 10.0)
    stirling = 1 / (12 * large) - 1 / (360 * large**3)
    exact = k * jnp.log(rate) - rate - jax.scipy.special.gammaln(k + 1)
    return jnp.where(k < 10, exact, -rate * h - jnp.log(2 * jnp.pi * large) / 2 - stirling)


def _unit(bits: Array, width: int) -> Array:
    """Random bits as a number in (0, 1], of full relative precision down to 2^-width / 2."""
    return (bits.astype(jnp.float32) + 0.5) * 2.0**-width


def _fill(propose: Callable[[Key, int], tuple[Array, Array]], key: Key, count: int) -> Array:
    """[count] accepted candidates, written one after another as they come.

    Args:
      propose: (key, n) -> (candidates int32 [n], accepted bool [n]), independent and alike.
    """
    batch = max(count // 4, min(count, 4096), 1)

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, out, filled = carry
        values, accepted = propose(jax.random.fold_in(key, i), batch)
        order = jnp.cumsum(accepted.astype(jnp.int32))
        place = jnp.where(accepted, filled + order - 1, count)
        return i + 1, out.at[place].set(values, mode="drop"), filled + order[-1]

    start = (jnp.int32(0), jnp.zeros(count, jnp.int32), jnp.int32(0))
    return jax.lax.while_loop(lambda carry: carry[2] < count, body, start)[1]


# ---- rotation --------------------------------------------------------------------------------------------------------


def padded_size(size: int) -> int:
    """The smallest power of two that is at least ``size``."""
    return 1 << max(size - 1, 0).bit_length()


def rotate(key: Key, x: Array) -> Array:
    """Randomized Hadamard rotation ``H diag(+-1) x / sqrt(d)`` of a vector, padded with zeros to a power of two d.

    It spreads every vector evenly: a coordinate exceeds ``t ||x|| / sqrt(d)`` with probability at most 2 exp(-t^2 / 2).

    Args:
      key: public and shared by all clients; the signs come from it.
      x: [P].

    Returns:
      float32 [d] with the same norm. O(d log d).
    """
    size = padded_size(x.shape[0])
    padded = jnp.pad(x.astype(jnp.float32), (0, size - x.shape[0]))
    return hadamard(padded * _signs(key, size)) / size**0.5


def unrotate(key: Key, x: Array) -> Array:
    """The inverse of ``rotate`` on [d]; cut the padding off yourself."""
    return hadamard(x.astype(jnp.float32)) * _signs(key, x.shape[0]) / x.shape[0] ** 0.5


def _signs(key: Key, size: int) -> Array:
    return jnp.where(jax.random.bits(key, (size,), jnp.uint8) < 128, 1.0, -1.0)


def hadamard(x: Array) -> Array:
    """The Walsh-Hadamard transform of a vector of length 2^k, not normalised.

    The transform is a Kronecker product of small ones. Each pass applies one factor to the last bits of the index and
    moves them to the front; after all passes every bit is back in its place.
    """
    left = x.shape[0]
    while left > 1:
        factor = min(left, 64)
        x = jnp.dot(x.reshape(-1, factor), _matrix(factor), precision=jax.lax.Precision.HIGHEST).T.reshape(-1)
        left //= factor
    return x


def _matrix(size: int) -> Array:
    """Sylvester's matrix: (-1) to the number of common bits of row and column."""
    index = np.arange(size)
    common = index[:, None] & index[None, :]
    odd = np.array([bin(c).count("1") % 2 for c in common.ravel()])
    return jnp.asarray(np.where(odd, -1.0, 1.0).reshape(size, size), jnp.float32)


# ---- rounding and wrap-around ----------------------------------------------------------------------------------------


def rounded_bound(norm, dimension: int):
    """The L2 norm to which stochastic rounding of a vector of at most this norm is held: traced or plain numbers.

    ``sqrt(L^2 + d/4 + sqrt(2 log(1/beta)) (L + sqrt(d)/2))`` with beta = e^(-1/2), whose root is 1. One rounding
    exceeds it with probability at most beta. It is below the largest norm that rounding can reach, L + sqrt(d), always.
    """
    return (norm**2 + dimension / 4 + norm + dimension**0.5 / 2) ** 0.5


def conditional_round(key: Key, x: Array, bound: Array) -> Array:
    """Rounds every coordinate up or down at random, without bias, again and again until the L2 norm is at most bound.

    Args:
      key: consumed.
      x: [d] float32. bound: () such as ``rounded_bound``.

    Returns:
      int32 [d].

    Guarantees:
      The norm of the result is at most the bound, whatever x is: after 64 failures (probability 1e-13 within
      ``rounded_bound``) x is rounded towards zero, and if that is still too long, or x is not finite, it is zero.
    """
    x = x.astype(jnp.float32)
    low = jnp.floor(x)
    fraction = x - low

    def attempt(i: Array) -> Array:
        up = _unit(jax.random.bits(jax.random.fold_in(key, i), x.shape, jnp.uint32), 32) < fraction
        return low + up.astype(jnp.float32)

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, _, _ = carry
        rounded = attempt(i)
        return i + 1, rounded, _within(rounded, bound)

    first = (jnp.int32(0), jnp.zeros_like(x), jnp.bool_(False))
    _, rounded, ok = jax.lax.while_loop(lambda c: ~c[2] & (c[0] < ROUNDINGS), body, first)
    cut = jnp.trunc(x)
    result = jnp.where(ok, rounded, jnp.where(_within(cut, bound), cut, 0.0))
    return result.astype(jnp.int32)


def _within(x: Array, bound: Array) -> Array:
    """Is the L2 norm at most the bound? Summed in pairs, whose error of 2e-6 is on the safe side; False for NaN."""
    squares = jnp.square(x)
    squares = jnp.pad(squares, (0, padded_size(x.shape[0]) - x.shape[0]))
    while squares.shape[0] > 1:
        half = squares.shape[0] // 2
        squares = squares[:half] + squares[half:]
    return squares[0] * (1 + 4e-6) <= jnp.square(bound)


def wrap(x: Array, bits: int) -> Array:
    """The representative of an int32 modulo 2^bits in ``[-2^(bits-1), 2^(bits-1))``, bits from 1 to 32 (static).

    Sums of int32 wrap at 2^32, a multiple of 2^bits: ``wrap(a + b) = wrap(wrap(a) + wrap(b))`` always.
    """
    unused = 32 - bits
    return jnp.right_shift(jnp.left_shift(x.astype(jnp.int32), unused), unused)
