"""Rules that look for outliers: DnC along the main axis of the payloads, FLAME by clustering their angles."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fljax.core.check import positive
from fljax.core.transform import Aggregator
from fljax.core.types import Array, PyTree
from fljax.robust.rows import (
    Before,
    Verdict,
    at_most_half,
    bind,
    combine,
    gram,
    number,
    plain_weights,
    ranks,
    squared_norm,
)


def divide_and_conquer(
    f: int | None = None,
    remove: float = 1.0,
    dimensions: int = 10_000,
    iterations: int = 5,
    before: Sequence[Before] = (),
) -> Aggregator:
    """DnC: in random coordinates, removes the payloads that lie farthest out along the main axis of all of them.

    Shejwalkar and Houmansadr, "Manipulating the Byzantine: optimizing model poisoning attacks and defenses for
    federated learning", NDSS 2021. A payload is kept if no iteration removes it; if none is left, those that were
    removed least often are. Their plain mean is the result.

    Args:
      f: how many may be malicious; None reads ``hparams.extra["robust_f"]``.
      remove: c; every iteration removes floor(c f) payloads.
      dimensions: coordinates of an iteration, drawn with replacement (the paper draws without); all of them, in a
        single iteration, where the model has no more. iterations: how many. before: stages before the rule.
    """
    positive(dimensions=dimensions, iterations=iterations, remove=remove)

    def rule(key, ctx, rows, state):
        flat = jnp.concatenate([x.reshape(x.shape[0], -1) for x in jax.tree.leaves(rows.tree)], axis=1)
        size, alive = flat.shape[1], rows.alive
        drop = jnp.floor(remove * at_most_half(rows.living, number(ctx, "f", f))).astype(jnp.int32)
        keep = rows.living - jnp.minimum(drop, rows.living - 1)

        def once(key):
            part = flat
            if dimensions < size:
                part = jnp.take(flat, jax.random.randint(key, (dimensions,), 0, size), axis=1)
            scores = outlier_scores(part, alive)
            return (ranks(jnp.where(alive, scores, jnp.inf)) < keep) & alive

        times = 1 if dimensions >= size else iterations
        kept = jnp.sum(jax.lax.map(once, jax.random.split(key, times)), axis=0)
        good = alive & (kept == jnp.max(jnp.where(alive, kept, 0)))
        weights = plain_weights(good)
        return Verdict(combine(weights, rows.tree), weights), state

    return bind("divide_and_conquer", rule, before)


def outlier_scores(values: Array, alive: Array) -> Array:
    """[m] squared projections of the rows of values [m, b] on the main axis of their differences to the mean."""
    weights = plain_weights(alive)
    centre = jnp.matmul(weights, values, precision="highest")
    moved = jnp.where(alive[:, None], values - centre[None], 0.0)
    lengths, axes = jnp.linalg.eigh(jnp.matmul(moved, moved.T, precision="highest"))
    return lengths[-1] * jnp.square(axes[:, -1])


def flame(noise: float | None = None, before: Sequence[Before] = ()) -> Aggregator:
    """FLAME: keeps the largest cluster of directions, clips it to the median norm, and adds noise.

    Clustering is HDBSCAN on cosine distances with clusters of more than half of the clients, so that there is exactly
    one: the smallest component of single linkage with more than n/2 members. Norms are clipped to their median S over
    all clients; the noise on the mean has standard deviation noise * S. Nguyen et al., "FLAME: taming backdoors in
    federated learning", USENIX Security 2022. The noise is part of the defence and carries no privacy claim.

    Args:
      noise: the paper's lambda, about 0.001; None reads ``hparams.extra["robust_noise"]``. before: stages before.
    """

    def rule(key, ctx, rows, state):
        norms = jnp.sqrt(jax.vmap(squared_norm)(rows.tree))
        g = gram(rows.tree)
        cosine = g / jnp.maximum(norms[:, None] * norms[None, :], 1e-30)
        good = majority_component(jnp.maximum(1.0 - cosine, 0.0), rows.alive)
        upwards = jnp.sort(jnp.where(rows.alive, norms, jnp.inf))
        low, high = jnp.maximum(rows.living - 1, 0) // 2, rows.living // 2
        bound = 0.5 * (upwards[low] + jnp.take(upwards, high, mode="clip"))
        weights = plain_weights(good)
        clipped = combine(weights * jnp.minimum(1.0, bound / jnp.maximum(norms, 1e-30)), rows.tree)
        std = jnp.where(jnp.isfinite(bound), bound, 0.0) * number(ctx, "noise", noise)
        return Verdict(_noised(key, clipped, std), weights), state

    return bind("flame", rule, before)


def majority_component(distances: Array, alive: Array) -> Array:
    """[m] bool: the smallest component of single linkage that holds more than half of the living rows.

    Args:
      distances: [m, m], symmetric. alive: [m] bool.
    """
    m = alive.shape[0]
    both = alive[:, None] & alive[None, :]
    start = jnp.where(jnp.eye(m, dtype=bool) & both, 0.0, jnp.where(both, distances, jnp.inf))

    def through(k, reach):  # the least largest step of any path
        return jnp.minimum(reach, jnp.maximum(reach[:, k][:, None], reach[k, :][None, :]))

    reach = jax.lax.fori_loop(0, m, through, start)
    half = jnp.sum(alive) // 2
    radius = jnp.where(alive, jnp.take(jnp.sort(reach, axis=1), half, axis=1, mode="clip"), jnp.inf)
    return alive & (radius <= jnp.min(radius))


def _noised(key: Array, tree: PyTree, std: Array) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    keys = [jax.random.fold_in(key, i) for i in range(len(leaves))]
    noisy = [x + std * jax.random.normal(k, x.shape, jnp.float32) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, noisy)
