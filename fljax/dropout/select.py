"""From scores to masks: ranks within a layer, and the best k of them for a traced keep rate."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fljax.core.types import Array, Hparams, Key


def rank(scores: Array, key: Key) -> Array:
    """Ranks [n] int32 of scores [n], 0 = highest; ties (and an all-zero start) are broken at random."""
    order = jnp.lexsort((jax.random.uniform(key, scores.shape), -scores))
    return jnp.zeros(scores.shape, jnp.int32).at[order].set(jnp.arange(scores.size, dtype=jnp.int32))


def explore(ranks: Array, key: Key, share: Array) -> Array:
    """Ranks in which each neuron takes a uniformly random place with probability ``share``; still a permutation.

    The key is public and shared, so that masks of different keep rates stay nested and cost no privacy.
    """
    pick, place, tie = jax.random.split(key, 3)
    chosen = jax.random.bernoulli(pick, share, ranks.shape)
    moved = jnp.where(chosen, jax.random.uniform(place, ranks.shape) * ranks.size, ranks)
    return rank(-moved, tie)


def best(ranks: Array, keep_rate: Array, least: int, most: Array | int) -> Array:
    """0/1 mask [n] float32 with exactly ``clip(round(keep_rate n), least, most)`` ones: the best-ranked neurons."""
    count = jnp.clip(jnp.round(keep_rate * ranks.size), least, jnp.maximum(most, least))
    return (ranks < count).astype(jnp.float32)


def is_refresh(t: Array, hparams: Hparams) -> Array:
    """True in the rounds that choose masks anew: after the warm-up, then every refresh_rounds (0: never again)."""
    since, every = t - hparams.warmup_rounds, hparams.refresh_rounds
    return (since >= 0) & jnp.where(every > 0, since % jnp.maximum(every, 1) == 0, since == 0)
