"""Rules that look at one coordinate at a time: median, trimmed mean, mean around the median, majority of signs.

Sorting all clients' values of every coordinate is what they cost. Up to 64 rows they are sorted by a network of
comparators (Batcher, "Sorting networks and their applications", 1968), a fixed sequence of minima and maxima of whole
rows: 50 rows of 1.2 million values take 0.1 s on one core, where a sort takes 4 s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from fljax.core.transform import Aggregator
from fljax.core.types import Array, PyTree
from fljax.robust.rows import Before, Rows, Verdict, along, at_most_half, bind, combine, number, plain_weights

NETWORK_ROWS = 64
"""Up to so many rows a network of comparators is faster than a sort."""


def mean(before: Sequence[Before] = ()) -> Aggregator:
    """The plain mean over the clients that came: no robustness, and the base line of all rules.

    One malicious client moves it anywhere.
    """

    def rule(key, ctx, rows, state):
        del key, ctx
        weights = plain_weights(rows.alive)
        return Verdict(combine(weights, rows.tree), weights), state

    return bind("mean", rule, before)


def median(before: Sequence[Before] = ()) -> Aggregator:
    """The median of every coordinate; the mean of the two middle values where their number is even.

    Yin, Chen, Ramchandran, Bartlett, "Byzantine-robust distributed learning: towards optimal statistical rates", ICML
    2018. It withstands fewer than half of the clients. As in NumPy and ByzFL; others take the lower middle value.
    """

    def rule(key, ctx, rows, state):
        del key, ctx
        low, high = (rows.living - 1) // 2, rows.living // 2
        return Verdict(ranked_mean(rows, jnp.maximum(low, 0), high)), state

    return bind("median", rule, before)


def trimmed_mean(f: int | None = None, before: Sequence[Before] = ()) -> Aggregator:
    """The mean of every coordinate without its f smallest and f largest values.

    Yin et al., ICML 2018. Needs n > 2 f.

    Args:
      f: how many to leave out at each end; None reads ``hparams.extra["robust_f"]``. before: stages before the rule.
    """

    def rule(key, ctx, rows, state):
        del key
        drop = at_most_half(rows.living, number(ctx, "f", f))
        return Verdict(ranked_mean(rows, drop, rows.living - 1 - drop)), state

    return bind("trimmed_mean", rule, before)


def mean_around_median(f: int | None = None, before: Sequence[Before] = ()) -> Aggregator:
    """Meamed: the mean of the n - f values of every coordinate that lie closest to its median.

    Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD", 2018. Needs n > 2 f.

    Args:
      f: None reads ``hparams.extra["robust_f"]``. before: stages before the rule.
    """

    def rule(key, ctx, rows, state):
        del key
        return Verdict(middle_mean(rows, rows.living - at_most_half(rows.living, number(ctx, "f", f)))), state

    return bind("mean_around_median", rule, before)


def sign_majority(step: float | None = None, before: Sequence[Before] = ()) -> Aggregator:
    """The sign of the sum of the clients' signs, times a step: every client has one vote in every coordinate.

    Bernstein, Zhao, Azizzadenesheli, Anandkumar, "signSGD with majority vote is communication efficient and fault
    tolerant", ICLR 2019. Every coordinate moves by the step, or not at all where the votes are even.

    Args:
      step: None reads ``hparams.extra["robust_step"]``. before: stages before the rule.
    """

    def rule(key, ctx, rows, state):
        del key
        votes = jax.tree.map(lambda x: jnp.sum(jnp.sign(x), axis=0), rows.tree)  # rows that do not count are zero
        return Verdict(jax.tree.map(lambda v: jnp.sign(v) * number(ctx, "step", step), votes)), state

    return bind("sign_majority", rule, before)


# ---- order statistics -----------------------------------------------------------------------------------------------


def ranked_mean(rows: Rows, low: Array, high: Array) -> PyTree:
    """The mean of the values of ranks low .. high of every coordinate, 0 for the least: leaves [m, ...] -> [...]."""

    def one(ordered: list[Array]) -> Array:
        inside = [(k >= low) & (k <= high) for k in range(len(ordered))]
        total = sum(jnp.where(use, x, 0.0) for use, x in zip(inside, ordered, strict=True))
        return total / jnp.maximum(high - low + 1, 1)

    return _by_coordinate(one, rows)


def middle_mean(rows: Rows, keep: Array) -> PyTree:
    """The mean of the ``keep`` values of every coordinate that lie closest to its median: leaves [m, ...] -> [...].

    Closest values are neighbours in order, so that there is a window of them. Where two windows are equally close the
    lower one is taken.
    """
    count = rows.living
    low, high, keep = jnp.maximum(count - 1, 0) // 2, count // 2, jnp.maximum(keep, 1)

    def one(ordered: list[Array]) -> Array:
        stacked = jnp.stack([jnp.where(jnp.isfinite(x), x, 0.0) for x in ordered])  # ranks beyond count are not used
        centre = 0.5 * (stacked[low] + stacked[jnp.minimum(high, len(ordered) - 1)])
        best, start = jnp.full_like(centre, jnp.inf), jnp.zeros(centre.shape, jnp.int32)
        for k in range(len(ordered)):
            last = jnp.minimum(k + keep - 1, len(ordered) - 1)
            reach = jnp.maximum(centre - stacked[k], stacked[last] - centre)
            better = (reach < best) & (k + keep <= count)
            best, start = jnp.where(better, reach, best), jnp.where(better, k, start)
        inside = [(k >= start) & (k < start + keep) for k in range(len(ordered))]
        total = sum(jnp.where(use, x, 0.0) for use, x in zip(inside, stacked, strict=True))
        return total / keep

    return _by_coordinate(one, rows)


def _by_coordinate(function: Callable[[list[Array]], Array], rows: Rows) -> PyTree:
    """Applies a function of the ordered values, rows that do not count last as inf, to every coordinate."""

    def one(x: Array) -> Array:
        return function(ordered(jnp.where(along(rows.alive, x), x, jnp.inf)))

    return jax.tree.map(one, rows.tree)


def ordered(x: Array) -> list[Array]:
    """The rows of an array [m, ...], every coordinate sorted upwards, as a list of m arrays."""
    if x.shape[0] > NETWORK_ROWS:
        return list(jnp.sort(x, axis=0))
    values = list(x)
    for low, high in comparators(len(values)):
        values[low], values[high] = jnp.minimum(values[low], values[high]), jnp.maximum(values[low], values[high])
    return values


def comparators(count: int) -> list[tuple[int, int]]:
    """Batcher's odd-even merge sort for ``count`` values: pairs (low, high), each to be put in order in turn."""
    pairs, size = [], 1
    while size < count:
        gap = size
        while gap >= 1:
            for begin in range(gap % size, count - gap, 2 * gap):
                for low in range(begin, begin + min(gap, count - begin - gap)):
                    if low // (2 * size) == (low + gap) // (2 * size):
                        pairs.append((low, low + gap))
            gap //= 2
        size *= 2
    return pairs
