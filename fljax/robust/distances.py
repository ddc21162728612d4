"""Rules that select payloads by their distances to others: Krum, Multi-Krum, Bulyan.

Published code disagrees on Krum in how many neighbours count and by which power of their distance, and picks different
clients on the same input. Both are named arguments here.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fljax.core.check import FljaxError, one_of
from fljax.core.transform import Aggregator
from fljax.core.types import Array
from fljax.robust.coordinatewise import middle_mean
from fljax.robust.rows import Before, Verdict, at_most_half, bind, combine, number, squared_distances

POWERS = (1, 2, 4)


def krum_scores(distances: Array, alive: Array, f: Array, neighbors: str = "paper", power: int = 2) -> Array:
    """Krum's score of every row, inf for rows that do not count: the less, the closer it lies to the others.

    ``score_i = sum over the k nearest others of ||x_i - x_j||^power``.

    Args:
      distances: [m, m] squared distances. alive: [m] bool, n of them count. f: () how many may be malicious.
      neighbors: ``paper``: k = n - f - 2 (Blanchard et al.; Flower). ``byzfl``: k = n - f - 1 others (ByzFL, which
        counts the row itself as its nearest; FLPoison).
      power: 2 (the paper, Flower, ByzFL), 1 (FLPoison) or 4 (epfml's reference code).

    At least one neighbour counts, where there is one.
    """
    one_of(["paper", "byzfl"], neighbors=neighbors)
    if power not in POWERS:
        raise FljaxError(f"Expected power={power!r} to be one of 1, 2, 4. The paper has 2.")
    both = alive[:, None] & alive[None, :] & ~jnp.eye(alive.shape[0], dtype=bool)
    others = jnp.where(both, distances ** (power / 2), jnp.inf)
    count = jnp.maximum(jnp.sum(alive) - f - (2 if neighbors == "paper" else 1), 1)
    nearest = jnp.sort(others, axis=1)
    use = (jnp.arange(alive.shape[0])[None, :] < count) & jnp.isfinite(nearest)
    return jnp.where(alive, jnp.sum(jnp.where(use, nearest, 0.0), axis=1), jnp.inf)


def krum_ranks(scores: Array, distances: Array, alive: Array) -> Array:
    """[m] rank of every row by its score, 0 for the least; rows that do not count come last.

    With a single neighbour the two closest rows always tie: ties are won by the row with the smaller sum of all its
    squared distances, so that the order of the rows does not matter. (The paper leaves them to the least id.)
    """
    both = alive[:, None] & alive[None, :]
    total = jnp.where(alive, jnp.sum(jnp.where(both, distances, 0.0), axis=1), jnp.inf)
    order = jnp.lexsort((total, scores))
    return jnp.argsort(order)


def krum(f: int | None = None, neighbors: str = "paper", power: int = 2, before: Sequence[Before] = ()) -> Aggregator:
    """The one payload that lies closest to its neighbours.

    Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine learning with adversaries: Byzantine tolerant gradient descent",
    NIPS 2017. Needs n >= 2 f + 3.

    Args:
      f: how many may be malicious; None reads ``hparams.extra["robust_f"]``.
      neighbors, power: which definition, see ``krum_scores``. before: stages before the rule.
    """
    return _krum("krum", f, 1, neighbors, power, before)


def multi_krum(
    f: int | None = None,
    chosen: int | None = None,
    neighbors: str = "paper",
    power: int = 2,
    before: Sequence[Before] = (),
) -> Aggregator:
    """The mean of the payloads with the least Krum scores.

    Args:
      f: how many may be malicious; None reads ``hparams.extra["robust_f"]``.
      chosen: how many are averaged; None: n - f (ByzFL). The paper leaves it open, up to n - f - 2.
      neighbors, power: which definition, see ``krum_scores``. before: stages before the rule.
    """
    return _krum("multi_krum", f, chosen, neighbors, power, before)


def _krum(name, f, chosen, neighbors, power, before) -> Aggregator:
    def rule(key, ctx, rows, state):
        del key
        most = at_most_half(rows.living, number(ctx, "f", f))
        distances = squared_distances(rows)
        scores = krum_scores(distances, rows.alive, most, neighbors, power)
        keep = jnp.minimum(rows.living - most if chosen is None else chosen, rows.living)
        picked = (krum_ranks(scores, distances, rows.alive) < keep) & rows.alive
        weights = picked / jnp.maximum(keep, 1).astype(jnp.float32)
        return Verdict(combine(weights, rows.tree), weights), state

    krum_scores(jnp.zeros((1, 1)), jnp.ones(1, bool), jnp.int32(0), neighbors, power)  # refuses unknown names now
    return bind(name, rule, before)


def bulyan(f: int | None = None, neighbors: str = "paper", power: int = 2, before: Sequence[Before] = ()) -> Aggregator:
    """Bulyan: n - 2 f payloads by repeated Krum, then around the median of each coordinate the mean of n - 4 f of them.

    El Mhamdi, Guerraoui, Rouault, "The hidden vulnerability of distributed learning in Byzantium", ICML 2018. Needs
    n >= 4 f + 3. A payload is picked once: a picked one leaves the set from which the next is picked, and scores are
    made anew without it.

    Args:
      f: how many may be malicious; None reads ``hparams.extra["robust_f"]``. Where fewer than 4 f + 3 clients live, f
        is lowered to what they allow.
      neighbors, power: Krum's definition, see ``krum_scores``. before: stages before the rule.
    """

    def rule(key, ctx, rows, state):
        del key
        most = jnp.minimum(at_most_half(rows.living, number(ctx, "f", f)), jnp.maximum(rows.living - 1, 0) // 4)
        distances = squared_distances(rows)
        picks = rows.living - 2 * most

        def pick(i, left):
            scores = krum_scores(distances, left, most, neighbors, power)
            take = (krum_ranks(scores, distances, left) == 0) & (i < picks)
            return left & ~take

        left = jax.lax.fori_loop(0, rows.alive.shape[0], pick, rows.alive)
        picked = rows.alive & ~left
        total = middle_mean(rows._replace(alive=picked), picks - 2 * most)
        return Verdict(total, picked / jnp.maximum(picks, 1).astype(jnp.float32)), state

    krum_scores(jnp.zeros((1, 1)), jnp.ones(1, bool), jnp.int32(0), neighbors, power)
    return bind("bulyan", rule, before)
